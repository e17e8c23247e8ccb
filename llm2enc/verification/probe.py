"""A text encoder watched from outside: one text as ids, with and without padding, and what moves when a token changes."""

from typing import Any

import torch
from torch import Tensor, nn

MOVED = 1e-4  # relative; a token that reads another moves by hundreds of times more when that one changes
TEXT = "The river runs through the old town, and the bridge over it was built of stone."
PADDING = 9  # tokens


class Probe:
    """One text as ids, and the model's states and vector of it under any padding."""

    def __init__(self, model: Any, ids: list[int]):
        self.model, self.ids = model, ids
        self.decoder: Any = model[0].auto_model
        tokenizer = model.tokenizer
        self.pad: int = tokenizer.pad_token_id or 0
        self.side: str = tokenizer.padding_side

    @staticmethod
    def of(model: Any) -> "Probe | None":
        """None for models without a transformer that reads token ids."""
        if not isinstance(getattr(model[0], "auto_model", None), nn.Module):
            return None
        read = getattr(model, "preprocess", None) or model.tokenize  # the name before release 5.4
        ids = read([TEXT])["input_ids"][0].tolist()[:24]
        probe = Probe(model, ids)
        return probe if probe.read(ids)[0].shape[:1] == (len(ids),) else None

    def read(self, ids: list[int], side: str = "") -> tuple[Tensor, Tensor]:
        """States (S, D) of the text's own tokens, and its vector (D,); `side` is where padding stands, if any does."""
        padding = [self.pad] * PADDING if side else []
        row = [*padding, *ids] if side == "left" else [*ids, *padding]
        start = len(padding) if side == "left" else 0
        mask = torch.zeros(1, len(row), dtype=torch.int64)
        mask[0, start : start + len(ids)] = 1
        device = next(self.decoder.parameters()).device
        features = {"input_ids": torch.tensor([row], device=device), "attention_mask": mask.to(device)}
        with torch.no_grad():
            found = self.model(features)
        return found["token_embeddings"][0, start : start + len(ids)].cpu(), found["sentence_embedding"][0].cpu()

    def ahead(self, side: str = "") -> float:
        """How far the state of the first token moves when the last one changes."""
        return float(moved(self.read(self.ids, side)[0], self.read(self._changed(), side)[0])[0])

    def behind(self) -> float:
        """How far the state of the last token moves when the first one changes."""
        other = [self.ids[-2], *self.ids[1:]]
        return float(moved(self.read(self.ids)[0], self.read(other)[0])[-1])

    def shift(self, side: str) -> tuple[float, float]:
        """How far padding on a side moves the states, and the vector."""
        plain, padded = self.read(self.ids), self.read(self.ids, side)
        return float(moved(plain[0], padded[0]).max()), float(moved(plain[1][None], padded[1][None])[0])

    def causal_layers(self) -> list[int] | None:
        """The layers whose output at earlier tokens does not depend on their input at the last one; None if the layers
        cannot be told apart."""
        layers = _stack(self.decoder)
        if layers is None:
            return None
        try:
            with _Holding(layers, None) as reference:
                self.read(self.ids)
            with _Holding(layers, reference) as held:
                self.read(self._changed())
        except (KeyError, IndexError):  # layers that are not given their states in the usual place
            return None
        if any(len(calls) != 1 for trace in (reference, held) for calls in trace.outputs):
            return None
        pairs = zip(reference.outputs, held.outputs, strict=True)
        movements = [float(moved(one[0], other[0])[:-1].max()) for (one,), (other,) in pairs]
        return [number for number, movement in enumerate(movements) if movement <= MOVED / 10]

    def _changed(self) -> list[int]:
        return [*self.ids[:-1], next(token for token in self.ids[1:] if token != self.ids[-1])]


def moved(before: Tensor, after: Tensor) -> Tensor:
    """(N,) length of the difference of rows over the length of the first."""
    return (after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)


def _stack(decoder: nn.Module) -> list[nn.Module] | None:
    """The stack of layers: the longest list of parts of one class that hold an attention."""
    stacks = [
        list(module)
        for module in decoder.modules()
        if isinstance(module, nn.ModuleList)
        and len({type(part) for part in module}) == 1
        and any("attn" in path.lower() or "attention" in path.lower() for path, _ in module[0].named_modules())
    ]
    return max(stacks, key=len, default=None)


class _Holding:
    """Notes what each layer is given and gives; with a reference, its inputs are held to that one's but for the last
    token, so that each layer answers for itself."""

    def __init__(self, layers: list[nn.Module], reference: "_Holding | None"):
        self.layers, self.reference = layers, reference
        self.inputs: list[Tensor] = []
        self.outputs: list[list[Tensor]] = [[] for _ in layers]

    def __enter__(self) -> "_Holding":
        self.handles = []
        for number, layer in enumerate(self.layers):
            self.handles.append(layer.register_forward_pre_hook(self._before(number), with_kwargs=True))
            self.handles.append(layer.register_forward_hook(self._after(number)))
        return self

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()

    def _before(self, number: int):
        def hook(layer: nn.Module, args: tuple, kwargs: dict[str, Any]):
            given = args[0] if args else kwargs["hidden_states"]
            if self.reference is None:
                self.inputs.append(given)
                return None
            held = torch.cat([self.reference.inputs[number][:, :-1], given[:, -1:]], dim=1)
            return ((held, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": held})

        return hook

    def _after(self, number: int):
        def hook(layer: nn.Module, args: tuple, output: Any) -> None:
            self.outputs[number].append(output[0] if isinstance(output, tuple) else output)

        return hook
