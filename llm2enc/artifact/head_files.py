"""A head as a module of sentence-transformers in a folder of its own: its own Dense, whose names vLLM and
text-embeddings-inference know too, or one whose code the directory brings."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm2enc.artifact.files import write_json
from llm2enc.errors import InputError
from llm2enc.model import Head, check_tensors, head_outline
from llm2enc.recipe import HeadSpec, LatentAttentionSpec, MlpSpec
from llm2enc.storage import replace_text

WEIGHTS = "model.safetensors"
CODE = "latent_attention.py"
"""The file of a directory that sentence-transformers runs, where a head needs one."""


def place(head: HeadSpec) -> str:
    """The folder of a head."""
    return f"2_{module(head).rpartition('.')[2]}"


def module(head: HeadSpec) -> str:
    """The class of modules.json."""
    if isinstance(head, LatentAttentionSpec):
        return "latent_attention.LatentAttention"
    return "sentence_transformers.models.Dense"


def source() -> str:
    """What is written to CODE."""
    found = find_spec("llm2enc.model.latent_attention")
    assert found is not None and found.origin is not None
    return Path(found.origin).read_text(encoding="utf-8")


def settings(inputs: int, head: HeadSpec) -> dict[str, Any]:
    """config.json of a head of a model of width `inputs`."""
    if isinstance(head, LatentAttentionSpec):
        return {"width": inputs, "latents": head.latents, "heads": head.heads}
    square = isinstance(head, MlpSpec)
    return {
        "in_features": inputs,
        "out_features": inputs if square else head.dimensions,
        "bias": square or head.bias,
        "activation_function": f"torch.nn.modules.{'activation.Tanh' if square else 'linear.Identity'}",
    }


def write(head: Head, inputs: int, folder: Path) -> None:
    """Write the head's folder into `folder`, and its code. Weights stay float32 whatever the backbone is stored in."""
    from safetensors.torch import save_file

    own = folder / place(head.spec)
    own.mkdir()
    write_json(own / "config.json", settings(inputs, head.spec))
    save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, own / WEIGHTS)
    if isinstance(head.spec, LatentAttentionSpec):
        replace_text(folder / CODE, source())


def read(folder: Path, inputs: int, spec: HeadSpec) -> Head:
    """The head of a model of width `inputs` that `write` wrote. ValueError if its weights are not those of the spec."""
    from safetensors.torch import load_file

    path = folder / place(spec) / WEIGHTS
    if not path.is_file():
        raise InputError(
            f"{folder} has a head, by its llm2enc.json, but no {place(spec)}/{WEIGHTS}; copy the whole directory"
        )
    head = head_outline(inputs, spec)
    own = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    check_tensors(path, own, "the head that llm2enc.json describes", "write the directory again")
    head.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()}, assign=True)
    return head
