"""A projection as sentence-transformers' Dense module, which vLLM and text-embeddings-inference know the names of too."""

from pathlib import Path
from typing import Any

from llm2enc.artifact.files import write_json
from llm2enc.errors import InputError
from llm2enc.model import Projection, check_tensors
from llm2enc.recipe import HeadSpec

DENSE = "2_Dense"
WEIGHTS = "model.safetensors"
HEAD = f"{DENSE}/{WEIGHTS}"


def settings(inputs: int, head: HeadSpec) -> dict[str, Any]:
    """2_Dense/config.json of a head over vectors of width `inputs`."""
    return {
        "in_features": inputs,
        "out_features": head.dimensions,
        "bias": head.bias,
        "activation_function": "torch.nn.modules.linear.Identity",
    }


def write(head: Projection, folder: Path) -> None:
    """Write `folder`/2_Dense. Weights stay float32 whatever the backbone is stored in: they are few."""
    from safetensors.torch import save_file

    place = folder / DENSE
    place.mkdir()
    write_json(place / "config.json", settings(head.linear.in_features, head.spec))
    save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, place / WEIGHTS)


def read(folder: Path, inputs: int, spec: HeadSpec) -> Projection:
    """The projection from width `inputs` that `write` wrote. ValueError if its weights are not those of the spec."""
    from safetensors.torch import load_file

    path = folder / DENSE / WEIGHTS
    if not path.is_file():
        raise InputError(
            f"{folder} has a head, by its llm2enc.json, but no {DENSE}/{WEIGHTS}; copy the whole directory"
        )
    bias = {"linear.bias": (spec.dimensions,)} if spec.bias else {}
    own = {"linear.weight": (spec.dimensions, inputs), **bias}
    check_tensors(path, own, "the head that llm2enc.json describes", "write the directory again")
    projection = Projection(inputs, spec)
    projection.load_state_dict(load_file(path))
    return projection
