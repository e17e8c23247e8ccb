"""Which weights of a decoder train, where it is neither an adapter nor all of them."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from llm2enc.errors import InputError
from llm2enc.model.hooks import decoder_layers
from llm2enc.recipe import LastLayers

Part = Literal["bias", "embeddings"] | LastLayers


def parameters_of(part: Part, decoder: nn.Module) -> list[nn.Parameter]:
    """The parameters of a part. InputError if the decoder does not have it, or holds it in 16 bits."""
    if isinstance(part, LastLayers):
        layers = [layer for _, layer in decoder_layers(decoder)]
        if part.layers > len(layers):
            raise InputError(f"`trainable: {{layers: {part.layers}}}`: this model has {len(layers)} layers")
        found = [p for layer in layers[-part.layers :] for p in layer.parameters()]
    elif part == "embeddings":
        found = list(decoder.get_input_embeddings().parameters())
    else:
        found = [p for name, p in decoder.named_parameters() if name.rpartition(".")[2] == "bias"]
        if not found:
            raise InputError(
                f"`trainable: bias`: this model has no biases: no product and no norm of {decoder.config.model_type} adds "
                "one; train a `lora`, or take a family that has them (Qwen2, GPT-2, OPT)"
            )
    check_float32(found, "`trainable: {layers: N}`" if isinstance(part, LastLayers) else f"`trainable: {part}`")
    return found


def check_float32(parameters: Iterable[nn.Parameter], what: str) -> None:
    """InputError if weights that are to train have 16 bits."""
    if any(parameter.dtype != torch.float32 for parameter in parameters):
        raise InputError(f"{what} needs `model.dtype: float32`: updates vanish in 16-bit weights")
