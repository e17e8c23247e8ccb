"""Comparisons: variants against transformers' own states, measures by hand, advice that follows from the numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llm2enc.comparison import compare, measures, systems_of
from llm2enc.comparison.advice import advise
from llm2enc.comparison.prefixes import TRIPLES
from llm2enc.comparison.results import Layers, Similarities, SystemResult
from llm2enc.comparison.systems import check
from llm2enc.comparison.variants import DEFAULT, VARIANTS, at_layer, find_variants, input_spec
from llm2enc.encoding import Encoder
from llm2enc.evaluation import (
    BitextTask,
    ClusteringTask,
    Interval,
    PairClassificationTask,
    RerankingTask,
    RetrievalTask,
    StsTask,
    TaskResult,
    difference,
    draws,
    gather,
    interval,
    mean_interval,
    read_pairs_file,
    score,
)
from llm2enc.text import InputFormat
from tests.comparison.conftest import save_model
from tests.support.builders import make_encoder, make_model, make_tokenizer, sentences
from tests.support.tiny import tiny_model

TEXTS = ["the old river", "a bridge of stone and salt", "boats bring wool"]


def variants_of(model: Path, *names: str) -> dict[str, Encoder]:
    found = systems_of(str(model), names or None, 24, "float32", [])
    return {system.name: system.encoder for system in found}


# ------------------------------------------------------------------------------------------------------------- variants

GOLDEN = {
    "causal-mean": "<s>{the old river}</s>",
    "causal-last": "<s>{the old river</s>}",
    "causal-weighted-mean": "<s>{the old river}</s>",
    "bidirectional-mean": "<s>{the old river}</s>",
    "echo-mean": "<s>Rewrite the following paragraph: the old river. The rewritten paragraph:{ the old river}</s>",
    "echo-last": "<s>Rewrite the following paragraph: the old river. The rewritten paragraph:{ the old river</s>}",
    "prompt-last": '<s>This sentence : "the old river{" means in one word:"}',
}


@pytest.mark.parametrize("name", GOLDEN)
def test_what_a_variant_reads_and_pools(name: str, model: Path) -> None:
    encoder = variants_of(model, name)[name]
    tokens = encoder.input_format.pack([TEXTS[0]])
    tokenizer = encoder.input_format.tokenizer
    shown = ""
    pool = [False, *tokens.pool.tolist(), False]
    for place, token in enumerate(tokens.ids.tolist(), start=1):
        shown += "}" * (pool[place - 1] and not pool[place]) + "{" * (pool[place] and not pool[place - 1])
        shown += tokenizer.decode([token])
    assert shown + "}" * pool[-2] == GOLDEN[name]


def test_only_the_text_is_cut_and_every_variant_reads_the_same_words(model: Path) -> None:
    text = " ".join(sentences(1)[0].split()[0] for _ in range(60))
    for name, encoder in variants_of(model).items():
        tokens = encoder.input_format.pack([text])
        copies = 2 if name.startswith("echo") else 1
        kept = encoder.input_format.tokenizer.decode(tokens.ids.tolist())
        ids = make_tokenizer()(text, add_special_tokens=False)["input_ids"][:24]
        assert kept.count(make_tokenizer().decode(ids)) == copies and bool(tokens.truncated[0])
        assert kept.endswith('one word:"' if name == "prompt-last" else "</s>")


@pytest.mark.parametrize("name", ["causal-mean", "causal-last", "echo-mean", "echo-last", "prompt-last"])
@torch.no_grad()
def test_causal_variants_equal_the_states_of_transformers(name: str, model: Path) -> None:
    encoder = variants_of(model, name)[name]
    decoder = make_model().model.eval()
    for text, vector in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        tokens = encoder.input_format.pack([text])
        states = decoder(input_ids=tokens.ids[None]).last_hidden_state[0]
        pooled = states[tokens.pool]
        wanted = pooled[-1] if name.endswith("last") else pooled.mean(0)
        np.testing.assert_allclose(vector, (wanted / wanted.norm()).numpy(), atol=1e-5)


def test_the_default_variants_differ_from_each_other(model: Path) -> None:
    found = variants_of(model)
    assert list(found) == list(DEFAULT) and len(DEFAULT) == 8
    vectors = [encoder.encode(TEXTS) for encoder in found.values()]
    prints = {encoder.fingerprint() for encoder in found.values()}
    assert len(prints) == 8
    for row, one in enumerate(vectors):
        assert all(np.abs(one - other).max() > 1e-3 for other in vectors[:row])


def test_a_variant_of_another_layer_and_names_that_are_wrong(model: Path) -> None:
    (found,) = find_variants(["causal-mean@1", "causal-mean@1"])
    assert found == at_layer(VARIANTS["causal-mean"], 1) and found.layer == 1
    assert variants_of(model, "causal-mean@1")["causal-mean@1"].layer == 1
    for name in ("causal", "causal-mean@", "causal-mean@x", "mean"):
        with pytest.raises(ValueError, match=r"no variant .*there are causal-last, causal-mean"):
            find_variants([name])
    with pytest.raises(ValueError, match=r"layer is 7; this model has layers 0 \(the embeddings\) to 2"):
        variants_of(model, "causal-mean@7")


def test_a_model_with_too_few_positions_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    model = save_model(tmp_path)  # 128 of them
    with pytest.raises(ValueError, match=r"echo-mean needs .* positions; lower the text limit"):
        check([str(model)], None, 100)
    check([str(model)], ["causal-mean"], 100)


def test_a_tokenizer_without_special_tokens_gets_none() -> None:
    spec = input_spec(VARIANTS["echo-last"], make_tokenizer(), 8, 128)
    assert [part.special for part in spec.query] == [None] * 4
    assert InputFormat(spec, make_tokenizer()).pack(["river"]).pool.tolist()[-1]


# ------------------------------------------------------------------------------------------------------------- measures


def test_the_prefix_test_pools_exactly_the_beginnings(model: Path) -> None:
    for name in ("causal-mean", "echo-mean", "bidirectional-last"):
        encoder = variants_of(model, name)[name]
        encoder = encoder.variant(input=input_spec(VARIANTS[name], encoder.input_format.tokenizer, 60, 1000))
        starts = [start for start, *_ in TRIPLES for _ in range(3)]
        tokens = measures._beginnings(encoder)
        rows = zip(tokens.ids.split(tokens.lengths.tolist()), tokens.pool.split(tokens.lengths.tolist()), strict=True)
        pooled = [encoder.input_format.tokenizer.decode(ids[pool].tolist()) for ids, pool in rows]
        assert pooled == starts


def test_a_causal_model_can_not_know_the_end_and_the_others_can(model: Path) -> None:
    found = {
        name: measures.prefix_tests([encoder])[0]
        for name, encoder in variants_of(model, "causal-mean", "bidirectional-mean", "echo-mean").items()
    }
    assert found["causal-mean"].accuracy == Interval(0.5, 0.5, 0.5, 1.0)
    assert found["causal-mean"].moved < 1e-6
    for name in ("bidirectional-mean", "echo-mean"):
        assert found[name].moved > 1e-4 and 0 < found[name].accuracy.value < 1
        assert found[name].accuracy.low < found[name].accuracy.value < found[name].accuracy.high


def test_a_vector_that_does_not_pool_the_text_has_no_prefix_test(model: Path) -> None:
    (encoder,) = variants_of(model, "prompt-last").values()
    assert measures.prefix_tests([encoder]) == [None]


def test_pairs_that_belong_together_by_type() -> None:
    q, d = "query", "document"
    retrieval = RetrievalTask(
        name="r", queries={"1": "ask"}, documents={"a": "yes", "b": "no"}, qrels={"1": {"a": 2, "b": 0}}
    )
    assert measures.related_pairs(retrieval) == [((q, "ask"), (d, "yes"))]
    reranking = RerankingTask(name="r", queries=["ask"], positives=[["yes", "sure"]], negatives=[["no"]])
    assert measures.related_pairs(reranking) == [((q, "ask"), (d, "yes")), ((q, "ask"), (d, "sure"))]
    # The scale goes from 1 to 5, so its upper quarter begins at 4.
    sts = StsTask(name="s", first=["a", "b", "c"], second=["x", "y", "z"], scores=np.array([1.0, 4.0, 5.0]))
    assert measures.related_pairs(sts) == [((d, "b"), (d, "y")), ((d, "c"), (d, "z"))]
    same = PairClassificationTask(name="p", first=["a", "b"], second=["x", "y"], labels=np.array([True, False]))
    assert measures.related_pairs(same) == [((d, "a"), (d, "x"))]
    assert measures.related_pairs(BitextTask(name="b", first=["a"], second=["x"])) == [((d, "a"), (d, "x"))]
    assert measures.related_pairs(ClusteringTask(name="c", members=["a"], labels=["x"])) == []


def test_similarities_by_hand() -> None:
    """Four unit vectors of the plane at 0, 0, 90 and 90 degrees: two of the six pairs have cosine 1, four have 0."""
    angles = {"a": 0.0, "b": 0.0, "c": np.pi / 2, "d": np.pi / 2}

    class Plane:
        def encode(self, texts, *, instruction=None, prompt_name=None):
            return np.array([[np.cos(angles[text]), np.sin(angles[text])] for text in texts])

    task = StsTask(name="s", first=["a", "c"], second=["b", "d"], scores=np.array([0.0, 1.0]))
    found = measures.similarities(Plane(), [task])
    assert sorted(found.random.round(6)) == [0, 0, 0, 0, 1, 1]
    assert found.anisotropy == pytest.approx(1 / 3) and found.spread == pytest.approx(np.sqrt(2) / 3)
    assert found.related == pytest.approx([1.0])


def test_cost_counts_what_the_model_reads(model: Path) -> None:
    found = variants_of(model, "causal-mean", "echo-mean")
    task = BitextTask(name="b", first=TEXTS, second=TEXTS)
    own = make_tokenizer()
    alone = measures.tokens_per_text(found["causal-mean"], [task])
    assert alone == np.mean([len(own(text)["input_ids"]) + 2 for text in TEXTS])
    echo = [f"Rewrite the following paragraph: {text}. The rewritten paragraph: {text}" for text in TEXTS]
    twice = measures.tokens_per_text(found["echo-mean"], [task])
    assert twice == np.mean([len(own(text)["input_ids"]) + 2 for text in echo])


def test_layers_are_scored_on_as_many_tasks_as_fit() -> None:
    tasks = [BitextTask(name=str(n), first=["a"] * n, second=["b"] * n) for n in (30, 10, 20)]
    assert [task.name for task in measures.few_texts(tasks, 60)] == ["10", "20"]
    assert [task.name for task in measures.few_texts(tasks, 1)] == ["10"]
    assert measures.few_texts(tasks, 120) == tasks


# --------------------------------------------------------------------------------------------------------------- advice


def system(name: str, items: np.ndarray, tokens: float = 10, anisotropy: float = 0.1) -> SystemResult:
    """A system whose only task has these scores of its queries."""
    outcome = TaskResult("task", "retrieval", "en", "ndcg@10", float(items.mean()), {}, "mean", items)
    similar = Similarities(np.array([anisotropy - 0.05, anisotropy + 0.05]), np.zeros(0))
    near = interval(outcome.score, draws(outcome))
    return SystemResult(name, "", [outcome], [near], mean_interval([outcome]), tokens, 1.0, similar)


def advice(systems: list[SystemResult], baseline=None, layers=(), order=None) -> list[str]:
    gaps = {other.name: difference(systems[0].outcomes, other.outcomes) for other in systems[1:]}
    order = order or [c.name for c in systems]
    return advise(systems, gaps, baseline, layers, order, len(systems[0].outcomes[0].per_example))


ROWS = np.random.default_rng(0).random(400)


def test_advice_names_the_best_where_it_is_surely_better() -> None:
    found = advice([system("echo-mean", ROWS), system("causal-mean", ROWS - 0.2)])
    assert found[0].startswith("Use echo-mean: mean score 0.5")
    assert "better than the next, causal-mean, by +0.200 (+0.200 to +0.200)" in found[0]
    assert any(s.startswith("Reading the text twice (Echo, 1.0 times the tokens) helps") for s in found)


def test_advice_takes_the_cheapest_of_those_without_a_significant_difference() -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, 400)
    noise -= noise.mean() + 0.001
    found = advice([system("echo-mean", ROWS, tokens=25), system("causal-mean", ROWS + noise, tokens=10)])
    assert found[0].startswith("Use causal-mean: no significant difference from the best, echo-mean")
    assert found[0].endswith("and reads 10 tokens per text instead of 25.")
    assert any("makes no significant difference" in sentence for sentence in found)


def test_advice_says_what_hurts_what_words_alone_score_and_when_the_data_is_small() -> None:
    few = ROWS[:30]
    best = system("causal-mean", few, anisotropy=0.8)
    found = advice([best, system("bidirectional-mean", few - 0.3)], system("TF-IDF", few + 0.4))
    assert any(s.startswith("Bidirectional attention without training hurts") and "-0.300" in s for s in found)
    assert any(s.startswith("Word overlap alone (TF-IDF) scores") and "none is good enough" in s for s in found)
    assert any(s.startswith("The data is small (30 rows and queries)") for s in found)
    assert any("random texts have a cosine of 0.80" in s for s in found)
    beaten = advice([system("causal-mean", ROWS)], system("TF-IDF", ROWS - 0.4))
    assert beaten[0].endswith("Nothing was compared with it.")
    assert any(s.startswith("It beats word overlap") for s in beaten)


def test_advice_follows_the_stages_of_a_run_in_their_order() -> None:
    found = advice(
        [system("after mntp", ROWS), system("untrained", ROWS - 0.1), system("after simcse", ROWS - 0.2)],
        order=["untrained", "after mntp", "after simcse"],
    )
    training = [sentence for sentence in found if sentence.startswith("Training:")]
    assert [sentence.split(":")[1].split(",")[0] for sentence in training] == [" after mntp", " after simcse"]
    assert "helps" in training[0] and "+0.100" in training[0] and "hurts" in training[1] and "-0.200" in training[1]


def test_advice_on_layers_says_whether_the_gain_is_sure() -> None:
    sure, unsure = Interval(0.1, 0.05, 0.15, 1.0), Interval(0.1, -0.05, 0.25, 0.9)
    layers = [
        Layers("a", [0.1, 0.3, 0.2], sure),
        Layers("b", [0.3, 0.1, 0.2], unsure),
        Layers("c", [0.1, 0.2, 0.3], None),
    ]
    found = [s for s in advice([system("a", ROWS)], layers=layers) if "chosen on the same data" in s]
    assert found[0].startswith("a: layer 1 of 2 is better than the last layer by +0.100")
    assert found[1].startswith("b: the embeddings look better, but not surely, than the last layer")
    assert len(found) == 2
    assert ["model.layers: 1`" in sentence for sentence in found] == [True, False]


# -------------------------------------------------------------------------------------------------------------- compare


def test_a_comparison_on_ones_own_pairs(model: Path, pairs: Path, tmp_path: Path) -> None:
    found = compare([str(model)], [str(pairs)], tmp_path / "out", max_text_tokens=24)
    assert {system.name for system in found.systems} == set(DEFAULT)
    means = [system.mean.value for system in found.systems]
    assert means == sorted(means, reverse=True)
    assert [gap.better for gap in found.differences] == [found.systems[0].name] * 7
    task = read_pairs_file(pairs)
    encoder = variants_of(model, "bidirectional-mean")["bidirectional-mean"]
    (named,) = [c for c in found.systems if c.name == "bidirectional-mean"]
    assert named.outcomes[0].score == pytest.approx(score(encoder, task).score, abs=1e-9)
    assert named.similarities.related.size == 20
    assert [layers.name for layers in found.layers] == ["causal-mean", "bidirectional-mean", "echo-mean"]
    assert all(len(layers.scores) == 3 for layers in found.layers)
    last = {layers.name: layers.scores[-1] for layers in found.layers}
    assert last["bidirectional-mean"] == pytest.approx(named.mean.value, abs=1e-6)
    assert found.baseline.mean.value == pytest.approx(1.0)  # the same words in another order
    assert found.facts["command"] == f"llm2enc compare {model} --data {pairs} --max-text-tokens 24"


def test_an_interrupted_comparison_goes_on(model: Path, pairs: Path, tmp_path: Path, monkeypatch) -> None:
    stopped, encode = [], Encoder.encode

    def stop_at_the_third(self, texts, **asked):
        if len(stopped) == 2:
            raise KeyboardInterrupt
        return encode(self, texts, **asked)

    monkeypatch.setattr(Encoder, "encode", stop_at_the_third)
    names = ["causal-mean", "causal-last", "echo-mean"]
    with pytest.raises(KeyboardInterrupt):
        compare(
            [str(model)], [str(pairs)], tmp_path / "out", variants=names, layers=False, max_text_tokens=24,
            report=lambda system: stopped.append(system.name),
        )  # fmt: skip
    monkeypatch.setattr(Encoder, "encode", encode)
    assert stopped == names[:2]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "work").rglob("*.json")}
    assert len(kept) == 3  # the plan, and a result of each system
    resumed = compare([str(model)], [str(pairs)], tmp_path / "out", variants=names, layers=False, max_text_tokens=24)
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    fresh = compare([str(model)], [str(pairs)], tmp_path / "new", variants=names, layers=False, max_text_tokens=24)
    scores = [[(c.name, c.outcomes[0].per_example.tolist()) for c in found.systems] for found in (resumed, fresh)]
    assert scores[0] == scores[1]


def test_weights_are_hashed_once_for_each_system(model: Path, pairs: Path, tmp_path: Path, monkeypatch) -> None:
    calls, fingerprint = [], Encoder.fingerprint
    monkeypatch.setattr(Encoder, "fingerprint", lambda self: calls.append(1) or fingerprint(self))
    compare(
        [str(model)], [str(pairs)], tmp_path / "out", variants=["causal-mean", "echo-mean"], max_text_tokens=24,
        cache=tmp_path / "vectors",
    )  # fmt: skip
    assert len(calls) == 2 == len(list((tmp_path / "vectors").iterdir()))


def test_several_models_are_told_apart_by_name(model: Path, pairs: Path, tmp_path: Path) -> None:
    make_encoder().save(tmp_path / "encoder")
    found = compare(
        [str(tmp_path / "encoder"), str(model)], [str(pairs)], tmp_path / "out", layers=False, max_text_tokens=24
    )
    assert len(found.systems) == 9
    assert {c.name.rpartition(" ")[0] for c in found.systems} == {"encoder as", model.name}
    twins = [str(tmp_path / one / "encoder") for one in "ab"]
    for twin in twins:
        make_encoder(pooling="mean" if twin == twins[0] else "last").save(twin)
    found = compare(twins, [str(pairs)], tmp_path / "twins", layers=False)
    assert {c.name for c in found.systems} == {f"{twin} as saved" for twin in twins}
    with pytest.raises(ValueError, match="has its own input format and pooling; leave out --variants"):
        compare([str(tmp_path / "encoder")], [str(pairs)], tmp_path / "no", variants=["causal-mean"])
    assert not (tmp_path / "no").exists()


def test_a_model_that_stays_causal_is_compared_in_its_causal_variants(pairs: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "mamba", tiny_model("mamba", vocab_size=320))
    found = compare([str(folder)], [str(pairs)], tmp_path / "out", max_text_tokens=24)
    assert {c.name for c in found.systems} == {name for name in DEFAULT if not name.startswith("bidirectional")}
    assert any("bidirectional variants are left out" in note and "mamba" in note for note in found.notes)


@pytest.fixture
def run(model: Path, tmp_path: Path, in_process: None) -> Path:
    """A run of two tiny stages on the causal model."""
    from llm2enc.conversion import convert
    from llm2enc.recipe import load_recipe

    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(sentences(40)))
    data = [{"kind": "files", "path": str(texts)}]
    part = [{"special": "bos"}, {"slot": "text", "pool": True}]
    common = {"data": data, "steps": 2, "batch_size": 8, "lr": 0.05, "precision": "float32", "lora": {"r": 2}}
    recipe = {
        "name": "tiny",
        "model": {"name": str(model), "dtype": "float32"},
        "input": {"query": part, "document": part, "max_tokens": 64},
        "pooling": "mean",
        "stages": [
            {"objective": "mntp", "mask_rate": 0.3, "mask_policy": "bert", "block_tokens": 16, **common},
            {"objective": "simcse", **common},
        ],
    }
    convert(load_recipe(recipe), tmp_path / "run")
    return tmp_path / "run"


def test_the_stages_of_a_run_stand_side_by_side(run: Path, pairs: Path, tmp_path: Path) -> None:
    found = compare([str(run)], [str(pairs)], tmp_path / "out", layers=False)
    assert sorted(c.name for c in found.systems) == ["after mntp", "after simcse", "untrained"]
    task = gather([str(pairs)])[0][0]
    (last,) = [c for c in found.systems if c.name == "after simcse"]
    np.testing.assert_allclose(
        last.outcomes[0].per_example, score(Encoder.load(run / "model"), task).per_example, atol=1e-9
    )
    (first,) = [c for c in found.systems if c.name == "untrained"]
    assert np.abs(first.similarities.random - last.similarities.random).max() > 1e-4
    both = compare(
        [str(run)], [str(pairs)], tmp_path / "more", variants=["causal-last", "echo-mean"], layers=False,
        max_text_tokens=24,
    )  # fmt: skip
    assert {c.name for c in both.systems} == {
        f"{stage} {variant}"
        for stage in ("untrained", "after mntp", "after simcse")
        for variant in ("causal-last", "echo-mean")
    }


def test_a_run_that_is_not_finished_is_compared_as_far_as_it_went(run: Path, pairs: Path, tmp_path: Path) -> None:
    (run / "1-simcse" / "finished.json").unlink()
    found = compare([str(run)], [str(pairs)], tmp_path / "out", layers=False)
    assert sorted(c.name for c in found.systems) == ["after mntp", "untrained"]
    assert any("stage 1-simcse and what follows is not finished" in note for note in found.notes)


def test_what_can_not_be_compared_is_refused_before_a_model_is_loaded(model: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a comparison runs on local data"):
        compare([str(model)], ["STSBenchmark"], tmp_path / "out")
    with pytest.raises(ValueError, match="no such directory"):
        compare([str(tmp_path / "missing")], [str(pairs)], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"holds neither a model \(config.json\), an encoder \(modules.json\) nor a run"
    ):
        compare([str(tmp_path / "empty")], [str(pairs)], tmp_path / "out")
    with pytest.raises(ValueError, match="a model is named twice"):
        compare([str(model), str(model)], [str(pairs)], tmp_path / "out")
    (tmp_path / "empty" / "modules.json").write_text("[]")
    with pytest.raises(ValueError, match="says itself what its weights are held in"):
        compare([str(tmp_path / "empty")], [str(pairs)], tmp_path / "out", dtype="float16")
    with pytest.raises(ValueError, match="no such file or folder"):
        compare([str(model)], [str(tmp_path / "none.jsonl")], tmp_path / "out")
    assert not (tmp_path / "out").exists()
