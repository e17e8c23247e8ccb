"""The OpenVINO format of a directory: openvino/openvino_model.xml and .bin, or openvino_model_fp16 for float16 weights.

Inputs and outputs are those of `graph`; the model is converted from the PyTorch module itself, so that nothing but the
package openvino is needed. sentence-transformers 6.2 looks for openvino/openvino_model.xml with backend="openvino";
`file_name` chooses another.

Ask for float32 arithmetic when you open it:

    openvino.Core().compile_model("openvino/openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    SentenceTransformer(DIR, backend="openvino", model_kwargs={"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}})

Without the hint OpenVINO computes in bfloat16 or float16 on processors that can, whatever the weights are stored in:
6e-2 of a vector's entry was seen on such a CPU. A model cannot carry the hint: of the `runtime_options` that a model may
have, the CPU plugin of 2026.4 was seen to take the precision of caches, but not the number of threads, and what it does
with this hint shows only on such a processor. In the float16 model, matrices alone are stored in float16.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm2enc.artifact import Metadata
from llm2enc.encoding import Encoder
from llm2enc.errors import CannotExport
from llm2enc.export import graph
from llm2enc.export.graph import INPUTS, OUTPUTS, Agreement, Run

if TYPE_CHECKING:
    from openvino import Model


SUMMARY = "OpenVINO model for Intel processors, and sentence-transformers with backend='openvino'"
FILES = {"float32": "openvino_model.xml", "float16": "openvino_model_fp16.xml"}
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def unsupported_reason(encoder: Encoder, metadata: Metadata) -> str:
    """Why this encoder cannot have the format; empty if it can."""
    return graph.unsupported_reason(encoder, metadata)


def write(encoder: Encoder, folder: Path, metadata: Metadata, *, dtypes: tuple[str, ...] = ("float32",)) -> list[Path]:
    """Write the models into `folder`/openvino and return their files.

    encoder  the encoder of `folder`
    dtypes   float32, float16: what the weights are stored in, one model each; arithmetic is what the caller asks for
    raises   CannotExport if the encoder cannot have this format, the family cannot be traced, or a model gives other vectors
             than the encoder; ValueError for a missing package
    """
    graph.check_request(encoder, metadata, dtypes, ("openvino",), "openvino")
    import openvino

    wanted = graph.expected(encoder, folder, metadata)
    model = _convert(folder, metadata)
    with graph.into(folder / "openvino") as partial:
        for dtype in sorted(dtypes, reverse=True):  # float32 first: halving is for good
            if dtype == "float16":
                halve(model)
            openvino.save_model(model, partial / FILES[dtype], compress_to_fp16=False)
            agreement(partial / FILES[dtype], wanted, dtype)
        names = sorted(path.name for path in partial.iterdir())
    return [folder / "openvino" / name for name in names]


def agreement(path: Path, wanted: graph.Expected, dtype: str) -> Agreement:
    """How near the vectors of a model are to the encoder's. CannotExport if too far."""
    return graph.check(runner(path), wanted, dtype, f"openvino/{path.name}")


def runner(path: Path) -> Run:
    """The model in OpenVINO, on the CPU, in float32."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", EXACT)

    def run(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        result = compiled(dict(zip(INPUTS, (ids, mask), strict=True)))
        hidden, vectors = (result[name].copy() for name in OUTPUTS)  # the next call writes into the same memory
        return hidden, vectors

    return run


def halve(model: "Model") -> None:
    """Store the matrices of a float32 model in float16, in place.

    openvino's own compression takes every constant, rotary frequencies included, which turns positions by up to 5e-4 of
    their angle: states of a Llama moved 20 times further than by halved matrices alone.

    raises  CannotExport for a weight beyond float16's 65504
    """
    import openvino
    from openvino import opset13

    for constant in model.get_ops():
        shape = list(constant.get_output_shape(0)) if constant.get_type_name() == "Constant" else []
        if len(shape) < 2 or min(shape[-2:]) < 2 or constant.get_element_type() != openvino.Type.f32:
            continue
        stored = opset13.constant(graph.half(constant.data, constant.get_friendly_name()))
        single = opset13.convert(stored, "f32").output(0)
        for place in constant.output(0).get_target_inputs():
            place.replace_source_output(single)
    model.validate_nodes_and_infer_types()


def _convert(folder: Path, metadata: Metadata) -> "Model":
    """The model in memory, in float32."""
    import openvino
    import torch

    module = graph.open_graph(folder, metadata)
    dynamic = openvino.PartialShape([-1, -1])
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of branches of a trace: whether it holds for other inputs is measured
            model = openvino.convert_model(
                module,
                input=[(name, dynamic, openvino.Type.i64) for name in INPUTS],
                example_input=dict(zip(INPUTS, graph.example(module), strict=True)),
            )
    except Exception as error:  # whatever a family's code does that cannot be traced
        raise CannotExport(
            f"openvino cannot convert a {metadata.model_type} ({type(error).__name__}: {str(error)[:300]}); serve the "
            "directory with sentence-transformers or llm2enc instead"
        ) from error
    for port, name in zip((*model.inputs, *model.outputs), (*INPUTS, *OUTPUTS), strict=True):
        port.get_tensor().set_names({name})
    said = {"fingerprint": metadata.fingerprint, "pooling": metadata.pooling, "normalize": str(metadata.normalize)}
    for key, value in said.items():
        model.set_rt_info(value, ["llm2enc", key])
    return model
