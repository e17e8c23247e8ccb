"""One forward pass for several poolings and layers: the values of separate passes, and fewer passes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llm2enc.comparison import compare, measures
from llm2enc.comparison.passes import SharedPass, same_pass
from llm2enc.comparison.systems import states_of
from llm2enc.comparison.variants import DEFAULT
from llm2enc.evaluation import read_pairs_file, score
from llm2enc.model import Backbone
from tests.support.builders import make_encoder, sentences

TEXTS = [*sentences(30), "one", "the old river " * 40, sentences(1)[0]]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The number of forward passes, and of tokens in them."""
    found: Counter[str] = Counter()
    hidden = Backbone.hidden

    def counted(self, tokens, causal=None, *rest):
        found["tokens"] += len(tokens.ids)
        found["passes"] += 1
        return hidden(self, tokens, causal, *rest)

    monkeypatch.setattr(Backbone, "hidden", counted)
    return found


def groups(model: Path, *names: str) -> list[list]:
    return same_pass(next(states_of(str(model), names or None, 24, "float32", [])))


def test_the_default_variants_need_four_passes(model: Path) -> None:
    assert [[system.name for system in group] for group in groups(model)] == [
        ["causal-last", "causal-mean", "causal-weighted-mean"],
        ["bidirectional-mean", "bidirectional-last"],
        ["echo-mean", "echo-last"],
        ["prompt-last"],
    ]
    assert set(DEFAULT) == {system.name for group in groups(model) for system in group}


@pytest.mark.parametrize("direction", ["causal", "bidirectional", "echo"])
@pytest.mark.parametrize("side", ["query", "document"])
def test_a_shared_pass_gives_the_vectors_of_separate_ones(direction: str, side: str, model: Path) -> None:
    poolings = ("last", "mean") if direction == "echo" else ("last", "mean", "weighted-mean")
    (group,) = groups(model, *(f"{direction}-{one}" for one in poolings))
    encoders = [system.encoder for system in group]
    layers = [encoder.variant(layer=layer) for encoder in encoders for layer in range(3)]
    for encoder, member in zip([*encoders, *layers], SharedPass([*encoders, *layers]).members(), strict=True):
        alone = encoder.encode(TEXTS, prompt_name=side)
        np.testing.assert_allclose(member.encode(TEXTS, prompt_name=side), alone, atol=1e-6)
        assert member.fingerprint() == encoder.fingerprint()


def test_a_head_is_part_of_a_shared_pass() -> None:
    from llm2enc.model import fresh_head
    from llm2enc.recipe import ProjectionSpec

    encoder = make_encoder()
    encoder.head = fresh_head(encoder.backbone.width, ProjectionSpec(kind="projection", dimensions=5), 0)
    encoders = [encoder.variant(pooling=pooling) for pooling in ("mean", "last")]
    for one, member in zip(encoders, SharedPass(encoders).members(), strict=True):
        np.testing.assert_allclose(member.encode(TEXTS[:5]), one.encode(TEXTS[:5]), atol=1e-6)


def test_other_attention_template_limit_or_weights_need_a_pass_of_their_own(model: Path) -> None:
    assert [
        len(group) for group in groups(model, "causal-mean", "causal-mean@1", "bidirectional-mean", "echo-mean")
    ] == [
        2,
        1,
        1,
    ]
    short = next(states_of(str(model), ["causal-mean"], 8, "float32", []))
    long = next(states_of(str(model), ["causal-last"], 24, "float32", []))
    assert len(same_pass([*short, *long])) == 2


def test_all_poolings_and_layers_together_read_each_token_once(model: Path, passes: Counter[str]) -> None:
    (group,) = groups(model, "causal-last", "causal-mean", "causal-weighted-mean")
    encoders = [system.encoder for system in group]
    every = [*encoders, *(encoders[1].variant(layer=layer) for layer in range(2))]
    passes.clear()
    for member in SharedPass(every).members():
        member.encode(TEXTS, prompt_name="document")
    together = passes["tokens"]
    # A text that comes twice is read once.
    assert together == sum(int(encoders[0].pack([text]).lengths[0]) for text in dict.fromkeys(TEXTS))
    assert passes["passes"] == 1
    passes.clear()
    for encoder in every:
        encoder.encode(TEXTS, prompt_name="document")
    assert passes["tokens"] == len(every) * together and passes["passes"] == len(every)


def test_a_comparison_reads_the_texts_once_for_each_group(
    model: Path, pairs: Path, tmp_path: Path, passes: Counter[str]
) -> None:
    given = {"max_text_tokens": 24, "cache": tmp_path / "vectors", "tell": lambda plan: passes.clear()}
    found = compare([str(model)], [str(pairs)], tmp_path / "out", **given)
    read = passes["tokens"]
    task, names = read_pairs_file(pairs), ("causal-mean", "bidirectional-mean", "echo-mean", "prompt-last")
    encoders = [system.encoder for group in groups(model, *names) for system in group]
    texts = [text for _, some in task.texts() for text in some]
    tested = encoders[:3]  # whose layers are scored and whose beginnings are pooled
    looks = sum(len(one.pack(["one", "another"]).ids) + len(measures._beginnings(one).ids) for one in tested)
    assert read == sum(one.count_tokens(texts) for one in encoders) + looks
    by_name = {layers.name: layers.scores for layers in found.layers}
    for encoder, name in zip(tested, names, strict=False):
        alone = [score(encoder.variant(layer=layer), task).score for layer in range(3)]
        assert by_name[name] == pytest.approx(alone, abs=1e-9)
