"""What is done to a model's layers from outside, by hooks: skip tokens nobody reads, compute 16-bit weights in float32,
look at what each layer hands on.

Model files stay as they are; a hook on a part of a layer changes what goes in and what comes out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class LastLayerPruning:
    """Lets the last decoder layer skip tokens whose states nobody reads.

    Keys and values are needed of every token, queries only of some: after the query projection everything in the last
    layer is per token. Hooks narrow the inputs of its per-token parts and widen their outputs with zeros again. The
    list of tokens travels by keyword to the layer's attention, whose hook notes it for the parts: a checkpointed layer
    is computed again without its own hooks, but with those of its parts and the keywords it had.
    """

    # In layers of the common shape. A part that is not there is simply not narrowed, which costs time, not exactness.
    # Each of them runs inside or after the attention, in every family of transformers.
    PARTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp")

    def __init__(self, decoder: nn.Module):
        self.rows: Tensor | None = None
        layers = getattr(decoder, "layers", None)
        if not isinstance(layers, nn.ModuleList) or not len(layers):
            return
        if isinstance(getattr(layers[-1], "self_attn", None), nn.ModuleList):
            return  # LongCat attends twice in a layer: the second time needs every state of the first
        layers[-1].register_forward_pre_hook(self._enter, with_kwargs=True)
        attention_part = _find(layers[-1], "self_attn")
        if attention_part is None:
            return
        attention_part.register_forward_pre_hook(self._note, with_kwargs=True)
        for name in self.PARTS:
            part = _find(layers[-1], name)
            if part is not None:
                part.register_forward_pre_hook(self._narrow)
                part.register_forward_hook(self._widen)

    def _enter(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]):
        packing = kwargs.get("last_packing")
        self.rows = None
        return None if packing is None else (args, {**kwargs, "packing": packing})

    def _note(self, part: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        packing = kwargs.get("packing")
        wanted = None if packing is None else packing.queries
        self.rows = None if wanted is None else wanted.nonzero()[:, 0].to(packing.device)

    def _narrow(self, part: nn.Module, args: tuple):
        if self.rows is None:
            return None
        self._total = args[0].size(1)
        return (args[0][:, self.rows], *args[1:])

    def _widen(self, part: nn.Module, args: tuple, output: Any):
        if self.rows is None:
            return None
        if isinstance(output, tuple):  # a mixture of experts may return its router's scores too
            return self._widen(part, args, output[0]), *output[1:]
        wide = output.new_zeros(1, self._total, output.size(-1))
        return wide.index_copy(1, self.rows, output)


class LayerStates:
    """What each decoder layer is given and hands on, while active.

    with LayerStates(decoder) as states:
        decoder(...)
    states.found        [(1, T, D)]: the first layer's input, then each layer's output
    states.ending(...)  what runs behind the last layer: the final norm
    """

    def __init__(self, decoder: nn.Module):
        found = decoder_layers(decoder)
        self.layers = [layer for _, layer in found]
        around = {"", *(path[:end] for path, _ in found for end, letter in enumerate(path) if letter == ".")}
        self.beside = [
            module
            for path, module in decoder.named_modules()
            if path.rpartition(".")[0] in around and path not in around and module not in self.layers
        ]
        self.found: list[Tensor] = []
        self._after: list[tuple[nn.Module, Tensor, Any]] = []

    def ending(self, final: Tensor) -> list[nn.Module] | None:
        """The modules that made `final` of the last layer's output, one after the other; None if something else did, too."""
        state: Any = self.found[-1]
        for _, given, made in self._after:
            if not _is_one(state, given):
                return None
            state = made
        return [module for module, *_ in self._after] if _is_one(state, final) else None

    def __enter__(self) -> "LayerStates":
        first = self.layers[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        self._handles = [first, *(layer.register_forward_hook(self._leave) for layer in self.layers)]
        self._handles += [module.register_forward_hook(self._pass) for module in self.beside]
        return self

    def __exit__(self, *error) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.found.append(args[0] if args else kwargs["hidden_states"])

    def _leave(self, layer: nn.Module, args: tuple, output: Any) -> None:
        self.found.append(output[0] if isinstance(output, tuple) else output)

    def _pass(self, module: nn.Module, args: tuple, output: Any) -> None:
        if len(self.found) > len(self.layers) and args:
            self._after.append((module, args[0], output))


def _is_one(tensor: Any, other: Tensor) -> bool:
    """Whether two tensors are one in memory, whatever their shapes; it reads no value, so that a planner can ask too."""
    return torch.is_tensor(tensor) and tensor.untyped_storage()._cdata == other.untyped_storage()._cdata


class Float32Arithmetic:
    """Lets a model whose weights are stored in 16 bits compute in float32, on processors that would emulate 16 bits.

    The weights of one layer at a time are widened while it runs, so memory grows by one layer. The result is the float32
    computation with the stored weights: faster than the emulated products (ten times, measured on AVX2) and exacter.
    """

    def __init__(self, decoder: nn.Module):
        self.on = False
        self._stored: dict[nn.Module, list[tuple[nn.Parameter, Tensor]]] = {}
        for part in _parts(decoder):
            if isinstance(part, nn.Embedding):  # a table is looked up, not multiplied: its rows are widened afterwards
                part.register_forward_hook(self._widen_output)
            else:
                part.register_forward_pre_hook(self._widen_weights)
                part.register_forward_hook(self._restore_weights, always_call=True)

    @contextmanager
    def active(self, on: bool) -> Iterator[None]:
        """In force inside, if `on`. Without gradients only: a graph would keep weights that are gone."""
        self.on = on
        try:
            yield
        finally:
            self.on = False

    def _widen_output(self, part: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        return output.float() if self.on and torch.is_tensor(output) else None

    def _widen_weights(self, part: nn.Module, args: tuple) -> None:
        if self.on:
            narrow = [p for p in part.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
            self._stored[part] = [(parameter, parameter.data) for parameter in narrow]
            for parameter in narrow:
                parameter.data = parameter.data.float()

    def _restore_weights(self, part: nn.Module, args: tuple, output: Any) -> None:
        for parameter, stored in self._stored.pop(part, ()):
            parameter.data = stored


def emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrix products of this type run without instructions of the processor for it."""
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return False
    supported = torch.ops.mkldnn
    check = supported._is_mkldnn_bf16_supported if dtype == torch.bfloat16 else supported._is_mkldnn_fp16_supported
    return not check()


def _parts(decoder: nn.Module) -> Iterator[nn.Module]:
    """The modules a decoder calls one after the other: embeddings, each layer, norms."""
    for child in decoder.children():
        yield from child if isinstance(child, nn.ModuleList) else (child,)


def _find(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def decoder_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path and module of the layers of a decoder: transformers' checkpointed layers, else the longest list of modules."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = _outermost(model, lambda module: isinstance(module, GradientCheckpointingLayer))
    if layers:
        return layers
    lists = _outermost(model, lambda module: isinstance(module, nn.ModuleList))
    path, longest = max(lists, key=lambda entry: len(entry[1]), default=("", nn.ModuleList()))
    return [(f"{path}.{index}", layer) for index, layer in enumerate(longest)]


def _outermost(module: nn.Module, wanted: Callable[[nn.Module], bool], path: str = "") -> list[tuple[str, nn.Module]]:
    """Modules that satisfy `wanted` and lie in no other such module, in order."""
    found = []
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        found += [(child_path, child)] if wanted(child) else _outermost(child, wanted, child_path)
    return found
