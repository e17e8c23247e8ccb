"""Packed attention: what its pictures promise, and equality with attention written out in float64, per text."""

import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llm2enc.model import attention
from llm2enc.model.attention import Packing, _grouped, allowed, packed_attention
from llm2enc.text import Tokens

CPU = torch.device("cpu")
MODULE = torch.nn.Module()
PACKS = {"mixed": [2, 3, 1], "equal": [3, 3, 3], "single": [1, 1], "one": [5], "unsorted": [4, 1, 4, 2, 1]}
HEADS, GROUPS, WIDTH = 4, 2, 8


def packing(lengths: list[int], causal: bool, queries: list[bool] | None = None) -> Packing:
    return Packing(torch.tensor(lengths), causal, CPU, None if queries is None else torch.tensor(queries))


def states(total: int, heads: int = HEADS, kv_heads: int = GROUPS, seed: int = 0) -> list[Tensor]:
    """Query, key and value (1, H, T, D) that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, count, total, WIDTH) for count in (heads, kv_heads, kv_heads))
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    causal: bool,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """(1, T, H, D) in float64: one text, one head, one token at a time."""
    query, key, value = (part[0].double() for part in (query, key, value))
    rows = []
    start = 0
    for length in lengths:
        for i in range(length):
            seen = [j for j in range(length) if j <= i or not causal]
            if window is not None:
                seen = [j for j in seen if (i - j < window if causal else abs(i - j) <= window)]
            keys = [start + j for j in seen]
            heads = []
            for head in range(query.size(0)):
                group = head * key.size(0) // query.size(0)
                scores = key[group, keys] @ query[head, start + i] * scaling
                scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
                exponents = scores.exp()
                total = exponents.sum() + (0 if sinks is None else sinks[head].double().exp())
                heads.append(exponents @ value[group, keys] / total)
            rows.append(torch.stack(heads))
        start += length
    return torch.stack(rows)[None]


def assert_same_values_and_gradients(actual: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(actual.double(), expected, atol=2e-6, rtol=2e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    ours = torch.autograd.grad((actual.double() * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=5e-6, rtol=5e-5)


# ------------------------------------------------------------------------------------------------------------ pictures


def pictures() -> dict[str, list[list[bool]]]:
    """The pictures of the module's docstring, by their headings."""
    lines = attention.__doc__.splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip().startswith("bidirectional  "))
    headings = re.split(r" {2,}", lines[first].strip())
    rows = [re.split(r" {2,}", line.strip()) for line in lines[first + 1 : first + 7]]
    return {
        heading: [[mark == "x" for mark in row[number].split()] for row in rows]
        for number, heading in enumerate(headings)
    }


@pytest.mark.parametrize("heading", ["bidirectional", "causal", "bidirectional, sliding_window=1"])
def test_the_pictures_are_what_may_be_read_and_what_is_read(heading: str) -> None:
    picture = torch.tensor(pictures()[heading])
    assert picture.shape == (6, 6)
    window = 1 if "sliding" in heading else None
    pack = packing([2, 3, 1], causal=heading == "causal")
    assert torch.equal(allowed(pack, window), picture)
    query, key, value = states(6)
    out, _ = packed_attention(MODULE, query, key, value, None, sliding_window=window, packing=pack)
    for part in (value, key):
        moved = torch.stack([torch.autograd.grad(row.sum(), part, retain_graph=True)[0] for row in out[0]])
        reads = moved.abs().sum(dim=(1, 2, 4)) > 1e-4  # (query token, key token); below is rounding
        # A token that reads only itself has one weight, 1, whatever its key: no gradient for the key.
        alone = picture.sum(1, keepdim=True) == 1
        assert torch.equal(reads, picture if part is value else picture & ~alone)


def test_three_pictures_are_found() -> None:
    assert list(pictures()) == ["bidirectional", "causal", "bidirectional, sliding_window=1"]


# ------------------------------------------------------------------------------------------------- equality, every way


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pack", PACKS)
def test_equals_attention_written_out(pack: str, causal: bool, heads: tuple[int, int]) -> None:
    lengths = PACKS[pack]
    inputs = states(sum(lengths), *heads)
    out, weights = packed_attention(MODULE, *inputs, None, packing=packing(lengths, causal))
    assert weights is None
    assert_same_values_and_gradients(out, reference(*inputs, lengths, causal, WIDTH**-0.5), inputs)


@pytest.mark.parametrize("options", [{"window": 1}, {"window": 2}, {"softcap": 0.7}, {"sinks": True}, {"window": 99}])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pack", PACKS)
def test_windows_caps_and_sinks_equal_attention_written_out(pack: str, causal: bool, options: dict) -> None:
    lengths, (window, softcap) = PACKS[pack], (options.get(name) for name in ("window", "softcap"))
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], requires_grad=True) if "sinks" in options else None
    inputs = states(sum(lengths))
    out, _ = packed_attention(
        MODULE, *inputs, None, scaling=0.3, sliding_window=window, softcap=softcap, s_aux=sinks,
        packing=packing(lengths, causal),
    )  # fmt: skip
    expected = reference(*inputs, lengths, causal, 0.3, window, softcap, sinks)
    assert_same_values_and_gradients(out, expected, inputs + ([] if sinks is None else [sinks]))


@pytest.mark.parametrize("causal", [True, False])
def test_window_cap_and_sinks_work_together(causal: bool) -> None:
    inputs, sinks = states(11), torch.tensor([0.5, -1.0, 2.0, 0.0])
    pack = packing([6, 5], causal)
    out, _ = packed_attention(
        MODULE, *inputs, None, scaling=0.5, sliding_window=2, softcap=0.9, s_aux=sinks, packing=pack
    )
    expected = reference(*inputs, [6, 5], causal, 0.5, 2, 0.9, sinks)
    assert_same_values_and_gradients(out, expected, inputs)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.lists(st.booleans(), min_size=1, max_size=5), min_size=1, max_size=5),
    causal=st.booleans(),
    options=st.sampled_from([{}, {"sliding_window": 1}, {"sliding_window": 2}, {"softcap": 0.7}]),
)
def test_tokens_that_ask_get_their_states_and_others_zeros(texts, causal, options) -> None:
    lengths, asks = [len(text) for text in texts], [flag for text in texts for flag in text]
    with torch.no_grad():
        inputs = states(len(asks))
        whole, _ = packed_attention(MODULE, *inputs, None, packing=packing(lengths, causal), **options)
        some, _ = packed_attention(MODULE, *inputs, None, packing=packing(lengths, causal, asks), **options)
    chosen = torch.tensor(asks)
    torch.testing.assert_close(some[:, chosen], whole[:, chosen], atol=2e-6, rtol=2e-5)
    assert not some[:, ~chosen].any()


def test_groups_are_texts_of_one_length_and_restore_undoes_their_order() -> None:
    pack = packing([2, 3, 2], causal=False)
    assert [group.keys.tolist() for group in pack.groups] == [[[0, 1], [5, 6]], [[2, 3, 4]]]
    assert pack.restore.tolist() == [0, 1, 4, 5, 6, 2, 3]
    assert pack.cumulative.tolist() == [0, 2, 5, 7] and pack.cumulative.dtype == torch.int32
    assert pack.longest == 3
    assert packing([2, 2, 3], causal=False).restore is None
    last = packing([2, 3, 2], False, [False, True, True, False, True, False, True])
    assert [(g.queries.tolist(), g.offsets.tolist()) for g in last.groups] == [
        ([[1], [6]], [[1], [1]]),
        ([[2, 4]], [[0, 2]]),
    ]
    assert last.restore.tolist() == [4, 0, 2, 4, 3, 4, 1]  # 4: the row of zeros


def test_a_row_sorted_by_length_is_read_in_place() -> None:
    """Its groups are runs of the row, so they share its memory; in any other order they are gathered."""
    states = torch.arange(7.0)[:, None, None].expand(7, 2, 4).contiguous()
    in_order = packing([3, 3, 1], causal=False)
    assert in_order.runs == [6, 1]
    parts = next(iter(_grouped(in_order, states, states, states)))
    assert [part.data_ptr() for part in parts] == [states.data_ptr(), states[6:].data_ptr()]
    assert packing([3, 1, 3], causal=False).runs is None
    assert packing([3, 3, 1], causal=False, queries=[True, False, True, True, False, True, True]).runs is None


def test_packing_of_tokens_takes_their_lengths() -> None:
    pack = Packing.of(Tokens.from_blocks(torch.ones(2, 3, dtype=torch.int64)), causal=True)
    assert pack.lengths.tolist() == [3, 3] and pack.causal and pack.queries is None


# ------------------------------------------------------------------------------------------------ dropout and precision


@pytest.mark.parametrize("softcap", [None, 50.0])
def test_dropout_drops_weights_by_the_seed_and_is_right_on_average(softcap: float | None) -> None:
    copies = 2000  # of one text, so that one call is many draws
    inputs = [part.detach().repeat(1, 1, copies, 1) for part in states(3)]
    pack = packing([3] * copies, causal=False)

    def draw(seed: int, dropout: float) -> Tensor:
        torch.manual_seed(seed)
        out, _ = packed_attention(MODULE, *inputs, None, dropout, softcap=softcap, packing=pack)
        return out.view(copies, 3, HEADS, WIDTH)

    assert torch.equal(draw(1, 0.3), draw(1, 0.3))
    assert not torch.equal(draw(1, 0.3), draw(2, 0.3))
    draws = draw(1, 0.3)
    error = (draws.mean(0) - draw(0, 0.0)[0]).abs()
    # Five standard errors: one of 96 numbers is beyond them once in twenty thousand seeds, and this seed is fixed.
    assert (error <= 5 * draws.std(0) / copies**0.5).all()
    assert draws.std(0).min() > 0.01


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}])
def test_a_processor_attends_in_float32_and_rounds_once(options: dict, autocast: bool) -> None:
    """In value and gradient, 16-bit states give what float32 attention over them gives, rounded at the end."""
    pack = packing([2, 3], causal=True)
    narrow = [part.detach().bfloat16().requires_grad_() for part in states(5)]
    wide = [part.detach().float().requires_grad_() for part in narrow]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out, _ = packed_attention(MODULE, *narrow, None, packing=pack, **options)
    exact, _ = packed_attention(MODULE, *wide, None, packing=pack, **options)
    torch.testing.assert_close(out, exact.bfloat16(), atol=0, rtol=0)
    out.backward(weights := torch.randn_like(out))
    exact.backward(weights.float())
    for part, other in zip(narrow, wide, strict=True):
        torch.testing.assert_close(part.grad, other.grad.bfloat16(), atol=0, rtol=0)


@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}])
def test_autocast_brings_float32_queries_to_the_16_bit_values(options: dict) -> None:
    query, key, value = (part.detach() for part in states(5))
    pack = packing([2, 3], causal=True)
    plain, _ = packed_attention(MODULE, query, key, value, None, packing=pack, **options)
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = packed_attention(MODULE, query, key, value.bfloat16(), None, packing=pack, **options)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), plain, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_without_packing_it_is_transformers_sdpa(causal: bool, masked: bool) -> None:
    module = SimpleNamespace(is_causal=causal, num_key_value_groups=HEADS // GROUPS)
    inputs = [part.detach().expand(2, -1, -1, -1) for part in states(5)]
    mask = torch.tensor([1, 1, 1, 0, 0]).bool().expand(2, 1, 5, 5) if masked else None
    ours, _ = packed_attention(module, *inputs, mask, scaling=0.3)
    theirs, _ = sdpa_attention_forward(module, *inputs, mask, 0.0, 0.3)
    assert torch.equal(ours, theirs)
    other, _ = sdpa_attention_forward(
        SimpleNamespace(is_causal=not causal, num_key_value_groups=2), *inputs, mask, 0.0, 0.3
    )
    assert torch.equal(ours, other) == masked  # a mask says it all


@pytest.mark.parametrize("option", [{"softcap": 1.0}, {"s_aux": torch.zeros(HEADS)}])
def test_without_packing_what_sdpa_can_not_do_is_refused(option: dict) -> None:
    module = SimpleNamespace(is_causal=True, num_key_value_groups=2)
    with pytest.raises(ValueError, match=next(iter(option))):
        packed_attention(module, *states(5), None, **option)


# ----------------------------------------------------------------------------------------------------------------- CUDA


def varlen(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, scale: float, causal: bool, window) -> Tensor:
    """(T, H, D) as flash-attn documents it: query i reads keys i - left to i + right, -1 is no limit."""
    left, right = window
    right = 0 if causal else right
    outputs = []
    for start, end in zip(borders.tolist(), borders.tolist()[1:], strict=False):
        q, k, v = (part[start:end].transpose(0, 1) for part in (query, key, value))
        k, v = (part.repeat_interleave(q.size(0) // part.size(0), 0) for part in (k, v))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)  # i - j
        reads = ((left < 0) | (distance <= left)) & ((right < 0) | (-distance <= right))
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~reads, -torch.inf)
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


def emulated_flash(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
    dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
):  # fmt: skip
    """flash_attn.flash_attn_varlen_func."""
    assert torch.equal(cu_seqlens_q, cu_seqlens_k) and cu_seqlens_q.dtype == torch.int32 and dropout_p == 0
    assert max_seqlen_q == max_seqlen_k == cu_seqlens_q.diff().max()
    return varlen(q, k, v, cu_seqlens_q, softmax_scale, causal, window_size)


def emulated_varlen(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k,
    *, return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False,
):  # fmt: skip
    """torch.nn.attention.varlen.varlen_attn of torch 2.13: causal is the window (-1, 0), and GQA wants its flag."""
    assert torch.equal(cu_seq_q, cu_seq_k) and cu_seq_q.dtype == torch.int32 and return_aux is None
    assert max_q == max_k == cu_seq_q.diff().max()
    assert enable_gqa or query.size(1) == key.size(1)
    return varlen(query, key, value, cu_seq_q, scale, window_size == (-1, 0), window_size)


def varlen_of_equal_heads(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    """The same before torch 2.12: no word on GQA."""
    return emulated_varlen(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size
    )  # fmt: skip


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The two kernels of CUDA, on stand-ins for the libraries."""
    flash, torch_varlen = ModuleType("flash_attn"), ModuleType("torch.nn.attention.varlen")
    flash.flash_attn_varlen_func, torch_varlen.varlen_attn = emulated_flash, emulated_varlen
    monkeypatch.setitem(sys.modules, "flash_attn", flash)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", torch_varlen)
    return {"flash": attention._flash, "varlen": attention._varlen}


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("window", [None, 1, 2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", ["flash", "varlen"])
def test_both_kernels_are_called_so_that_they_equal_the_groups(kernels, kernel, causal, window, heads) -> None:
    pack = packing([4, 1, 5, 4], causal)
    query, key, value = (part[0].transpose(0, 1).detach() for part in states(14, *heads))
    ours = kernels[kernel](query, key, value, pack, 0.0, 0.3, window)
    groups = attention._by_group(query, key, value, pack, 0.0, 0.3, window, None, None)
    torch.testing.assert_close(ours, groups, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_torch_s_kernel_without_gqa_gets_equal_heads(kernels, monkeypatch, heads) -> None:
    monkeypatch.setattr(sys.modules["torch.nn.attention.varlen"], "varlen_attn", varlen_of_equal_heads)
    pack = packing([4, 1, 5, 4], True)
    query, key, value = (part[0].transpose(0, 1).detach() for part in states(14, *heads))
    ours = kernels["varlen"](query, key, value, pack, 0.0, 0.3, 2)
    groups = attention._by_group(query, key, value, pack, 0.0, 0.3, 2, None, None)
    torch.testing.assert_close(ours, groups, atol=2e-6, rtol=2e-5)


def test_packed_attention_runs_the_kernel_also_where_only_some_tokens_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def kernel(query, key, value, packing, dropout, scaling, window):
        calls.append((dropout, scaling, window))
        return torch.full_like(query, 7.0)

    monkeypatch.setattr(attention, "_kernel", lambda *asked: kernel)
    inputs = states(5)
    out, _ = packed_attention(MODULE, *inputs, None, 0.1, 0.3, 2, packing=packing([2, 3], True))
    assert (out == 7).all() and out.shape == (1, 5, HEADS, WIDTH)
    packed_attention(MODULE, *inputs, None, 0.1, 0.3, 3, packing=packing([2, 3], True))
    assert calls == [(0.1, 0.3, 2), (0.1, 0.3, None)]  # a window as long as the longest text is none
    packed_attention(MODULE, *inputs, None, packing=packing([2, 3], True, [True] * 4 + [False]))
    assert len(calls) == 3


FLASH, VARLEN = attention._flash, attention._varlen


@pytest.mark.parametrize(
    ("device", "dtype", "dropout", "special", "installed", "expected"),
    [
        ("cuda", torch.bfloat16, False, False, {"flash_attn", "torch.nn.attention.varlen"}, FLASH),
        ("cuda", torch.float16, True, False, {"flash_attn", "torch.nn.attention.varlen"}, FLASH),
        ("cuda", torch.bfloat16, False, False, {"torch.nn.attention.varlen"}, VARLEN),
        ("cuda", torch.bfloat16, True, False, {"torch.nn.attention.varlen"}, None),  # torch's has no dropout
        ("cuda", torch.bfloat16, False, False, set(), None),
        ("cuda", torch.float32, False, False, {"flash_attn", "torch.nn.attention.varlen"}, None),
        ("cuda", torch.bfloat16, False, True, {"flash_attn", "torch.nn.attention.varlen"}, None),  # cap or sinks
        ("cpu", torch.bfloat16, False, False, {"flash_attn", "torch.nn.attention.varlen"}, None),
    ],
)
def test_the_kernel_fits_the_call(monkeypatch, device, dtype, dropout, special, installed, expected) -> None:
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: name if name in installed else None)
    assert attention._kernel.__wrapped__(device, dtype, dropout, special) is expected


def test_the_installed_torch_knows_the_kernel_as_we_call_it() -> None:
    import inspect

    varlen_attn = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    known = inspect.signature(varlen_attn).parameters
    assert {"scale", "window_size", "enable_gqa"} <= set(known)
    assert "(-1, 0) for causal" in re.sub(r"\s+", " ", varlen_attn.__doc__)
