"""Pooling over packed rows: numbers by hand, and equality with a loop over texts."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import llm2enc
from llm2enc.model import POOLERS, pooled_edges
from llm2enc.recipe import InputSpec, Part, Pooling
from tests.support.builders import make_encoder

# Texts of 4, 1 and 3 tokens; the pool has holes at the start, in the middle and at the end.
LENGTHS = torch.tensor([4, 1, 3])
POOL = torch.tensor([False, True, True, True, True, True, False, True])
HIDDEN = torch.tensor(
    [[9.0, 9.0], [6.0, 0.0], [12.0, 6.0], [18.0, -6.0], [5.0, 7.0], [3.0, 30.0], [9.0, 9.0], [6.0, 60.0]]
)
BY_HAND = {
    "mean": [[12.0, 0.0], [5.0, 7.0], [4.5, 45.0]],
    # Weights 1/6 2/6 3/6: (6 + 24 + 54) / 6 and (0 + 12 - 18) / 6. Then 1. Then 1/3 2/3: the hole doesn't count.
    "weighted_mean": [[14.0, -1.0], [5.0, 7.0], [5.0, 50.0]],
    "last": [[18.0, -6.0], [5.0, 7.0], [6.0, 60.0]],
    "first": [[6.0, 0.0], [5.0, 7.0], [3.0, 30.0]],
}


def test_the_recipe_names_these_poolers() -> None:
    assert tuple(POOLERS) == get_args(Pooling)
    assert set(POOLERS) == set(BY_HAND)


@pytest.mark.parametrize("name", POOLERS)
def test_a_pooler_needs_exactly_the_states_that_have_a_gradient(name: str) -> None:
    hidden = HIDDEN.clone().requires_grad_()
    POOLERS[name].function(hidden, POOL, LENGTHS).sum().backward()
    assert torch.equal(POOLERS[name].needed(POOL, LENGTHS), hidden.grad.ne(0).any(1))


@pytest.mark.parametrize("name", POOLERS)
def test_sentence_transformers_pools_so_by_the_name_of_the_table(name: str) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling as Theirs

    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]])
    states = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    ours = POOLERS[name].function(states[mask == 1], torch.ones(8, dtype=torch.bool), mask.sum(1))
    theirs = Theirs(6, pooling_mode=POOLERS[name].mode)({"token_embeddings": states, "attention_mask": mask})
    torch.testing.assert_close(theirs["sentence_embedding"], ours)
    torch.testing.assert_close(by_scripts(name, states, mask, 0), ours)


@pytest.mark.parametrize("name", POOLERS)
def test_the_engines_scripts_know_the_keys_of_the_table(name: str) -> None:
    assert script("reference")._old_mode({f"pooling_mode_{POOLERS[name].flag}": True}) == POOLERS[name].mode


@pytest.mark.parametrize("name", POOLERS)
@given(pool=st.lists(st.booleans(), min_size=2, max_size=6).filter(any), skipped=st.integers(0, 5))
def test_same_in_others_says_whether_the_vectors_are_equal(name: str, pool: list[bool], skipped: int) -> None:
    count = len(pool)
    skipped = min(skipped, count - 1)
    states = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    ours = POOLERS[name].function(states, torch.tensor(pool), torch.tensor([count]))
    theirs = by_scripts(name, states[None], torch.ones(1, count, dtype=torch.long), skipped)
    equal = torch.allclose(ours, theirs, atol=1e-6)
    alone = name == "weighted_mean" and sum(pool) == 1  # the one token has all the weight, whatever it is
    assert POOLERS[name].same_in_others(torch.tensor(pool), skipped) == equal or alone


def script(name: str) -> ModuleType:
    """A script of the engines, which runs without llm2enc and has an implementation of its own."""
    path = Path(llm2enc.__file__).parent / "verification" / "engines" / f"{name}.py"
    spec = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_scripts(name: str, states: Tensor, mask: Tensor, skipped: int) -> Tensor:
    """Vectors (B, D) of states (B, S, D) by the engines' scripts."""
    job = SimpleNamespace(pooling=POOLERS[name].mode, normalize=False, dense=[])
    return torch.from_numpy(script("reference").pooled(job, states.numpy(), mask.numpy(), skipped)).float()


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_by_hand(name: str, dtype: torch.dtype) -> None:
    vectors = POOLERS[name].function(HIDDEN.to(dtype), POOL, LENGTHS)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, torch.tensor(BY_HAND[name]), atol=1e-5, rtol=1e-6)


def test_last_and_first_skip_tokens_at_the_ends_that_are_not_pooled() -> None:
    pool = torch.tensor([False, True, False, False, True, False, True, False])
    starts, ends = pooled_edges(pool, LENGTHS)
    assert starts.tolist() == [1, 4, 6]
    assert ends.tolist() == [1, 4, 6]
    assert [edge.tolist() for edge in pooled_edges(POOL, LENGTHS)] == [[1, 4, 5], [3, 4, 7]]


@pytest.mark.parametrize("name", BY_HAND)
def test_needed_rows_are_those_that_change_a_vector(name: str) -> None:
    hidden = HIDDEN.clone().requires_grad_()
    POOLERS[name].function(hidden, POOL, LENGTHS).sum().backward()
    assert POOLERS[name].needed(POOL, LENGTHS).tolist() == (hidden.grad != 0).any(1).tolist()


def test_a_bfloat16_mean_of_500_tokens_is_exact() -> None:
    """Summed in bfloat16, 500 ones stop at 256."""
    hidden = torch.ones(501, 2, dtype=torch.bfloat16)
    hidden[500] = 2.0
    vectors = POOLERS["mean"].function(hidden, torch.ones(501, dtype=torch.bool), torch.tensor([501]))
    torch.testing.assert_close(vectors, torch.full((1, 2), 502 / 501), atol=1e-5, rtol=0)
    weighted = POOLERS["weighted_mean"].function(hidden, torch.ones(501, dtype=torch.bool), torch.tensor([501]))
    expected = 1 + 501 / (501 * 502 / 2)  # the last weighs 501 of 1 + 2 + ... + 501
    torch.testing.assert_close(weighted, torch.full((1, 2), expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", [0, 1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 0, 1 / 2]),
        ("weighted_mean", [0, 1 / 6, 2 / 6, 3 / 6, 1, 1 / 3, 0, 2 / 3]),
        ("last", [0.0, 0, 0, 1, 1, 0, 0, 1]),
        ("first", [0.0, 1, 0, 0, 1, 1, 0, 0]),
    ],
)
def test_the_gradient_of_a_state_is_its_weight(name: str, expected: list[float]) -> None:
    hidden = HIDDEN.clone().requires_grad_()
    POOLERS[name].function(hidden, POOL, LENGTHS).sum().backward()
    torch.testing.assert_close(hidden.grad, torch.tensor(expected)[:, None].expand(8, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pooled", [True, False])
def test_sgpt_counts_places_among_what_the_template_pools(pooled: bool) -> None:
    """Brackets count as text (SGPT, arXiv 2202.08904); an instruction enters, and shifts the places, as its part says."""
    text = Part(token="[", pool=True), Part(slot="text", pool=True), Part(token="]", pool=True)
    spec = InputSpec(query=(Part(slot="instruction", pool=pooled), *text), document=text, max_tokens=64)
    encoder = make_encoder(spec, "weighted_mean")
    tokens = encoder.input_format.pack(["a river", "the bridge of stone"], "Find it", "query")
    states = encoder.backbone.hidden(tokens).detach().split(tokens.lengths.tolist())
    for vector, hidden, kept in zip(encoder(tokens), states, tokens.pool.split(tokens.lengths.tolist()), strict=True):
        assert kept.all() == pooled and kept[-1]
        own = hidden if pooled else hidden[kept]
        places = torch.arange(1, len(own) + 1)[:, None]
        torch.testing.assert_close(vector, (places * own).sum(0) / places.sum())


def _one_text(name: str, hidden: Tensor, pool: Tensor) -> Tensor:
    """The vector of one text, in float64."""
    states = hidden[pool].double()
    if name in ("first", "last"):
        return states[0 if name == "first" else -1]
    weights = torch.arange(1, len(states) + 1) if name == "weighted_mean" else torch.ones(len(states))
    return sum(weight * state for weight, state in zip(weights.double(), states, strict=True)) / weights.sum()


@pytest.mark.parametrize("name", BY_HAND)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9).filter(any), min_size=1, max_size=6))
def test_equals_a_loop_over_texts(name: str, pools: list[list[bool]]) -> None:
    lengths = torch.tensor([len(pool) for pool in pools])
    pool = torch.tensor([flag for text in pools for flag in text])
    hidden = torch.randn(len(pool), 3, generator=torch.Generator().manual_seed(len(pool)))
    texts = zip(hidden.split(lengths.tolist()), pool.split(lengths.tolist()), strict=True)
    expected = torch.stack([_one_text(name, *text) for text in texts])
    torch.testing.assert_close(POOLERS[name].function(hidden, pool, lengths).double(), expected, atol=1e-6, rtol=1e-5)
