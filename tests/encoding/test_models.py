"""One face for every encoder on disk: ours, a run's folder, and what sentence-transformers opens."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from llm2enc.encoding import Encoder, open_encoder
from llm2enc.encoding.models import SentenceTransformerEncoder
from llm2enc.evaluation import benchmark
from tests.artifact.test_directory import WHOLE
from tests.support.builders import make_encoder, make_model, make_tokenizer, sentences
from tests.support.teachers import write_encoder

transformer_models = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

TEXTS = sentences(7)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of sentence-transformers: a tiny BERT, mean pooling, prompts, texts of at most 24 tokens."""
    return write_encoder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Static embeddings, whose tokenizer is no tokenizer of transformers and knows no longest text."""
    folder = tmp_path_factory.mktemp("static")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [modules.StaticEmbedding(make_tokenizer(), embedding_dim=16)]
    transformer_models.SentenceTransformer(modules=parts).save(str(folder / "model"))
    return folder / "model"


def test_our_directory_and_a_run_s_folder(encoder: Encoder, tmp_path: Path):
    encoder.save(tmp_path / "run" / "model")
    for name in (tmp_path / "run", tmp_path / "run" / "model"):
        found = open_encoder(str(name))
        assert isinstance(found, Encoder)
        assert np.array_equal(found.encode(TEXTS), encoder.encode(TEXTS))


def test_vectors_are_those_of_sentence_transformers(bert: Path):
    found, plain = open_encoder(str(bert)), transformer_models.SentenceTransformer(str(bert))
    for asked, own in (
        ({}, {"prompt": ""}),
        ({"prompt_name": "document"}, {"prompt_name": "document"}),
        ({"prompt_name": "query"}, {"prompt_name": "query"}),
        ({"prompt_name": "other"}, {"prompt": "other: "}),
        ({"instruction": "Find it"}, {"prompt": "Instruct: Find it\nQuery: "}),
        ({"instruction": ""}, {"prompt": ""}),
    ):
        vectors = found.encode(TEXTS, **asked)
        assert vectors.shape == (7, 32) and np.array_equal(vectors, plain.encode(TEXTS, **own)), asked
    assert np.abs(found.encode(TEXTS, prompt_name="query") - found.encode(TEXTS)).max() > 1e-3


def test_a_default_prompt_is_not_put_before_documents(bert: Path, tmp_path: Path):
    copy = shutil.copytree(bert, tmp_path / "copy")
    settings = json.loads((copy / "config_sentence_transformers.json").read_text())
    (copy / "config_sentence_transformers.json").write_text(json.dumps(settings | {"default_prompt_name": "query"}))
    assert np.array_equal(open_encoder(str(copy)).encode(TEXTS), open_encoder(str(bert)).encode(TEXTS))


def test_readings_are_equal_where_vectors_are(bert: Path):
    found = open_encoder(str(bert))
    assert found.cache_key() == found.cache_key(prompt_name="document") == found.cache_key(instruction="")
    kinds = [{}, {"prompt_name": "query"}, {"prompt_name": "other"}, {"instruction": "a"}, {"instruction": "b"}]
    assert len({found.cache_key(**asked) for asked in kinds}) == len(kinds)


def test_tokens_are_those_the_model_reads(bert: Path, static: Path):
    tokenizer = make_tokenizer()
    prompted = [len(ids) for ids in tokenizer(["ask: " + text for text in TEXTS])["input_ids"]]
    plain = [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
    assert max(prompted) > 24  # the premise: something is cut
    found = open_encoder(str(bert))
    assert found.count_tokens(TEXTS, prompt_name="query") == sum(min(length, 24) for length in prompted)
    assert found.count_tokens(TEXTS) == sum(min(length, 24) for length in plain)
    assert open_encoder(str(static)).count_tokens(TEXTS) == sum(plain)
    assert found.count_tokens([]) == 0


def test_static_embeddings_are_the_mean_of_their_rows(static: Path):
    found = open_encoder(str(static))
    table = found.model[0].embedding.weight.detach().numpy()
    expected = [table[ids].mean(axis=0) for ids in make_tokenizer()(TEXTS)["input_ids"]]
    np.testing.assert_allclose(found.encode(TEXTS), expected, atol=1e-6)


def test_queries_take_their_own_route():
    from sentence_transformers.sentence_transformer.modules import Router

    halves = [[modules.StaticEmbedding(make_tokenizer(), embedding_dim=8)] for _ in range(2)]
    found = SentenceTransformerEncoder.__new__(SentenceTransformerEncoder)
    found.model = transformer_models.SentenceTransformer(modules=[Router.for_query_document(*halves)])
    found._routed = True
    assert np.array_equal(found.encode(TEXTS, prompt_name="query"), found.model.encode_query(TEXTS))
    assert np.array_equal(found.encode(TEXTS), found.model.encode_document(TEXTS))
    assert found.cache_key() != found.cache_key(prompt_name="query")


def test_a_fingerprint_changes_with_everything_a_vector_depends_on(bert: Path, static: Path, tmp_path: Path):
    found = open_encoder(str(bert))
    prints = {found.fingerprint()}
    found.encode(TEXTS)
    found.count_tokens(TEXTS)
    copy = shutil.copytree(bert, tmp_path / "copy")
    assert prints == {found.fingerprint(), open_encoder(str(copy)).fingerprint()}  # not with use, nor with the place

    found.model.max_seq_length = 23
    prints.add(found.fingerprint())
    found.model.prompts["query"] = "ask:"
    prints.add(found.fingerprint())
    found.model.truncate_dim = 8
    prints.add(found.fingerprint())
    with torch.no_grad():
        found.model[0].model.embeddings.word_embeddings.weight[3, 0] += 1e-3
    prints.add(found.fingerprint())
    found.model[1] = modules.Pooling(32, "cls")
    prints.add(found.fingerprint())
    found.model[0].config.layer_norm_eps = 0.1
    prints.add(found.fingerprint())
    assert len(prints) == 7

    words = open_encoder(str(static))
    before = words.fingerprint()
    words.model[0].tokenizer.add_tokens(["river"])
    assert words.fingerprint() != before


def test_our_directory_gives_our_vectors_through_sentence_transformers(tmp_path: Path):
    """With a format that other programs can follow: every token is pooled."""
    encoder = make_encoder(WHOLE, "mean")
    encoder.save(tmp_path / "model")
    found = SentenceTransformerEncoder(str(tmp_path / "model"))
    for asked in ({}, {"prompt_name": "document"}, {"prompt_name": "query"}, {"prompt_name": "same"}):
        assert np.abs(found.encode(TEXTS, **asked) - encoder.encode(TEXTS, **asked)).max() < 1e-5, asked
        assert found.count_tokens(TEXTS, **asked) == encoder.count_tokens(TEXTS, **asked)


def test_what_is_no_encoder_is_refused_with_the_remedy(tmp_path: Path):
    make_model().save_pretrained(tmp_path / "causal")
    with pytest.raises(ValueError, match=r"holds no encoder: .*llm2enc convert DIR --training-free"):
        open_encoder(str(tmp_path / "causal"))
    (tmp_path / "file").write_text("x")
    for name in (str(tmp_path / "nowhere"), "./nowhere", "~/nowhere", "runs/pocket/model", str(tmp_path / "file")):
        with pytest.raises(ValueError, match="no such directory; expected one with an encoder, or a hub id"):
            open_encoder(name)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("EntryNotFoundError", r"owner/name on the hub is no encoder \(it has no modules.json\).*llm2enc compare"),
        ("LocalEntryNotFoundError", "owner/name: the hub cannot be reached, and no copy of it is here"),
        ("RepositoryNotFoundError", "owner/name: no such directory, and no such model on the hub"),
    ],
)
def test_a_hub_id_that_is_no_encoder_is_not_pooled_silently(kind: str, message: str, monkeypatch) -> None:
    from huggingface_hub import errors

    error = getattr(errors, kind)

    def download(name: str, file: str):
        assert (name, file) == ("owner/name", "modules.json")
        raise error.__new__(error)  # without the answer of a server that its own constructor asks for

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(ValueError, match=message):
        open_encoder("owner/name")


def test_a_misspelt_model_is_named_before_any_data_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmark, "gather", lambda sources: pytest.fail("read data first"))
    with pytest.raises(ValueError, match="no such directory"):
        benchmark.run("./nowhere", ["smoke"], tmp_path / "out", None)
