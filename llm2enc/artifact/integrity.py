"""Whether a saved directory is still what was proven: its files, the installed releases, and one vector from end to end.

Loading must cost little more than reading the files does, and SHA-256 of all weights costs as much again. So a large file is
recognised by a sample: every change of a whole MiB is seen, and whatever moves the first golden vector. `llm2enc verify`
reads every byte.
"""

import hashlib
import json
import os
from pathlib import Path

import torch

from llm2enc.artifact import head_files
from llm2enc.artifact.files import METADATA_FILE
from llm2enc.artifact.metadata import Metadata
from llm2enc.artifact.parts import Parts
from llm2enc.errors import InputError
from llm2enc.model import TOLERANCE, installed, spot_check, vectors_of, weights_fingerprint

MIB = 2**20
WHOLE = 32 * MIB  # bytes up to which a file is hashed whole
BLOCK = 4096  # bytes of every MiB that are hashed of a larger one
# What other programs read of the directory and `read` does not.
OTHERS = (
    METADATA_FILE, "README.md", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json",
    head_files.CODE,
)  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    """`digest` of every file that the encoder is read from, by name: weights, config.json, tokenizer."""
    names = (path.name for path in folder.iterdir() if path.is_file() and path.name not in OTHERS)
    head = (f"{path.parent.name}/{path.name}" for path in folder.glob(f"2_*/{head_files.WEIGHTS}"))
    return {name: digest(folder / name) for name in sorted([*names, *head])}


def digest(path: Path) -> str:
    """SHA-256 of a file; of one beyond WHOLE, of its size, its first MiB (the names and shapes of safetensors), the first
    BLOCK of every other MiB, and its last."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= WHOLE:
            return hashlib.sha256(file.read()).hexdigest()
        found = hashlib.sha256(f"{size} ".encode() + file.read(MIB))
        for start in (*range(MIB, size, MIB), size - BLOCK):
            file.seek(start)
            found.update(file.read(BLOCK))
    return found.hexdigest()


def changed(folder: Path, metadata: Metadata) -> list[str]:
    """Names of the files that are gone, or no longer those that were written."""
    recorded = (metadata.files or {}).items()
    return [name for name, known in recorded if not (folder / name).is_file() or digest(folder / name) != known]


def check_weights(folder: Path, changed: list[str]) -> None:
    """InputError that names a file of weights among the changed ones: nobody edits those by hand."""
    weights = [name for name in changed if ".safetensors" in name]
    if weights:
        state = "is not the file that was written" if (folder / weights[0]).is_file() else "is missing"
        raise InputError(
            f"{folder / weights[0]} {state} (llm2enc.json has its SHA-256): take it from where the directory was written; "
            f"`llm2enc verify {folder}` says how far its vectors are"
        )


def unproven(metadata: Metadata, changed: list[str]) -> str:
    """Why the recorded proof says nothing of what is there now; empty if it does."""
    proof = metadata.proof
    if metadata.files is None or proof.versions is None:
        return "it was written by a release that did not record what its proof rests on"
    here = installed(*proof.versions)
    other = [
        f"{name} is {here[name]}, the proof is of {known}"
        for name, known in proof.versions.items()
        if here[name] != known
    ]
    return "; ".join([f"{name} is not the file that was written" for name in changed] + other)


def check_fingerprint(parts: Parts, metadata: Metadata, folder: Path) -> None:
    """InputError unless the weights, held as they are stored, are those that were written."""
    found = weights_fingerprint(parts.backbone, parts.head)
    if found != metadata.fingerprint:
        raise InputError(
            f"the weights of {folder} are {found[:12]}, llm2enc.json says {metadata.fingerprint[:12]}: take them from where "
            f"the directory was written; `llm2enc verify {folder}` says how far its vectors are"
        )


def check_golden(parts: Parts, metadata: Metadata, folder: Path) -> None:
    """InputError unless the first golden text has its vector; CannotConvert if the model reads in the wrong direction."""
    golden, backbone = metadata.golden, parts.backbone
    text = parts.input_format.pack(golden.texts[:1], "", "document").to(backbone.device)
    states = spot_check(backbone, text)
    with torch.no_grad():
        pooled = vectors_of(states, text, parts.pooling, parts.head)[0].cpu()
    vector = torch.nn.functional.normalize(pooled, dim=-1) if parts.normalize else pooled
    expected = torch.tensor(golden.vectors[0])
    difference = float((vector - expected).norm() / expected.norm())
    stored = getattr(torch, json.loads((folder / "config.json").read_text(encoding="utf-8")).get("dtype", "float32"))
    room = max(TOLERANCE[dtype] for dtype in (stored, backbone.decoder.dtype))
    if not difference <= room:
        raise InputError(
            f"{folder} does not give the vector that was saved with it (difference {difference:.2g}, rounding explains "
            f"{room:g}): weights, tokenizer, settings or llm2enc.json were changed, or a library computes otherwise; "
            f"`llm2enc verify {folder}` says more"
        )
