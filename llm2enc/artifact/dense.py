"""A projection as sentence-transformers' Dense module, which vLLM and text-embeddings-inference know the names of too."""

from pathlib import Path
from typing import Any

from llm2enc.artifact.files import write_json
from llm2enc.errors import InputError
from llm2enc.model import Projection
from llm2enc.recipe import HeadSpec

DENSE = "2_Dense"
WEIGHTS = "model.safetensors"
HEAD = f"{DENSE}/{WEIGHTS}"


def settings(inputs: int, head: dict[str, Any]) -> dict[str, Any]:
    """2_Dense/config.json of a head as llm2enc.json has it, over vectors of width `inputs`."""
    return {
        "in_features": inputs,
        "out_features": head["dimensions"],
        "bias": head["bias"],
        "activation_function": "torch.nn.modules.linear.Identity",
    }


def write(head: Projection, folder: Path) -> None:
    """Write `folder`/2_Dense. Weights stay float32 whatever the backbone is stored in: they are few."""
    from safetensors.torch import save_file

    place = folder / DENSE
    place.mkdir()
    write_json(place / "config.json", settings(head.linear.in_features, head.spec.model_dump()))
    save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, place / WEIGHTS)


def read(folder: Path, head: dict[str, Any]) -> Projection:
    """The projection that `write` wrote. ValueError if its weights are not of the shape that llm2enc.json says."""
    from safetensors.torch import load_file

    path, spec = folder / DENSE / WEIGHTS, HeadSpec.model_validate(head)
    if not path.is_file():
        raise InputError(
            f"{folder} has a head, by its llm2enc.json, but no {DENSE}/{WEIGHTS}; copy the whole directory"
        )
    state = load_file(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    inputs = shapes.get("linear.weight", (0, 0))[-1]
    expected = {"linear.weight": (spec.dimensions, inputs)} | ({"linear.bias": (spec.dimensions,)} if spec.bias else {})
    if shapes != expected:
        raise InputError(f"{path} holds {shapes}, llm2enc.json says {expected}; write the directory again")
    projection = Projection(inputs, spec)
    projection.load_state_dict(state)
    return projection
