"""Mined negatives: equal to a written-out search through every document, in every setting."""

import json
import os
import random
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm2enc import cli, mine
from llm2enc.data import examine
from llm2enc.encoding import open_encoder
from llm2enc.engine import Selection
from llm2enc.engine.selection import NearCopies, drawn, fused, refusals
from llm2enc.recipe import FilesData
from tests.engine.toys import ToyEncoder, ToyRanker, cosine, letters
from tests.support.builders import make_encoder, sentences
from tests.support.jobs import Job

Row = dict[str, Any]


def make_rows(count: int = 40, seed: int = 0) -> list[Row]:
    """Queries that come twice, several positives, own negatives, documents that differ by case and space only."""
    dice = random.Random(seed)
    pool = [f"d{number}" for number in range(50)]
    spelled = [lambda t: t, str.upper, lambda t: f"  {t} "]
    rows = []
    for number in range(count):
        row = {
            "query": dice.choice(spelled[:2])(f"q{dice.randrange(count)}"),
            "positive": [dice.choice(spelled)(text) for text in dice.sample(pool, dice.choice((1, 1, 2, 3)))],
            "negatives": dice.sample(pool, dice.choice((0, 0, 0, 2))),
            "instruction": "Find it" if number % 2 else "",
        }
        rows.append(row)
    rows[3]["positive"].append(rows[4]["query"])  # a document that is a query
    return rows


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def norm(text: str) -> str:
    return " ".join(text.lower().split())


def by_brute_force(rows: list[Row], how: Selection, rank, corpus: list[str] = (), rescore=None) -> list[Row]:
    """What `mine` promises, text by text. `rank`: scores of (query, document), one for each ranker; the first one counts."""
    every: dict[str, str] = {}
    for text in corpus or [text for row in rows for text in (*row["positive"], *row["negatives"])]:
        every.setdefault(norm(text), text)
    known = every | {norm(t): t for row in reversed(rows) for t in reversed(row["positive"] + row["negatives"])} | every
    answers: dict[str, list[str]] = {}
    for row in rows:
        answers.setdefault(norm(row["query"]), []).extend(map(norm, row["positive"]))
    first, last = how.ranks
    mined = []
    for number, row in enumerate(rows):
        query, positives = row["query"], answers[norm(row["query"])]
        excluded = {*positives, *map(norm, row["negatives"]), norm(query)}
        left = [text for text in every if text not in excluded]
        rankings = [sorted(left, key=lambda t, s=s: (-s(query, every[t]), [*every].index(t)))[:last] for s in rank]
        order = rankings[0]
        if len(rankings) == 2:
            gain = {text: sum(1 / (61 + r.index(text)) for r in rankings if text in r) for text in left}
            order = sorted((t for t in gain if gain[t]), key=lambda t: (-gain[t], [*every].index(t)))
        order, value = order[first - 1 : last], rescore or rank[0]
        score = {text: value(query, known[text]) for text in {*order, *positives, *map(norm, row["negatives"])}}
        if rescore:
            order.sort(key=lambda t: (-score[t], [*every].index(t)))
        those = [score[text] for text in dict.fromkeys(positives)]
        base = {"min": min(those), "max": max(those), "mean": sum(those) / len(those)}[how.reference]
        order = [
            text
            for text in order
            if (how.margin is None or score[text] < base - how.margin)
            and (how.share is None or score[text] < base * (how.share if base >= 0 else 2 - how.share))
            and (how.max_score is None or score[text] <= how.max_score)
            and (how.min_score is None or score[text] >= how.min_score)
        ]
        u = np.random.default_rng([how.seed, number]).random(len(order))
        keys = {
            "top": range(len(order)),
            "random": u,
            "softmax": [-score[t] + np.log(-np.log(x)) for t, x in zip(order, u, strict=True)],
        }
        taken = sorted(sorted(range(len(order)), key=lambda place: keys[how.sampling][place])[: how.negatives])
        negatives = [norm(text) for text in row["negatives"]] + [order[place] for place in taken]
        mined.append(
            row
            | {"negatives": [*row["negatives"], *(every[order[place]] for place in taken)]}
            | {"positive_scores": [score[norm(text)] for text in row["positive"]]}
            | {"negative_scores": [score[text] for text in negatives]}
        )
    return mined


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model: vectors and letters."""
    monkeypatch.setattr("llm2enc.engine.mining.open_encoder", ToyEncoder)
    monkeypatch.setattr("llm2enc.engine.mining.open_scorer", lambda name, documents, _: ToyRanker(documents))
    monkeypatch.setattr("llm2enc.engine.mining.Bm25Ranker", ToyRanker)
    monkeypatch.setattr("llm2enc.engine.mining.require", lambda *_, **__: None)
    monkeypatch.setattr("llm2enc.engine.mining.version", lambda package: "0")
    monkeypatch.setattr("llm2enc.engine.mining._BLOCK", 7)
    monkeypatch.setattr("llm2enc.engine.mining._RESCORED", 3)


def mined(folder: Path, rows: list[Row], name: str = "out.jsonl", **options: Any) -> list[Row]:
    options = {"model": "toy", "cache": folder / "cache"} | options
    mine(write(folder / "pairs.jsonl", rows), folder / name, **options)
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


SETTINGS = {
    "naive": {"share": None},
    "95 %": {},
    "share of a negative score": {"share": 0.5, "reference": "min", "ranks": (1, 50)},
    "shifted": {"share": None, "ranks": (5, 20)},
    "margin": {"share": None, "margin": 0.1},
    "no margin is strictly below": {"share": None, "margin": 0.0},
    "both": {"margin": 0.05, "share": 0.9},
    "absolute": {"share": None, "max_score": 0.5, "min_score": -0.5},
    "max": {"reference": "max"},
    "mean": {"reference": "mean", "share": 0.9},
    "random": {"sampling": "random", "seed": 3},
    "softmax": {"sampling": "softmax", "ranks": (2, 30)},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_equal_to_brute_force(setting: str, tmp_path: Path) -> None:
    how, rows = {"negatives": 4, "ranks": (1, 40)} | SETTINGS[setting], make_rows()
    assert mined(tmp_path, rows, **how) == by_brute_force(rows, Selection(**how), [cosine])


@pytest.mark.parametrize("sampling", ["top", "softmax"])
def test_equal_to_brute_force_of_both_rankers_and_rescored(sampling: str, tmp_path: Path) -> None:
    how, rows = {"negatives": 4, "ranks": (2, 9), "sampling": sampling}, make_rows(seed=1)
    for name, options, expected in (
        ("letters", {"model": None, "bm25": True}, {"rank": [letters]}),
        ("both", {"bm25": True}, {"rank": [cosine, letters]}),
        ("rescored", {"rescore": "toy"}, {"rank": [cosine], "rescore": letters}),
        ("all", {"bm25": True, "rescore": "toy"}, {"rank": [cosine, letters], "rescore": letters}),
    ):
        found = mined(tmp_path, rows, f"{name}.jsonl", **options, **how)
        assert found == by_brute_force(rows, Selection(**how), **expected)


def test_equal_to_brute_force_with_another_corpus(tmp_path: Path) -> None:
    """Positives that the corpus does not hold have scores, and are never negatives."""
    rows, corpus = make_rows(), [f"e{number}" for number in range(30)] + ["d1", "D1 ", "d2", "q3"]
    (tmp_path / "corpus.txt").write_text("\n".join(corpus))
    how = {"negatives": 4, "ranks": (1, 10)}
    found = mined(tmp_path, rows, corpus=tmp_path / "corpus.txt", **how)
    assert found == by_brute_force(rows, Selection(**how), [cosine], corpus)
    own = [{*map(norm, row["negatives"])} for row in rows]
    new = {
        norm(text) for row, had in zip(found, own, strict=True) for text in row["negatives"] if norm(text) not in had
    }
    assert new <= {*map(norm, corpus)}


def test_a_beir_folder_is_pairs_and_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", [{"_id": f"{n}", "title": "", "text": f"d{n}"} for n in range(30)])
    write(folder / "queries.jsonl", [{"_id": "a", "text": "q1"}, {"_id": "b", "text": "q2"}])
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\na\t3\t1\nb\t4\t1\n")
    mine(folder, tmp_path / "out.jsonl", model="toy", cache=tmp_path / "cache", share=None)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    rows = [{"query": "q1", "positive": ["d3"], "negatives": []}, {"query": "q2", "positive": ["d4"], "negatives": []}]
    expected = by_brute_force(rows, Selection(share=None), [cosine], [f"d{n}" for n in range(30)])
    assert found == [row | {"positive": row["positive"][0]} for row in expected]


# -------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("setting", SETTINGS)
def test_counts_add_up_to_the_rows_and_the_candidates(setting: str, tmp_path: Path) -> None:
    rows, how = make_rows(), {"negatives": 4, "ranks": (1, 40)} | SETTINGS[setting]
    path = write(
        tmp_path / "pairs.jsonl", [*rows, {"query": "", "positive": ["x"], "negatives": [], "instruction": ""}]
    )
    counts = mine(path, tmp_path / "out.jsonl", model="toy", cache=tmp_path / "cache", **how)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    new = [len(after["negatives"]) - len(row["negatives"]) for row, after in zip(rows, found, strict=True)]
    assert counts["rows"].pop("dropped: no query or no positive") == 1
    sizes = Counter("with all" if size == 4 else "with fewer than" if size else "with none of" for size in new)
    assert counts["rows"] == {f"{name} 4 negatives": number for name, number in sizes.items()}
    assert counts["candidates"]["taken"] == sum(new)
    everything = by_brute_force(rows, Selection(share=None, negatives=99, ranks=(1, 99)), [cosine])
    first, last = how["ranks"]
    sizes = [len(after["negatives"]) - len(row["negatives"]) for row, after in zip(rows, everything, strict=True)]
    assert sum(counts["candidates"].values()) == sum(max(0, min(size, last) - first + 1) for size in sizes)


def test_no_positive_of_the_query_is_a_negative(tmp_path: Path) -> None:
    rows = make_rows()
    for row in mined(tmp_path, rows, share=None, negatives=30):
        mine_too = [one for one in rows if norm(one["query"]) == norm(row["query"])]
        answers = {norm(text) for one in mine_too for text in one["positive"]} | {norm(row["query"])}
        own = {*map(norm, next(one for one in mine_too if one["positive"] == row["positive"])["negatives"])}
        new = [norm(text) for text in row["negatives"]]
        assert not answers & ({*new} - own) and len({*new}) == len(new)


def test_training_reads_the_rows_as_they_are(tmp_path: Path) -> None:
    rows = make_rows()
    expected = mined(tmp_path, rows)
    detected, read = examine(FilesData(kind="files", path=str(tmp_path / "out.jsonl")), scores=True)
    assert detected.format == "columns"
    for row, pair in zip(expected, read, strict=True):
        assert [pair.query, pair.instruction] == [row["query"], row["instruction"]]
        assert [pair.positive, *pair.extra_positives] == row["positive"] and list(pair.negatives) == row["negatives"]
        assert list(pair.positive_scores) == row["positive_scores"]
        assert list(pair.negative_scores) == row["negative_scores"]


def test_a_query_is_told_the_instruction_of_its_row_on_request(tmp_path: Path) -> None:
    """A toy query with an instruction is another text."""
    rows = [row | {"positive": [norm(text) for text in row["positive"]]} for row in make_rows()]
    for told, name in (("task", "a.jsonl"), ("own", "b.jsonl")):
        for row in mined(tmp_path, rows, name, instructions=told, share=None):
            assert len(row["negatives"]) >= 7
            asked = (row["instruction"] if told == "task" else "") + row["query"]
            one = [norm(text) for text in row["negatives"]]
            assert [cosine(asked, text) for text in one] == row["negative_scores"]


# --------------------------------------------------------------------------------------------------------------- rules


def test_a_candidate_at_the_limit_is_refused() -> None:
    """Strictly less, as NV-Retriever has it."""
    scores, positives = np.array([0.76, 0.75, 0.74, 0.5]), np.array([1.0])
    assert [bool(why) for why in refusals(scores, positives, Selection(share=0.75))] == [True, True, False, False]
    assert [bool(why) for why in refusals(scores, positives, Selection(share=None, margin=0.25))] == [1, 1, 0, 0]
    assert [bool(why) for why in refusals(scores, positives, Selection(share=None, max_score=0.75))] == [1, 0, 0, 0]
    assert [bool(why) for why in refusals(scores, positives, Selection(share=None, min_score=0.74))] == [0, 0, 0, 1]
    below = refusals(np.array([-1.4, -1.5, -1.6]), np.array([-1.0]), Selection(share=0.5))
    assert [bool(why) for why in below] == [True, True, False]  # as far below as a positive one's share


def test_several_positives_by_their_least_highest_or_mean_score() -> None:
    positives, scores = np.array([0.4, 0.8]), np.array([0.3, 0.5, 0.7, 0.9])
    left = {
        name: int((refusals(scores, positives, Selection(share=1.0, reference=name)) == "").sum())
        for name in ("min", "mean", "max")
    }
    assert left == {"min": 1, "mean": 2, "max": 3}


def test_reciprocal_ranks() -> None:
    """1/61 + 1/63 of 7 is more than 1/62 + 1/62 of 5, by hand; 3 and 9 are equal, 1/63 and 1/61 ... by number."""
    assert fused([np.array([7, 5, 3]), np.array([9, 5, 7])]).tolist() == [7, 5, 9, 3]
    assert fused([np.array([9, 2]), np.array([2, 9])]).tolist() == [2, 9]
    assert 1 / 61 + 1 / 63 > 2 / 62 > 1 / 61 > 1 / 63


def test_softmax_draws_by_exp_of_the_score() -> None:
    """Shares of 20,000 draws, whose standard deviation is below 0.0036; the first two as Plackett and Luce have it."""
    scores = np.array([0.0, 1.0, 2.0])
    how, p = Selection(sampling="softmax"), np.exp(scores) / np.exp(scores).sum()
    orders = np.array([drawn(scores, how, row) for row in range(20_000)])
    np.testing.assert_allclose(np.bincount(orders[:, 0]) / len(orders), p, atol=0.015)
    both = ((orders[:, 0] == 2) & (orders[:, 1] == 1)).mean()
    assert abs(both - p[2] * p[1] / (1 - p[2])) < 0.015
    uniform = np.array([drawn(scores, Selection(sampling="random"), row)[0] for row in range(20_000)])
    np.testing.assert_allclose(np.bincount(uniform) / len(uniform), 1 / 3, atol=0.015)


def test_near_copies_share_half_of_their_8_grams() -> None:
    words = [f"w{number}" for number in range(40)]
    copies = NearCopies([" ".join(words)])
    assert copies.holds(" ".join(words[:20])) and copies.holds(" ".join(["x", *words, "y"]).upper())
    assert copies.holds(" ".join([*words[:20], "x", *words[21:]]))  # 25 of 33 grams
    assert not copies.holds(" ".join(words[:15]))  # too short for anything but equality
    assert not copies.holds(" ".join([*words[:14], *(f"v{number}" for number in range(26))]))  # 7 of 33
    assert not NearCopies(["a short text"]).holds("a short text")


def test_near_copies_of_a_positive_are_no_negatives(tmp_path: Path) -> None:
    long = " ".join(f"w{number}" for number in range(30))
    rows = [{"query": f"q{n}", "positive": text} for n, text in enumerate([long, f"{long} more", "a", "b"])]
    counts = mine(
        write(tmp_path / "p.jsonl", rows), tmp_path / "o.jsonl", model="toy", cache=tmp_path / "c", share=None
    )
    found = [json.loads(line)["negatives"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [set(texts) for texts in found[:2]] == [{"a", "b"}, {"a", "b"}] and len(found[2]) == 3
    assert counts["candidates"]["near copy of the query or a positive"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": None}, "give a model, BM25, or both"),
        ({"negatives": 0}, "at least one negative"),
        ({"ranks": (0, 9)}, "the first is at least 1"),
        ({"ranks": (5, 4)}, "not beyond the last"),
        ({"ranks": (30, 32)}, "hold fewer than 7 candidates"),
        ({"share": 1.5}, "above 0, at most 1"),
        ({"margin": -1.0}, "expected 0 or more"),
        ({"min_score": 0.9, "max_score": 0.1}, "nothing is left"),
        ({"reference": "best"}, "expected max, min or mean"),
        ({"sampling": "all"}, "expected top, random or softmax"),
        ({"seed": -1}, "seed is -1"),
        ({"instructions": "all"}, "expected own, task, none"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(options, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        mine(tmp_path / "absent.jsonl", tmp_path / "out.jsonl", **{"model": "toy"} | options)
    assert not list(tmp_path.iterdir())


def test_instructions_of_documents_have_no_column(tmp_path: Path) -> None:
    rows = [{"query": ["Ask", f"q{n}"], "pos": [["Answer", f"d{n}"]], "neg": [["Answer", f"e{n}"]]} for n in range(3)]
    with pytest.raises(ValueError, match=r"row 1: its documents carry the instruction 'Answer'"):
        mine(write(tmp_path / "p.jsonl", rows), tmp_path / "o.jsonl", model="toy", cache=tmp_path / "c")


# --------------------------------------------------------------------------------------------------------- interruption


def test_changed_inputs_and_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, path, out = make_rows(), tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    options = {"model": "toy", "cache": tmp_path / "cache"}
    monkeypatch.setattr("llm2enc.engine.mining._BLOCK", 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("llm2enc.engine.mining.refusals", _Stopping(3))
        mine(write(path, rows), out, **options)
    with pytest.raises(ValueError, match=re.escape("holds 3 of 40 rows of another run (share: 0.95, now 0.9)")):
        mine(path, out, share=0.9, **options)
    with pytest.raises(ValueError, match=r"model: .*now"):
        mine(path, out, **options | {"model": "other"})
    write(path, [*rows[:-1], rows[-1] | {"query": "another"}])
    with pytest.raises(ValueError, match=r"pairs: .*now"):
        mine(path, out, **options)
    write(path, rows)
    mine(path, out, **options)
    assert len(out.read_text().splitlines()) == 40


class _Stopping:
    """`refusals` for so many rows."""

    def __init__(self, rows: int):
        self.left = rows

    def __call__(self, *arguments: Any) -> np.ndarray:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return refusals(*arguments)


def test_vectors_of_documents_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ToyEncoder] = []
    monkeypatch.setattr("llm2enc.engine.mining.open_encoder", lambda name: made.append(ToyEncoder()) or made[-1])
    first = mined(tmp_path, make_rows(), "one.jsonl", share=None)
    second = mined(tmp_path, make_rows(), "two.jsonl", share=None, margin=0.0)
    documents = {text for row in (*first, *second) for text in row["positive"]}
    assert documents & {*made[0].encoded} and not documents & {*made[1].encoded} - {row["query"] for row in first}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "mine"
    make_encoder().save(folder)
    return folder


def test_killed_anywhere_and_equal(model: Path, tmp_path: Path) -> None:
    """SIGKILL at random steps onto the disk, in encoding and mining; the same bytes as of a run that nobody disturbs."""
    texts = sentences(48, seed=2)
    path = write(tmp_path / "p.jsonl", [{"query": text, "positive": " ".join(text.split()[::-1])} for text in texts])

    def work(place: Path, steps: int | None = None) -> Callable[[], None]:
        def run() -> None:
            from llm2enc.engine import mining, rankers

            torch.set_num_threads(1)
            mining._BLOCK, rankers._ENCODED = 2, 8
            os.environ["LLM2ENC_CACHE"] = str(place / "cache")
            left, sync = iter(range(steps or 0)), os.fsync
            if steps is not None:
                os.fsync = lambda handle: (
                    sync(handle) if next(left, None) is not None else os.kill(os.getpid(), signal.SIGKILL)
                )
            given = ["--model", model, "--sampling", "softmax", "--share", "none", "--negatives", 3, "--ranks", "1-20"]
            sys.argv = ["llm2enc", "mine", *map(str, [path, "-o", place / "o.jsonl.gz", *given])]
            cli.main()

        return run

    whole, broken, dice, kills = tmp_path / "whole", tmp_path / "broken", random.Random(0), 0
    job = Job(work(whole), tmp_path / "log")
    assert job.wait() == 0, job.said()
    while (job := Job(work(broken, dice.randint(10, 45)), tmp_path / f"log-{kills}")).wait() == -signal.SIGKILL:
        kills += 1
    assert job.wait() == 0 and kills >= 2, job.said()
    for name in ("o.jsonl.gz", "o.jsonl.gz.provenance.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in broken.rglob("*")) == sorted(path.name for path in whole.rglob("*"))


# -------------------------------------------------------------------------------------------------- real models and BM25


def test_a_real_encoder_ranks_by_its_own_cosines(model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("llm2enc.engine.mining.open_encoder", open_encoder)
    texts = sentences(12, seed=2)
    rows = [{"query": text, "positive": " ".join(text.split()[::-1]), "instruction": "Find"} for text in texts]
    found = mined(tmp_path, rows, model=str(model), share=None, negatives=5, ranks=(1, 11))
    encoder = open_encoder(str(model))
    queries = encoder.encode(texts, prompt_name="query")
    documents = encoder.encode([row["positive"] for row in rows], prompt_name="document")
    scores = queries.astype(float) @ documents.T.astype(float)
    for number, row in enumerate(found):
        order = [other for other in np.argsort(-scores[number]) if other != number][:5]
        assert row["negatives"] == [rows[other]["positive"] for other in order]
        np.testing.assert_allclose(row["negative_scores"], scores[number, order], atol=1e-6)


def test_a_cross_encoder_scores_the_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import CrossEncoder
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    from llm2enc.engine import rankers

    folder = tmp_path / "cross"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"qd0123456789"]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=17, num_labels=1, **shape)).save_pretrained(folder)
    monkeypatch.setattr("llm2enc.engine.mining.open_scorer", rankers.open_scorer)
    rows = [{"query": f"q {n}", "positive": f"d {n}"} for n in range(8)]
    found = mined(tmp_path, rows, rescore=str(folder), share=None, ranks=(1, 7))
    trusted = CrossEncoder(str(folder))
    for row in found:
        scores = trusted.predict([(row["query"], text) for text in row["negatives"]], show_progress_bar=False)
        np.testing.assert_allclose(row["negative_scores"], scores, atol=1e-6)
        assert row["negative_scores"] == sorted(row["negative_scores"], reverse=True) and len(scores) == 7


def test_an_encoder_scores_what_bm25_found(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm2enc.engine import rankers

    monkeypatch.setattr("llm2enc.engine.mining.open_scorer", rankers.open_scorer)
    rows = [{"query": text, "positive": text[::-1]} for text in sentences(9)]
    found = mined(tmp_path, rows, model=None, bm25=True, rescore=str(model), share=None, ranks=(1, 7))
    encoder = open_encoder(str(model))
    for row in found:
        query, texts = encoder.encode([row["query"]], prompt_name="query")[0], encoder.encode(row["negatives"])
        np.testing.assert_allclose(row["negative_scores"], texts @ query, atol=1e-5)


def test_bm25_ranks_by_shared_words(tmp_path: Path) -> None:
    """Lucene's form, written out: idf * tf / (tf + k1 (1 - b + b length / mean length))."""
    pytest.importorskip("bm25s")
    from llm2enc.engine.documents import Documents
    from llm2enc.engine.rankers import Bm25Ranker, words_of

    documents = Documents()
    documents.add(sentences(30))
    words = [words_of(text) for text in sentences(30)]
    ranker = Bm25Ranker(documents, 25)
    asked = [words_of("The stone BRIDGE"), words_of("a mill, a mill"), [], ["unheard"]]
    mean = np.mean([len(own) for own in words])

    def score(query: list[str], own: list[str]) -> float:
        total = 0.0
        for word in query:
            tf, df = own.count(word), sum(word in other for other in words)
            idf = np.log(1 + (30 - df + 0.5) / (df + 0.5))
            total += idf * tf / (tf + 1.5 * (0.25 + 0.75 * len(own) / mean))
        return total

    found = ranker.search(asked, 10)
    for query, numbers, scores in zip(asked, found, ranker.scores(asked, found), strict=True):
        expected = np.array([score(query, own) for own in words])
        np.testing.assert_allclose(scores, expected[numbers], rtol=1e-5)
        best = [
            number for number in np.argsort(-expected[:25].astype(np.float32), kind="stable") if expected[number] > 0
        ]
        np.testing.assert_allclose(expected[numbers], expected[best[:10]], rtol=1e-5)


def test_bm25_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm2enc import errors

    monkeypatch.setattr("llm2enc.engine.mining.require", errors.require)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape('pip install "llm2enc[mine]"')):
        mine(tmp_path / "p.jsonl", tmp_path / "o.jsonl", bm25=True)


def test_the_command_shows_what_became_of_rows_and_candidates(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("LLM2ENC_CACHE", str(tmp_path / "cache"))
    given = [write(tmp_path / "p.jsonl", make_rows()), "-o", tmp_path / "o.jsonl", "--model", "toy", "--ranks", "1-40"]
    monkeypatch.setattr(sys, "argv", ["llm2enc", "mine", *map(str, given)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert (
        not ended.value.code and "with all 7 negatives" in shown.out and "above the share of the positive" in shown.out
    )
    for option in (["--ranks", "30"], ["--share", "x"], ["--instructions", "all"]):
        monkeypatch.setattr(sys, "argv", ["llm2enc", "mine", *map(str, given), *option])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2 and f"{option[0]} is " in capsys.readouterr().err
