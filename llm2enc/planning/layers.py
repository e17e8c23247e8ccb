"""A decoder with fewer layers: what a deep model takes follows from two or three layers of each kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from llm2enc.model import decoder_layers


class Layers:
    """The layers of a decoder by kind.

    first     numbers of the layers that always run: two of each kind, and the last one, which may skip tokens
    repeated  for each kind with more layers: the number of the third, of the second, and how many there are from it on
    """

    def __init__(self, decoder: nn.Module):
        self.decoder: Any = decoder
        found = decoder_layers(decoder)
        self.count = len(found)
        owner, _, self.name = found[0][0].rpartition(".")[0].rpartition(".")
        self.owner = decoder.get_submodule(owner)
        self.types = getattr(decoder.config, "layer_types", None)
        members: dict[tuple, list[int]] = {}
        for number, (_, layer) in enumerate(found[:-1]):
            # Layers in front of those that train take part in no backward pass.
            shapes = tuple((name, tuple(p.shape), p.requires_grad) for name, p in layer.named_parameters())
            kind = type(layer), self.types[number] if self.types else None, shapes
            members.setdefault(kind, []).append(number)
        # Kind by kind, not mixed as in the model: what a further layer adds is then that layer's, and no other's.
        self.order = [number for group in members.values() for number in group] + [self.count - 1]
        self.first = [*(number for group in members.values() for number in group[:2]), self.count - 1]
        self.repeated = [(group[2], group[1], len(group) - 2) for group in members.values() if len(group) > 2]
        in_a_list = isinstance(getattr(self.owner, self.name, None), nn.ModuleList)
        if not in_a_list or not isinstance(getattr(decoder.config, "num_hidden_layers", None), int):
            self.repeated = []  # it cannot be made shorter

    @contextmanager
    def only(self, numbers: list[int]) -> Iterator[None]:
        """Inside, the decoder has these layers."""
        config, all_layers = self.decoder.config, getattr(self.owner, self.name)
        setattr(self.owner, self.name, nn.ModuleList(all_layers[number] for number in numbers))
        config.num_hidden_layers = len(numbers)
        if self.types:
            config.layer_types = [self.types[number] for number in numbers]
        try:
            yield
        finally:
            setattr(self.owner, self.name, all_layers)
            config.num_hidden_layers = self.count
            if self.types:
                config.layer_types = self.types
