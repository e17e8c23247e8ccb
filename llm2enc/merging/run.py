"""Merging encoders: several exported directories become one, and one can be mixed with its base.

    merge(["runs/a/model", "runs/b/model"], "runs/soup")                         the mean (a model soup)
    merge([...], "runs/soup", method="slerp", weights=[2, 1, 1])                 along the arc
    merge(["runs/a/model"], "runs/mild", base="pocket", base_weight=0.3)         LM-Cocktail
    scores(["runs/a/model", "runs/b/model"], "runs/soup", ["smoke"], "scores")   was it worth it?

    average       sum_i w_i x_i / sum_i w_i                                                       arXiv 2203.05482
    slerp         sin((1-t)o)/sin(o) x_0 + sin(t o)/sin(o) x_1, o the angle between x_0 and x_1   arXiv 2506.05176
    base_weight   (1-t) merged + t base                                                           arXiv 2311.13534

Each tensor is merged by itself, flattened. SLERP takes the angle from the directions and leaves the lengths alone: it
turns the tensors as they are, so that two of one length give a third of that length. Where no arc is defined (parallel,
opposite or zero tensors) it is the average. More than two are taken in one after another, each at its share of the weight
so far, so their order matters. Sums are float64 and are rounded once, to the type the models are stored in.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from llm2enc.artifact import MergeRecord, Metadata, Parent, check_target, head_files, read_metadata
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.merging.arithmetic import METHODS, Method, average
from llm2enc.merging.checks import differences, names_in_base, unlike_base, wrong_arguments
from llm2enc.merging.measuring import Row, check_sources, scores, table
from llm2enc.merging.weights import WEIGHTS, Weights, fingerprint
from llm2enc.model import resolve
from llm2enc.storage import add_path_to_oserror, check_room, temp_directory

__all__ = ["Method", "Row", "check_alike", "check_sources", "merge", "scores", "table"]


def merge(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    method: Method = "average",
    weights: Sequence[float] | None = None,
    base: str | Path | None = None,
    base_weight: float = 0.0,
) -> MergeRecord:
    """How the encoder was made that is merged from the exported directories `folders` and written to `out`.

    weights      one per folder, equal by default; only their ratios count
    base         a directory with the same decoder, exported or a causal LM whose head is ignored, or `pocket`
    base_weight  share of the base in the result, 0 to 1
    raises       ValueError with everything that does not fit, before any weight is read or anything written
    """
    places, out = [Path(folder) for folder in folders], Path(out)
    shares = [1.0] * len(places) if weights is None else [float(weight) for weight in weights]
    _raise(wrong_arguments(places, out, method, shares, base, base_weight))
    check_target(out)
    metadata = [read_metadata(place) for place in places]
    parents = [Weights(place) for place in places]
    base_tensors = None if base is None else Weights(Path(resolve(str(base))))
    faults = _unlike(parents, metadata)
    if base is not None and metadata[0].head:
        kind = metadata[0].head.kind
        faults.append(f"{places[0]} has a {kind}, which no base has to be mixed with; merge without a base")
    _raise(faults + ([] if base_tensors is None else unlike_base(parents[0], base_tensors)))
    names = {} if base_tensors is None else names_in_base(parents[0], base_tensors)

    def merged(name: str) -> Tensor:
        base_tensor = None if base_tensors is None else base_tensors[names[name]]
        return _merged([parent[name] for parent in parents], shares, method, base_tensor, base_weight)

    size = sum((parents[0].folder / file).stat().st_size for file in set(parents[0].files.values()))
    check_room(out.absolute().parent, 2 * size)  # for a moment the weights are there twice
    record = MergeRecord(
        method=method,
        parents=[
            Parent(fingerprint=parent.fingerprint, weight=share, recipes=parent.recipes)
            for parent, share in zip(metadata, shares, strict=True)
        ],
        base=None if base_tensors is None else fingerprint(base_tensors, names, parents[0]),
        base_weight=float(base_weight),
    )
    with temp_directory(out.absolute(), "merged") as folder, add_path_to_oserror(out):
        _write_merged(parents[0], folder, merged)
        if metadata[0].head:
            own = head_files.place(metadata[0].head)
            heads = [Weights(place / own) for place in places]
            (folder / own).mkdir()
            _write_merged(
                heads[0],
                folder / own,
                lambda name: _merged([head[name] for head in heads], shares, method, None, 0.0),
            )
        Encoder.load(folder, full_proof=True).save(out, merge=record)  # its weights are not those that it records
    return record


def check_alike(folders: Sequence[str | Path]) -> None:
    """ValueError if the exported directories cannot be merged with each other. No weight is read."""
    places = [Path(folder) for folder in folders]
    _raise(_unlike([Weights(place) for place in places], [read_metadata(place) for place in places]))


def _unlike(parents: list[Weights], metadata: list[Metadata]) -> list[str]:
    """What keeps the others from being merged with the first one."""
    return [fault for n in range(1, len(parents)) for fault in differences(parents, metadata, n)]


def _merged(
    tensors: list[Tensor], weights: list[float], method: Method, base_tensor: Tensor | None, base_weight: float
) -> Tensor:
    """One tensor of the result, in the type of the parents. Integers (a buffer) must be the same everywhere."""
    first = tensors[0]
    if not first.is_floating_point():
        if any(not first.equal(tensor) for tensor in tensors[1:]):
            raise InputError("the models hold different integers under one name, which have no average")
        return first
    merged = METHODS[method](tensors, weights)
    if base_tensor is not None:
        merged = average([merged, base_tensor], [1 - base_weight, base_weight])
    return merged.to(first.dtype)


def _write_merged(parent: Weights, folder: Path, merged: Callable[[str], Tensor]) -> None:
    """A copy of the parent's directory with other weights, in the same shards; one shard is in memory at a time."""
    for path in parent.folder.iterdir():
        if path.is_file() and path.name not in {WEIGHTS, *parent.files.values()}:
            shutil.copy2(path, folder)
    for file in sorted(set(parent.files.values())):
        names = [name for name, place in parent.files.items() if place == file]
        save_file({name: merged(name) for name in names}, folder / file, metadata={"format": "pt"})


def _raise(faults: list[str]) -> None:
    if faults:
        raise InputError("; ".join(faults))
