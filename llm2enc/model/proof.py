"""The conversion proof: what a loaded model's attention does, measured on the model itself before anything is built on it.

One packed row of three texts is enough. In `hold` runs every mixing part of every layer (attention, and whatever else a
layer's children are) gets exactly the inputs of the reference run, except at one token of the first text:

    text      a a a a a a a  b b b b b  c c c c c c c
    ahead     . . . . . . x  . . . . .  . . . . . . .      did the outputs at earlier tokens of a move?
    behind    x . . . . . .  . . . . .  . . . . . . .      did the outputs at later tokens of a move?

A part that reads behind but not ahead is causal. Because the inputs are held, each part answers for itself: one
bidirectional layer cannot hide the causal ones around it, which an end-to-end test would allow. Nothing but `a` may move:
that is the isolation of packed texts. Last, the packed states must equal those of each text alone in the family's own
eager attention.

What no measurement on a few tokens can see is refused by name first: ALiBi, whose bias forgets the query's position,
and convolutions or recurrences inside an attention module.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from llm2enc.errors import CannotConvert
from llm2enc.model.attention import NAME
from llm2enc.model.backbone import Backbone, evaluating
from llm2enc.model.families import ALIBI, causal_by_config, config_notes, unsupported_reason
from llm2enc.model.hooks import decoder_layers
from llm2enc.model.proof_record import Proof
from llm2enc.text import Tokens

LENGTHS = (7, 5, 7)  # two texts of one length share a call of the kernel, so a leak between those is seen too
PROVEN_WITH = ("llm2enc", "torch", "transformers", "tokenizers")  # whose other release may read otherwise
TOTAL = sum(LENGTHS)  # no model has a width of 19, so a dimension of 19 is the row of tokens
FIRST = LENGTHS[0]

# The largest relative difference that rounding explains. 16-bit types round at every layer, and one routed token more
# or less in a mixture of experts adds to it; a leak or a wrong mask gives 0.3 to 2.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 5e-2, torch.bfloat16: 1e-1}
# A mixer's output at the next token depends on this one by far more than this; a mixture of experts only by rounding.
CLEARLY = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}

# Class names of mixers that run in one direction. Checked besides the measurement because in a few families they sit
# inside the attention module, where the attention's own bidirectionalness covers them.
CAUSAL_MIXERS = re.compile(
    r"mamba|ssm_|state_space|recurrent_?block|rglru|lightning_attention|linear_attention|linear_attn|delta_(net|attention|rule)"
    r"|short_conv|conv_mixer|rwkv|[msx]_?lstm|retention|hyena|cca"
)
PER_TOKEN = re.compile(r"norm|mlp|rotary|embedding|cache|expert|feed_forward")


def prove(backbone: Backbone) -> Proof:
    """The proof that the backbone reads in its direction in every layer and keeps texts apart; a handful of forwards.

    The backbone carries it from then on (`proven`).

    raises  CannotConvert, with the layer's path and class
    """
    if backbone.bidirectional:
        _static(backbone)
    with evaluating(backbone):
        try:
            backbone.proof = _measure(backbone)
            return backbone.proof
        except (CannotConvert, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a stranger's forward may raise anything; whatever it is, the model cannot be read
            raise _refused(backbone, f"does not run on packed rows ({type(error).__name__}: {error})") from error


def proven(backbone: Backbone) -> Proof:
    """The proof of these very weights: the one that the backbone carries, or a new one where they have changed since."""
    known = backbone.proof
    return known if known is not None and known.fingerprint == backbone.fingerprint() else prove(backbone)


def spot_check(backbone: Backbone, text: Tokens) -> Tensor:
    """States (T, D) of one text, read beside itself and beside itself with another last token, in a single forward.

    raises  CannotConvert unless the last token moves earlier states in a bidirectional model, and none in a causal one
    """
    ids = text.ids.tolist()
    other = [*ids[:-1], next((token for token in reversed(ids) if token != ids[-1]), abs(ids[-1] - 1))]
    with evaluating(backbone):
        states = backbone.hidden(_tokens([ids, ids, other], backbone.device)).view(3, len(ids), -1)
    noise, moved = (_change(states[0], row)[:-1] for row in states[1:])
    if len(ids) > 1:
        _check_direction(backbone, float(moved.max()), 4 * float(noise.max()))
    return states[0]


def installed(*packages: str) -> dict[str, str]:
    """Release of each package; `unknown` of one that was never installed, such as a source tree."""
    found = dict.fromkeys(packages, "unknown")
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


# -------------------------------------------------------------------------------------------------------------- static


def causal_modules(model: nn.Module) -> list[str]:
    """`path (class)` of every module inside a decoder layer that runs in one direction by its kind."""
    found = []
    for path, layer in decoder_layers(model):
        # A layer's own name says what it is made of; the mixer inside says where. A bare convolution has its parent's.
        inside = list(layer.named_modules(prefix=path))[1:]
        named = [entry for entry in inside if _causal_by_name(entry[1])]
        convolutions = [name.rpartition(".")[0] for name, module in inside if _convolution(module)]
        parents = [(name, model.get_submodule(name)) for name in dict.fromkeys(convolutions)]
        found += (named or parents)[:1] if named or parents else []
    return [_label(name, module) for name, module in found]


def _causal_by_name(module: nn.Module) -> bool:
    name = _snake(type(module).__name__)
    return bool(CAUSAL_MIXERS.search(name)) and not PER_TOKEN.search(name)


def mixers(layer: nn.Module) -> list[str]:
    """Class names of the parts of a layer that mix tokens: attention, and what stands beside or in place of it."""
    parts = [part for _, part in _parts("", layer)]
    mixing = re.compile(r"attention|attn|mixer|_mla$")
    wanted = [part for part in parts if mixing.search(_snake(type(part).__name__)) or _causal_by_name(part)]
    return list(dict.fromkeys(type(part).__name__ for part in wanted))


def _static(backbone: Backbone) -> None:
    reason = causal_by_config(backbone.config)
    modules = causal_modules(backbone.decoder)
    if modules:
        more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
        reason = f"causal mixer {modules[0]}{more}"
    elif not reason and _alibi(backbone.decoder):
        reason = f"{type(backbone.decoder).__name__}: {ALIBI}"
    if reason:
        raise CannotConvert(unsupported_reason(backbone.config.model_type, reason))


def _alibi(decoder: nn.Module) -> bool:
    return any("build" in name and "alibi" in name for name in dir(type(decoder)))


def _convolution(module: nn.Module) -> bool:
    # transformers' Conv1D (GPT-2) is a linear layer; torch's runs over the tokens, or over a kernel of one.
    return isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1


def _snake(name: str) -> str:
    """`Qwen3NextGatedDeltaNet` as `qwen3_next_gated_delta_net`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _label(path: str, module: nn.Module) -> str:
    return f"{path} ({type(module).__name__})"


# ------------------------------------------------------------------------------------------------------------- dynamic


def _measure(backbone: Backbone) -> Proof:
    layers = decoder_layers(backbone.decoder)
    dtype = next(backbone.decoder.parameters()).dtype
    ids = _ids(backbone, 0)
    plain = backbone.hidden(_tokens(ids, backbone.device))
    if backbone.route != "alone":  # which keeps texts apart by construction, and causal by the family's own code
        _check_parts(backbone, dict(part for path, layer in layers for part in _parts(path, layer)), ids, dtype)
    leak = _leak(backbone, ids, plain)
    largest, typical = _difference(backbone, ids, plain)
    _check_ends(backbone, ids, plain)
    if leak > TOLERANCE[dtype]:
        raise _refused(backbone, f"lets a text of a pack move by {leak:.2g} when the others change")
    if not (largest if dtype in (torch.float32, torch.float64) else typical) <= TOLERANCE[dtype]:
        raise _refused(backbone, f"gives states that differ by {largest:.2g} between a pack and the same text alone")
    return Proof(
        len(layers), leak, largest, backbone.route, tuple(config_notes(backbone.config)), backbone.fingerprint(),
        installed(*PROVEN_WITH),
    )  # fmt: skip


def _check_parts(backbone: Backbone, parts: dict[str, nn.Module], ids: list[list[int]], dtype: torch.dtype) -> None:
    """CannotConvert if a part of a layer is causal (or bidirectional in a causal model), or joins texts."""
    with _watching(parts) as reference:
        backbone.hidden(_tokens(ids, backbone.device))
    with _watching(parts, reference, free=FIRST - 1) as ahead:
        backbone.hidden(_tokens(_changed(backbone, ids, FIRST - 1), backbone.device))
    with _watching(parts, reference, free=0) as behind:
        backbone.hidden(_tokens(_changed(backbone, ids, 0), backbone.device))
    target = FIRST - 1 - _reach(backbone)
    for path in parts:
        for before, last, first in zip(reference[path], ahead[path], behind[path], strict=True):
            forward, backward = _movement(before, last), _movement(before, first)
            noise = float(torch.cat([forward[FIRST:], backward[FIRST:]]).max())
            if noise > TOLERANCE[dtype]:
                raise _refused(backbone, "lets the texts of a pack reach each other", path)
            # Of all the tokens in reach: a sharp head leaves some of them unmoved, to the last bit.
            sees_ahead = float(forward[target : FIRST - 1].max()) > 4 * noise
            sees_behind = float(backward[1:FIRST].max()) > max(CLEARLY[dtype], 4 * noise)
            if backbone.bidirectional and sees_behind and not sees_ahead:
                raise _refused(backbone, "stays causal: a later token never reaches an earlier one", path)
            if not backbone.bidirectional and float(forward[: FIRST - 1].max()) > max(CLEARLY[dtype], 4 * noise):
                raise _refused(backbone, "looks ahead, although the model is to stay causal", path)


def _parts(path: str, layer: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children of a layer that may mix tokens, by path; lists count by their elements, a childless layer as itself."""
    children = {}
    for name, child in layer.named_children():
        if isinstance(child, nn.ModuleList):
            children.update({f"{path}.{name}.{index}": element for index, element in enumerate(child)})
        elif not isinstance(child, nn.Linear | nn.Dropout | nn.Embedding):
            children[f"{path}.{name}"] = child
    return list(children.items()) or [(path, layer)]


Trace = dict[str, list[dict[str, list[Tensor]]]]  # part -> its calls -> inputs and outputs along the row


@contextmanager
def _watching(parts: dict[str, nn.Module], reference: Trace | None = None, free: int = 0) -> Iterator[Trace]:
    """Traces of the parts while active. With a reference, their inputs are held to it at every token but `free`."""
    trace: Trace = {path: [] for path in parts}
    handles = []
    for path, part in parts.items():
        handles.append(part.register_forward_pre_hook(_hold(path, trace, reference, free), with_kwargs=True))
        handles.append(part.register_forward_hook(_note(path, trace)))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def _hold(path: str, trace: Trace, reference: Trace | None, free: int):
    def hook(part: nn.Module, args: tuple, kwargs: dict[str, Any]):
        inputs: list[Tensor] = []

        def held(value: Any) -> Any:
            if not _is_row(value):
                return value
            if reference is not None:
                known = reference[path][len(trace[path])]["inputs"][len(inputs)]
                here = torch.zeros(TOTAL, dtype=torch.bool, device=value.device).index_fill_(
                    0, torch.tensor(free, device=value.device), True
                )
                shape = [TOTAL if size == TOTAL else 1 for size in value.shape]
                value = torch.where(here.view(shape), value, known)
            inputs.append(value)
            return value

        args = tuple(held(value) for value in args)
        kwargs = {name: held(value) for name, value in kwargs.items()}
        trace[path].append({"inputs": inputs, "outputs": []})
        return args, kwargs

    return hook


def _note(path: str, trace: Trace):
    def hook(part: nn.Module, args: tuple, output: Any) -> None:
        outputs = output if isinstance(output, tuple | list) else [output]
        trace[path][-1]["outputs"] = [value.detach() for value in outputs if _is_row(value)]

    return hook


def _is_row(value: Any) -> bool:
    """Whether this is a tensor of states with exactly one dimension along the tokens of the row."""
    return isinstance(value, Tensor) and value.is_floating_point() and sum(size == TOTAL for size in value.shape) == 1


def _movement(before: dict[str, list[Tensor]], after: dict[str, list[Tensor]]) -> Tensor:
    """(T,) the largest relative change of a part's outputs at each token."""
    moved = [_relative(x, y) for x, y in zip(before["outputs"], after["outputs"], strict=True)]
    return torch.stack(moved).amax(0) if moved else torch.zeros(TOTAL)


def _relative(before: Tensor, after: Tensor) -> Tensor:
    """(T,) length of the difference of two states over the length of the first, at each token."""
    dimension = list(before.shape).index(TOTAL)
    return _change(*(states.movedim(dimension, 0).flatten(1) for states in (before, after)))


def _change(before: Tensor, after: Tensor) -> Tensor:
    """(T,) of states (T, D): length of the difference over the length before."""
    before, after = before.double().cpu(), after.double().cpu()
    return (after - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-12)


def _leak(backbone: Backbone, ids: list[list[int]], plain: Tensor) -> float:
    """How much the middle text moves when both of its neighbours are other texts."""
    other = _ids(backbone, 1)
    moved = backbone.hidden(_tokens([other[0], ids[1], other[2]], backbone.device))
    return float(_relative(plain, moved)[FIRST : FIRST + LENGTHS[1]].max())


def _check_ends(backbone: Backbone, ids: list[list[int]], plain: Tensor) -> None:
    """CannotConvert unless the whole model reads in its direction: the last token changes, the first state is seen."""
    moved = backbone.hidden(_tokens(_changed(backbone, ids, FIRST - 1), backbone.device))
    change = _relative(plain, moved)
    reach = FIRST - 1 - _reach(backbone) if backbone.bidirectional else 0
    _check_direction(backbone, float(change[reach : FIRST - 1].max()), 4 * float(change[FIRST:].max()))


def _check_direction(backbone: Backbone, moved: float, noise: float) -> None:
    """CannotConvert unless `moved`, by which earlier states change with the last token, fits the model's direction."""
    if backbone.bidirectional and not moved > noise:
        raise _refused(backbone, "leaves the earlier states unmoved when the last token changes")
    dtype = next(backbone.decoder.parameters()).dtype
    if not backbone.bidirectional and moved > max(noise, TOLERANCE[dtype]):
        raise _refused(backbone, "moves the first states when the last token changes, although it is to stay causal")


def _difference(backbone: Backbone, ids: list[list[int]], plain: Tensor) -> tuple[float, float]:
    """Largest and median relative difference of a token's state to that of the same text alone.

    In 16 bits the median is what counts: rounding may send single tokens to another expert.
    """
    with _own_attention(backbone):
        alone = torch.cat([_alone(backbone, text) for text in ids])
    difference = _relative(plain, alone)
    return float(difference.max()), float(difference.median())


@contextmanager
def _own_attention(backbone: Backbone) -> Iterator[None]:
    """The family's own attention while active: eager, or sdpa where eager cannot do without a mask."""
    if backbone.route != "packed":
        yield
        return
    try:
        backbone.model.set_attn_implementation("eager")
        try:
            _alone(backbone, [1, 1])
        except (TypeError, AttributeError):
            backbone.model.set_attn_implementation("sdpa")
        yield
    finally:
        backbone.model.set_attn_implementation(NAME)


def _alone(backbone: Backbone, text: list[int]) -> Tensor:
    row = torch.tensor([text], device=backbone.device)
    return backbone.decoder(input_ids=row, use_cache=False).last_hidden_state[0]


def _refused(backbone: Backbone, what: str, path: str = "") -> CannotConvert:
    """The error that says `what` of a part of the decoder, or of the decoder itself."""
    part = backbone.decoder.get_submodule(path)
    model_type = backbone.config.model_type
    reason = f"{_label(path, part) if path else type(part).__name__} {what}"
    return CannotConvert(
        unsupported_reason(model_type, reason) if backbone.bidirectional else f"{model_type} fails: {reason}"
    )


# --------------------------------------------------------------------------------------------------------------- input


def _ids(backbone: Backbone, seed: int) -> list[list[int]]:
    """Random ids of the three texts, none of them special."""
    vocabulary = backbone.decoder.get_input_embeddings().num_embeddings
    special = {
        token
        for name in ("pad_token_id", "bos_token_id", "eos_token_id")
        for token in torch.tensor(getattr(backbone.config, name, None) or 0).flatten().tolist()
    }
    generator = torch.Generator().manual_seed(seed)
    ordinary = [token for token in torch.randperm(min(vocabulary, 1000), generator=generator).tolist()]
    ordinary = [token for token in ordinary if token not in special] * TOTAL
    texts, start = [], 0
    for length in LENGTHS:
        texts.append(ordinary[start : start + length])
        start += length
    return texts


def _changed(backbone: Backbone, ids: list[list[int]], place: int) -> list[list[int]]:
    """The texts with another token at `place` of the first one."""
    return [[*ids[0][:place], _ids(backbone, 1)[0][place], *ids[0][place + 1 :]], *ids[1:]]


def _tokens(ids: list[list[int]], device: torch.device) -> Tokens:
    return Tokens.from_lists(ids, [[True] * len(text) for text in ids], [False] * len(ids)).to(device)


def _reach(backbone: Backbone) -> int:
    """How far ahead every layer must see, in tokens: the whole text, or half of a window smaller than that."""
    names = ("sliding_window", "sliding_window_size", "attention_window_size", "window_size", "local_attention")
    windows = [getattr(backbone.config, name, None) for name in names]
    return max(1, min([FIRST - 1, *(window // 2 for window in windows if isinstance(window, int) and window > 0)]))
