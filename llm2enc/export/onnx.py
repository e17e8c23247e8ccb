"""The ONNX format of a directory: onnx/model.onnx in float32, onnx/model_fp16.onnx with weights in float16.

Inputs and outputs are those of `graph`. Names and types are what these programs ask for (read in their sources):

    sentence-transformers 6.2   backend="onnx" looks for onnx/model.onnx; `file_name` chooses another; weights beside it
                                must be called model.onnx_data. Through optimum's ORTModelForFeatureExtraction it reads
                                last_hidden_state and pools by itself
    text-embeddings-inference   backends/ort at commit 04a0215: model.onnx, then onnx/model.onnx, with model.onnx_data;
                                takes sentence_embedding, where there is one, as it is, and outputs in float32 only
    infinity 0.0.78             model.onnx on a GPU, on a CPU whichever is listed last; last_hidden_state, pooled by mean
                                or first token
    transformers.js             models/session.js at commit 2f547f8: onnx/model.onnx for dtype fp32, model_fp16.onnx for
                                fp16; with `use_external_data_format` also model.onnx_data; gives inputs by name

So outputs are float32 in both files. In the float16 one, matrices are stored and multiplied in float16 and the token
table is stored so; norms, rotary angles, scores, softmax and the residual stream stay float32.

The graph is traced by torch's TorchScript exporter, which torch 2.13 calls old. It is exact to 1e-6 for most families
(benchmarks/engines.md). Where it fails or gives other vectors (Cohere, GLM-4) torch.export makes the graph; where both do
it is no nearer and takes twenty times as long.

optimum is not used to write: optimum-onnx 0.1 pins a transformers that ignores config.is_causal, and would write a causal
graph without a word. It reads these files well: sentence-transformers 5.5.1 with transformers 4.57.6, which runs the
weights themselves as a causal model, gives the golden vectors to 5e-7 with backend="onnx".
"""

import logging
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2enc.artifact import Metadata
from llm2enc.encoding import Encoder
from llm2enc.errors import CannotExport
from llm2enc.export import graph
from llm2enc.export.graph import INPUTS, OUTPUTS, Agreement, Run

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto
    from torch import Tensor

    from llm2enc.export.graph import Graph

Exporter = Callable[["Graph", "tuple[Tensor, Tensor]", Path], None]

SUMMARY = "ONNX graphs for ONNX Runtime, text-embeddings-inference, transformers.js and sentence-transformers"
FILES = {"float32": "model.onnx", "float16": "model_fp16.onnx"}

OPSET = 18  # ONNX Runtime 1.14 of February 2023 reads it
# Weights beyond this stand in a file of their own: protobuf ends at 2 GiB, names and nodes included.
INLINE_BYTES = 1_900_000_000
_HALF = 10  # TensorProto.FLOAT16
_FLOAT = 1  # TensorProto.FLOAT


def unsupported_reason(encoder: Encoder, metadata: Metadata) -> str:
    """Why this encoder cannot have the format; empty if it can."""
    return graph.unsupported_reason(encoder, metadata)


def write(encoder: Encoder, folder: Path, metadata: Metadata, *, dtypes: tuple[str, ...] = ("float32",)) -> list[Path]:
    """Write the graphs into `folder`/onnx and return their files; weights beyond 1.9 GB stand beside them.

    encoder  the encoder of `folder`
    dtypes   float32, float16: what the matrices are stored in, one graph each
    raises   CannotExport if the encoder cannot have this format, the family cannot be traced, or a graph gives other vectors
             than the encoder; ValueError for a missing package
    """
    graph.check_request(encoder, metadata, dtypes, ("onnx", "onnxruntime"), "onnx")
    wanted = graph.expected(encoder, folder, metadata)
    with graph.into(folder / "onnx") as partial:
        faults = []
        for exporter in (_script, _program):
            try:
                _graphs(exporter, folder, metadata, wanted, dtypes, partial)
                break
            except CannotExport as error:
                faults.append(error)
        else:
            raise faults[0]
        names = sorted(path.name for path in partial.iterdir())
    for dtype in dtypes:
        if f"{FILES[dtype]}_data" not in names:  # left by an older graph of this name
            (folder / "onnx" / f"{FILES[dtype]}_data").unlink(missing_ok=True)
    return [folder / "onnx" / name for name in names]


def _graphs(
    exporter: Exporter, folder: Path, metadata: Metadata, wanted: graph.Expected, dtypes: tuple[str, ...], out: Path
) -> None:
    """Write the graphs that `exporter` makes into `out`. CannotExport if it cannot, or if one of them does not agree."""
    traced = out / "traced"
    traced.mkdir()
    try:
        _trace(exporter, folder, metadata, traced / "model.onnx")
        for dtype in dtypes:
            _save(_model(traced / "model.onnx", metadata, dtype), out / FILES[dtype])
            agreement(out / FILES[dtype], wanted, dtype)
    finally:
        shutil.rmtree(traced)


def agreement(path: Path, wanted: graph.Expected, dtype: str) -> Agreement:
    """How near the vectors of a graph are to the encoder's. CannotExport if too far, or if the graph is no valid one."""
    import onnx

    onnx.checker.check_model(str(path))
    return graph.check(runner(path), wanted, dtype, f"onnx/{path.name}")


def runner(path: Path) -> Run:
    """The graph in ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns of initializers that it folds away, and says errors twice
    session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            hidden, vectors = session.run(OUTPUTS, dict(zip(INPUTS, (ids, mask), strict=True)))
        except Exception as error:  # it has one class per kind of failure, none of which says more than its text
            text = " ".join(str(error).split())[:300]
            raise CannotExport(f"ONNX Runtime fails on {path.name}, with {ids.shape} ids: {text}") from error
        return hidden, vectors

    return run


# --------------------------------------------------------------------------------------------------------------- graph


def _trace(exporter: Exporter, folder: Path, metadata: Metadata, path: Path) -> None:
    """Write the float32 graph to `path`; weights beyond 2 GiB in files beside it."""
    import torch

    module = graph.open_graph(folder, metadata)
    try:
        with torch.no_grad(), _quiet():
            exporter(module, graph.example(module), path)
    except Exception as error:  # whatever a family's code does that cannot be traced
        raise CannotExport(
            f"torch.onnx cannot trace a {metadata.model_type} ({type(error).__name__}: {str(error)[:300]}); serve the "
            "directory with sentence-transformers or llm2enc instead"
        ) from error


def _script(module: "Graph", example: "tuple[Tensor, Tensor]", path: Path) -> None:
    import torch

    rows = {0: "batch", 1: "sequence"}
    axes = {**dict.fromkeys((*INPUTS, OUTPUTS[0]), rows), OUTPUTS[1]: {0: "batch"}}
    with _without_prints():
        torch.onnx.export(
            module, example, str(path), dynamo=False, opset_version=OPSET,
            input_names=list(INPUTS), output_names=list(OUTPUTS), dynamic_axes=axes,
        )  # fmt: skip


def _program(module: "Graph", example: "tuple[Tensor, Tensor]", path: Path) -> None:
    import torch

    # Dimensions are named alike, or the graph would ask for a batch of its own for every input.
    rows = {0: torch.export.Dim("batch", max=2**20), 1: torch.export.Dim("sequence", max=2**20)}
    torch.onnx.export(
        module, example, str(path), dynamo=True, opset_version=OPSET, verbose=False,
        input_names=list(INPUTS), output_names=list(OUTPUTS), dynamic_shapes=(rows, rows),
    )  # fmt: skip


@contextmanager
def _without_prints() -> Iterator[None]:
    """torch 2.13 prints a graph that it cannot export from C++, thousands of lines, whatever its log is set to."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings about branches of a trace: whether it holds for other inputs is measured."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _model(path: Path, metadata: Metadata, dtype: str) -> "ModelProto":
    """The traced graph in memory, with its storage type and what says where it comes from."""
    import onnx

    model = onnx.load(path)
    if dtype == "float16":
        halve(model.graph)
    said = {"fingerprint": metadata.fingerprint, "pooling": metadata.pooling, "normalize": str(metadata.normalize)}
    onnx.helper.set_model_props(model, {f"llm2enc.{key}": value for key, value in said.items()})
    return model


def _save(model: "ModelProto", path: Path) -> None:
    """Write `path`, and beside it `path`_data with the weights if they are many."""
    import onnx

    itemsize = {kind: onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize for kind in (_FLOAT, _HALF)}
    weights = sum(math.prod(tensor.dims) * itemsize.get(tensor.data_type, 8) for tensor in model.graph.initializer)
    if weights <= INLINE_BYTES:  # protobuf itself cannot even tell the size of a message beyond its limit
        onnx.save(model, path)
        return
    onnx.save(
        model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}_data",
        size_threshold=1024,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- float16


def halve(content: "GraphProto") -> None:
    """Store the matrices of a float32 graph in float16, in place, and multiply by them in float16.

    A matrix is a weight of two dimensions or more that is used by products and table look-ups only. Everything else,
    biases and rotary frequencies included, stays as it is, and every value that leaves a product is float32 again.

    raises  CannotExport for a weight beyond float16's 65504
    """
    from onnx import numpy_helper

    matrices = _matrices(content)
    for tensor in content.initializer:
        if tensor.name in matrices:
            values = graph.half(numpy_helper.to_array(tensor), tensor.name)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes = [new for node in content.node for new in _halved(node, matrices)]
    del content.node[:]
    content.node.extend(nodes)


def _matrices(content: "GraphProto") -> set[str]:
    """Names of the weights that may be stored in float16."""
    shapes = {tensor.name: tensor.dims for tensor in content.initializer if tensor.data_type == _FLOAT}
    found = {name for name, dims in shapes.items() if len(dims) >= 2 and min(dims[-2:]) > 1}
    found -= {output.name for output in content.output}
    for node in content.node:
        found -= set(_inner_names(node))
        if node.op_type == "Gather":
            found -= set(node.input[1:])
        elif node.op_type not in ("MatMul", "Gemm"):
            found -= set(node.input)
    return found


def _inner_names(node: "NodeProto") -> Iterator[str]:
    """Names that the branches and loop bodies of a node read."""
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for child in inner.node:
                yield from child.input
                yield from _inner_names(child)


def _halved(node: "NodeProto", matrices: set[str]) -> Iterator["NodeProto"]:
    """The node, or the node between casts if it uses one of the matrices."""
    from onnx import helper

    if not matrices.intersection(node.input):
        yield node
        return
    output = node.output[0]
    if node.op_type != "Gather":  # whose other input are ids
        for place, name in enumerate(node.input):
            if name and name not in matrices:
                yield helper.make_node("Cast", [name], [f"{output}.half.{place}"], to=_HALF)
                node.input[place] = f"{output}.half.{place}"
    node.output[0] = f"{output}.half"
    yield node
    yield helper.make_node("Cast", [node.output[0]], [output], to=_FLOAT)
