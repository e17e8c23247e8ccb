"""Quantised vectors: the codes of sentence-transformers, and of numbers worked out by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quantization import qualities, recall, searches, table
from llm2enc import cli
from llm2enc.cli import encode as encode_command
from llm2enc.encoding import EncodeOptions, Encoder, calibrate, layout
from llm2enc.encoding.quantization import quantize
from llm2enc.evaluation import RetrievalTask
from llm2enc.evaluation.metrics import unit
from tests.support.builders import make_encoder, sentences

PRECISIONS = ("int8", "uint8", "binary", "ubinary")


def random_vectors(count: int, dimensions: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------- codes


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_codes_are_those_of_sentence_transformers(precision: str, dtype: str) -> None:
    util = pytest.importorskip("sentence_transformers.util.quantization")
    vectors = random_vectors(300).astype(dtype)  # 20 dimensions: two and a half bytes
    vectors[:, 7] = 0.5  # one that does not vary, and zeros, which are not above zero
    vectors[3] = 0
    ranges = calibrate(random_vectors(60, seed=1)) if precision.endswith("int8") else None
    ours, theirs = quantize(vectors, precision, ranges), util.quantize_embeddings(vectors, precision, ranges)
    assert ours.dtype == theirs.dtype and ours.shape[1:] == (layout(20, precision)[0],)
    np.testing.assert_array_equal(ours, theirs)


def test_ranges_are_those_of_sentence_transformers() -> None:
    util = pytest.importorskip("sentence_transformers.util.quantization")
    vectors, texts = random_vectors(50), random_vectors(200, seed=1)
    theirs = util.quantize_embeddings(vectors, "int8", calibration_embeddings=texts)
    np.testing.assert_array_equal(quantize(vectors, "int8", calibrate(texts)), theirs)


def test_codes_by_hand() -> None:
    """From 0 to 255 a step is 1: floor of the value, ends kept. From -255 to 255 it is 2: 0 lies 127.5 up."""
    ranges = np.array([[0, -255], [255, 255]], dtype=np.float32)
    vectors = np.array([[3.9, 0], [-5, -255], [300, 255]], dtype=np.float32)
    assert quantize(vectors, "uint8", ranges).tolist() == [[3, 127], [0, 0], [255, 255]]
    assert quantize(vectors, "int8", ranges).tolist() == [[-125, -1], [-128, -128], [127, 127]]
    signs = np.array([[1, -1, 1, 0, 0, 0, 0, 2, 3]], dtype=np.float32)  # 10100001 1(0000000)
    assert quantize(signs, "ubinary").tolist() == [[0b10100001, 0b10000000]]
    assert quantize(signs, "binary").tolist() == [[0b10100001 - 128, 0]]
    assert calibrate(np.array([[1.0, 5], [3, 4], [2, 9]])).tolist() == [[1, 4], [3, 9]]
    assert calibrate(np.array([[1.0, -5], [3, 4]]), shared=True).tolist() == [[-5, -5], [5, 5]]


def test_the_hamming_distance_of_codes_counts_signs_that_differ() -> None:
    vectors = random_vectors(2)
    first, second = quantize(vectors, "ubinary")
    assert np.bitwise_count(first ^ second).sum() == ((vectors[0] > 0) != (vectors[1] > 0)).sum()


def test_what_cannot_be_quantised_is_said() -> None:
    vectors = random_vectors(3, 4)
    ranges = calibrate(vectors)
    for given, said in (
        ((vectors, "int8"), "needs the ranges"),
        ((vectors, "int8", ranges[:, :3]), r"shape \(2, 3\), expected \(2, 4\)"),
        ((vectors, "uint8", ranges[::-1]), "smallest value above the largest"),
        ((vectors, "binary", ranges), "ranges are for int8 and uint8"),
        ((vectors, "int4"), "'int4'; vectors are quantised to one of int8, uint8, binary, ubinary"),
        ((vectors[0], "binary"), r"expected float vectors \(B, D\)"),
        ((quantize(vectors, "int8", ranges), "binary"), "got int8"),
        ((vectors * np.nan, "binary"), "nan or infinity"),
    ):
        with pytest.raises(ValueError, match=said):
            quantize(*given)
    with pytest.raises(ValueError, match=r"two vectors .* shape \(1, 4\)"):
        calibrate(vectors[:1])


# -------------------------------------------------------------------------------------------------------------- encoder


@pytest.mark.parametrize("truncate_dim", [None, 12])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_encoder_quantises_what_it_cut_and_normalised(encoder: Encoder, precision: str, truncate_dim) -> None:
    texts = sentences(30)
    vectors = encoder.encode(texts, truncate_dim=truncate_dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    ranges = calibrate(vectors[:20]) if precision.endswith("int8") else None
    keywords = {"precision": precision, "ranges": ranges, "truncate_dim": truncate_dim}
    expected = quantize(vectors, precision, ranges)
    found = encoder.encode(texts, **keywords)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        np.concatenate(list(encoder.encode_blocks(iter(texts), EncodeOptions(**keywords)))), expected
    )
    np.testing.assert_array_equal(encoder.encode((text for text in texts), **keywords), expected)
    # Alone a text may have other last bits than among others, which move a value at the end of a range by a step.
    alone = encoder.encode(texts[4:5], truncate_dim=truncate_dim)
    np.testing.assert_array_equal(encoder.encode(texts[4], **keywords), quantize(alone, precision, ranges)[0])
    assert encoder.encode([], **keywords).shape == (0, expected.shape[1])


def test_the_encoder_refuses_before_it_encodes(encoder: Encoder) -> None:
    ranges = np.zeros((2, 32), dtype=np.float32)
    for keywords, said in (
        ({"precision": "int8"}, "needs the ranges"),
        ({"precision": "int8", "ranges": ranges, "truncate_dim": 16}, r"expected \(2, 16\)"),
        ({"precision": "half"}, "precision is 'half'"),
        ({"ranges": ranges}, "precision is float32; leave them out"),
        ({"precision": "binary", "dtype": "float16"}, "dtype is float16 and precision binary"),
    ):
        with pytest.raises(ValueError, match=said):
            encoder.encode_blocks(["a text"], EncodeOptions(**keywords))


# --------------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantization")
    make_encoder().save(path / "model")
    texts = sentences(40)
    (path / "documents.txt").write_text("\n".join(texts))
    (path / "queries.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in texts[:5]))
    return path


def encode(monkeypatch, folder: Path, source: str, out: Path, *options) -> None:
    given = ["llm2enc", "encode", folder / "model", folder / source, "-o", out, *options]
    monkeypatch.setattr(sys, "argv", list(map(str, given)))
    cli.app(standalone_mode=False)


def test_documents_and_queries_are_written_with_the_same_ranges(folder: Path, tmp_path: Path, monkeypatch) -> None:
    texts, out = sentences(40), tmp_path / "documents.npy"
    options = ("--precision", "int8", "--truncate-dim", 24)
    encode(monkeypatch, folder, "documents.txt", out, *options, "--calibrate", folder / "documents.txt")
    encoder = Encoder.load(folder / "model")
    vectors = encoder.encode(texts, truncate_dim=24)
    ranges = np.load(tmp_path / "documents.ranges.npy")
    np.testing.assert_allclose(ranges, calibrate(vectors, shared=True), atol=1e-6)
    documents = np.load(out)
    assert documents.dtype == np.int8
    np.testing.assert_array_equal(documents, encoder.encode(texts, precision="int8", ranges=ranges, truncate_dim=24))

    given = (*options, "--ranges", tmp_path / "documents.ranges.npy", "--column", "question")
    encode(monkeypatch, folder, "queries.jsonl", tmp_path / "queries.npy", *given)
    queries = encoder.encode(texts[:5], precision="int8", ranges=ranges, truncate_dim=24)
    np.testing.assert_array_equal(np.load(tmp_path / "queries.npy"), queries)
    assert np.abs(queries.astype(int) - documents[:5]).max() <= 1  # other neighbours, other last bits: a step at most
    np.testing.assert_array_equal(np.load(tmp_path / "queries.ranges.npy"), ranges)


def test_an_encoding_that_breaks_off_leaves_no_ranges(folder: Path, tmp_path: Path, monkeypatch) -> None:
    def broken(self, texts, options, first=0):
        raise ValueError("no more") if list(tmp_path.rglob("ranges.npy")) else AssertionError("ranges come first")
        yield

    monkeypatch.setattr(Encoder, "encode_blocks", broken)
    np.save(tmp_path / "given.npy", np.zeros((2, 32), dtype=np.float32))
    options = ("--precision", "int8", "--ranges", tmp_path / "given.npy")
    with pytest.raises(ValueError, match="no more"):
        encode(monkeypatch, folder, "documents.txt", tmp_path / "out.npy", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["given.npy"]


def test_bits_are_written_without_ranges(folder: Path, tmp_path: Path, monkeypatch) -> None:
    encode(monkeypatch, folder, "documents.txt", tmp_path / "bits.npy", "--precision", "ubinary")
    expected = Encoder.load(folder / "model").encode(sentences(40), precision="ubinary")
    assert np.load(tmp_path / "bits.npy").dtype == np.uint8
    np.testing.assert_array_equal(np.load(tmp_path / "bits.npy"), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["bits.npy"]


def test_calibration_takes_texts_from_the_whole_file(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """40 texts, of which 10 are asked for: every fourth."""
    monkeypatch.setattr(encode_command, "CALIBRATION_TEXTS", 10)
    options = ("--precision", "uint8", "--calibrate", folder / "documents.txt")
    encode(monkeypatch, folder, "documents.txt", tmp_path / "out.npy", *options)
    chosen = Encoder.load(folder / "model").encode(sentences(40)[::4])
    np.testing.assert_allclose(np.load(tmp_path / "out.ranges.npy"), calibrate(chosen, shared=True), atol=1e-6)


def test_options_that_do_not_fit_are_told_before_the_model_is_loaded(folder: Path, tmp_path: Path, monkeypatch) -> None:
    np.save(tmp_path / "ranges.npy", np.zeros((2, 7), dtype=np.float32))
    ranges, texts = ("--ranges", tmp_path / "ranges.npy"), ("--calibrate", folder / "documents.txt")
    for options, said in (
        (("--precision", "int8"), "--calibrate FILE.*--ranges FILE.npy"),
        (("--precision", "int8", *ranges, *texts), "not both"),
        (("--precision", "binary", *ranges), "only for --precision int8 and uint8"),
        (texts, "only for --precision int8 and uint8"),
        (("--precision", "int3"), "expected one of float32, int8"),
        (("--precision", "int8", "--ranges", folder / "documents.txt"), "documents.txt is no .npy file of ranges"),
        (("--precision", "int8", *ranges), r"shape \(2, 7\), expected \(2, 32\)"),
    ):
        with pytest.raises(ValueError, match=said):
            encode(monkeypatch, folder, "documents.txt", tmp_path / "out.npy", *options)
    (tmp_path / "out.ranges.npy").touch()
    with pytest.raises(ValueError, match=r"out.ranges.npy exists already"):
        encode(monkeypatch, folder, "documents.txt", tmp_path / "out.npy", "--precision", "int8", *texts)
    assert not (tmp_path / "out.npy").exists()


# ------------------------------------------------------------------------------------------------------------ benchmark


# Eight dimensions. Document 0 has two signs other than the query, both tiny: cosine 0.87, Hamming distance 2. Document 1
# has one, with nearly all of its length: cosine 0, distance 1. Document 2 is the opposite: cosine -1, distance 8.
QUERIES = unit(np.ones((1, 8), dtype=np.float32))
DOCUMENTS = unit(
    np.array([[1, 1, 1, 1, 1, 1, -0.01, -0.01], [1, 1, 1, 1, 1, 1, 1, -7], [-1] * 8], dtype=np.float32),
)


def test_searches_by_hand() -> None:
    found = searches(QUERIES, DOCUMENTS, depth=2, rescored=2)
    rankings = {name: one.ranking.tolist() for name, one in found.items()}
    assert rankings["float32"] == rankings["float x int8"] == rankings["float x int8, a range each"] == [[0, 1]]
    assert rankings["bits"] == [[1, 0]] and rankings["bits, 2 rescored"] == [[0, 1]]
    assert rankings["D/2"] == rankings["D/4"] == rankings["D/8"] == [[0, 1]]  # equal there: the first stands first
    sizes = {name: one.bytes for name, one in found.items()}
    assert sizes == {
        "float32": 32, "int8 x int8": 8, "float x int8": 8, "int8 x int8, a range each": 8,
        "float x int8, a range each": 8, "bits": 1, "bits, 2 rescored": 1, "D/2": 16, "D/4": 8, "D/8": 4,
    }  # fmt: skip
    # One place: by bits document 1, where float32 has document 0. Two of them rescored have it again.
    first = {name: one.ranking[:, :1] for name, one in found.items()}
    assert recall(first["bits"], first["float32"]) == 0 and recall(first["bits, 2 rescored"], first["float32"]) == 1


def test_inner_products_of_codes_are_those_of_integers() -> None:
    queries, documents = unit(random_vectors(4)), unit(random_vectors(30, seed=1))
    found = searches(queries, documents, depth=5)
    for shared, name in ((True, "int8 x int8"), (False, "int8 x int8, a range each")):
        ranges = calibrate(documents, shared)
        codes = [quantize(side, "int8", ranges).astype(int).tolist() for side in (queries, documents)]
        products = [[sum(a * b for a, b in zip(q, d, strict=True)) for d in codes[1]] for q in codes[0]]
        wanted = [sorted(range(30), key=lambda d: (-row[d], d))[:5] for row in products]
        assert found[name].ranking.tolist() == wanted


def test_codes_of_one_range_are_compared_as_they_are() -> None:
    """Dimensions of unlike spread, as encoders have: a range each makes a tenth of the length weigh like the rest."""
    spread = np.where(np.arange(32) < 16, 1.0, 0.1)
    queries, documents = unit(random_vectors(40, 32) * spread), unit(random_vectors(300, 32, seed=1) * spread)
    found = searches(queries, documents)
    wanted = found["float32"].ranking
    assert recall(found["int8 x int8"].ranking, wanted) > 0.95
    assert recall(found["float x int8, a range each"].ranking, wanted) > 0.95
    assert recall(found["int8 x int8, a range each"].ranking, wanted) < 0.8


def test_quality_by_hand() -> None:
    """The relevant document is 0: first with float32, nDCG 1; second by bits, 1 / log2(3)."""
    task = RetrievalTask(
        name="t", queries={"q": "q"}, documents={"a": "a", "b": "b", "c": "c"}, qrels={"q": {"a": 1}}
    )  # fmt: skip
    found = qualities(task, QUERIES, DOCUMENTS)
    assert found["float32"].ndcg == 1 and found["float32"].recall == 1
    assert found["bits"].ndcg == pytest.approx(1 / np.log2(3)) and found["bits"].recall == 1  # all three are found
    assert recall(np.array([[2, 9], [4, 3]]), np.array([[1, 2], [3, 4]])) == 0.75
    shown = table({"t": found, "u": found}).splitlines()
    assert shown[0] == "| vectors | bytes | recall@10 | nDCG@10 | t | u |"
    assert shown[7] == "| bits | 1 | 1.000 | 0.631 | 1.000 / 0.631 | 1.000 / 0.631 |"
