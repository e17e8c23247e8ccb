"""A GGUF file as a plain model directory in the cache: config.json, tokenizer.json and float32 weights.

    models/SHA256/
      config.json, tokenizer.json, tokenizer_config.json, source.json    written first, whole: all that looking needs
      model.safetensors                                                  the weights, dequantised once

On disk and not in memory, because then nothing behind this file knows of GGUF: inspecting, planning, proofs, resuming and
every process of a run open a directory like any other, in the seconds that one takes, and nothing of the quantisation can
get into what is written. The key is the content, so a copy, another name or a package with the file finds the same.
"""

import json
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llm2enc.errors import InputError, explained, require
from llm2enc.model.gguf_header import Header, read_header
from llm2enc.model.gguf_tokenizer import cut_as_the_file_says, differences
from llm2enc.storage import atomic_directory, check_room, default_cache, file_lock, sha256_of, sync, temp_directory

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

SOURCE, WEIGHTS = "source.json", "model.safetensors"
PATIENCE = 3600.0  # seconds that another process may take over the same file


def directory(parts: tuple[Path, ...], weights: bool, sha256: str | None = None) -> Path:
    """The plain directory of a GGUF file, made if it is not in the cache.

    parts    the file, or the pieces that make it in this order
    weights  whether model.safetensors is needed, or config and tokenizer alone
    sha256   what the file must be
    raises   InputError for a family that transformers does not read from GGUF, a file that is damaged or another one,
             and without the `gguf` extra; OSError if the disk is full
    """
    missing = [str(part) for part in parts if not part.is_file()]
    if missing:
        raise InputError(f"no file {', '.join(missing)}")
    stamps = tuple((part, part.stat().st_size, part.stat().st_mtime_ns) for part in parts)
    return _directory(stamps, weights, sha256)


@lru_cache(maxsize=64)
def _directory(stamps: tuple[tuple[Path, int, int], ...], weights: bool, sha256: str | None) -> Path:
    parts = [part for part, *_ in stamps]
    if len(parts) == 1:
        check(parts[0], read_header(parts[0]))  # before gigabytes are read to know the file
    key = sha256_of(parts)
    if sha256 not in (None, key):
        raise InputError(f"{parts[0]} is another file than expected: its SHA-256 is {key}, not {sha256}")
    folder = default_cache() / "models" / key
    if not _is_there(folder, weights):
        require("gguf", extra="gguf")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(folder.with_name(f".{key}.lock"), folder, patience=PATIENCE):
            if not _is_there(folder, weights):
                with _joined(parts, folder) as file:
                    _make(file, folder, weights)
    for note in json.loads((folder / SOURCE).read_text(encoding="utf-8"))["notes"]:
        _log.warning("%s: %s", parts[0].name, note)
    return folder


def check(file: Path, header: Header) -> None:
    """InputError if transformers cannot read the file, by its header alone."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    known = {_plain(name) for name in GGUF_SUPPORTED_ARCHITECTURES}
    if _plain(header.architecture) not in known:
        raise InputError(
            f"{file} holds a model of architecture {header.architecture!r}, which transformers does not read from GGUF "
            f"(it reads {', '.join(sorted(known))}); give the original model in safetensors"
        )
    if header.metadata.get("split.count", 1) > 1:
        raise InputError(
            f"{file} is one of {header.metadata['split.count']} pieces; join them first: llama-gguf-split --merge"
        )


def _plain(architecture: str) -> str:
    """One spelling for llama.cpp's qwen2moe and gpt-oss, and transformers' qwen2_moe and gpt_oss."""
    return architecture.replace("-", "").replace("_", "")


def _is_there(folder: Path, weights: bool) -> bool:
    return (folder / (WEIGHTS if weights else SOURCE)).is_file()


@contextmanager
def _joined(parts: list[Path], folder: Path) -> Iterator[Path]:
    """The file that the parts make, for as long as it is needed."""
    if len(parts) == 1:
        yield parts[0]
        return
    check_room(folder, sum(part.stat().st_size for part in parts))
    with temp_directory(folder, "joined") as partial:
        path = partial / "model.gguf"
        with path.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        yield path


def _make(file: Path, folder: Path, weights: bool) -> None:
    header = read_header(file)
    check(file, header)
    size = 4 * sum(header.tensors.values())
    check_room(folder, size if weights else 0)
    faults = (ValueError, KeyError, IndexError, TypeError, RuntimeError, struct.error)
    with explained(str(file), "give a whole GGUF file of a causal language model", faults), _parsed_once():
        if not _is_there(folder, weights=False):
            with atomic_directory(folder) as partial:
                _write_outline(file, header, partial)
        if weights:
            _log.info("dequantising %s once, into %s (%.2f GiB)", file.name, folder, size / 2**30)
            model = _dequantised(file, header)
            with temp_directory(folder / WEIGHTS) as partial:
                _save(model, partial / WEIGHTS)
                sync(partial)
                (partial / WEIGHTS).replace(folder / WEIGHTS)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Lets transformers share one reader: it opens the file for config, tokenizer and weights, half a minute each."""
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = lru_cache(maxsize=1)(reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


# -------------------------------------------------------------------------------------------------------------- contents


def _write_outline(file: Path, header: Header, folder: Path) -> None:
    import transformers

    config = transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    _check_positions(file, header, config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)
    tokenizer, notes = _tokenizer(file, header)
    tokenizer.save_pretrained(folder)
    source = {
        "file": file.name,
        "architecture": header.architecture,
        "license": header.metadata.get("general.license"),
        "transformers": transformers.__version__,
        "notes": notes,
    }
    (folder / SOURCE).write_text(json.dumps(source, indent=1), encoding="utf-8")


def _check_positions(file: Path, header: Header, config: "PretrainedConfig") -> None:
    """InputError for rotary positions that the file scales and transformers' configuration does not."""
    start = f"{header.architecture}.rope.scaling."
    scaled = {
        key: value
        for key, value in header.metadata.items()
        if key.startswith(start) and key.endswith(("type", "factor")) and value not in ("none", 1.0)
    }
    kinds = json.dumps(config.to_dict().get("rope_parameters"))
    if scaled and ('"rope_type"' not in kinds or '"rope_type": "default"' in kinds):
        raise InputError(
            f"{file} scales its positions ({scaled}), which transformers does not read from GGUF; give the original model "
            "in safetensors"
        )


def _tokenizer(file: Path, header: Header) -> tuple["PreTrainedTokenizerBase", list[str]]:
    """The tokenizer, and what is to say of it. Its class takes tokenizer.json as it stands, when it is opened again."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    found = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    known = cut_as_the_file_says(found, header)
    special = {name: token for name, token in found.special_tokens_map.items() if isinstance(token, str)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=found.backend_tokenizer, chat_template=found.chat_template, **special
    )
    notes = [f"its tokenizer is not what the file says: {sentence}" for sentence in differences(tokenizer, header)]
    if not known:
        notes.append(
            f"the file cuts texts by llama.cpp's {header.tokenizer.get('pre')!r}, transformers by a rule that may differ "
            "(numbers, spaces, capitals); compare its ids with the original tokenizer's"
        )
    return tokenizer, notes


def _dequantised(file: Path, header: Header) -> "PreTrainedModel":
    """The model in float32, with every number of the file. InputError if one is not read, or made up."""
    from transformers import AutoModelForCausalLM

    model, said = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        output_loading_info=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    held = dict(header.tensors)
    if model.config.tie_word_embeddings:
        held.pop("output.weight", None)  # of families whose head is tied, whether the file repeats it or not
    own, given = sum(parameter.numel() for parameter in model.parameters()), sum(held.values())
    if said["missing_keys"] or said["mismatched_keys"] or own != given:
        odd = sorted(name for name in held if not name.startswith(("blk.", "token_embd", "output")))
        raise InputError(
            f"{file} holds {given:,} weights, and transformers makes a model of {own:,} of it (missing: "
            f"{sorted(said['missing_keys'])[:3]}; outside of the layers: {odd[:5]}); give the original model in safetensors"
        )
    return model


def _save(model: "PreTrainedModel", path: Path) -> None:
    """Weights by name, a tied head once."""
    from safetensors.torch import save_file

    parameters = dict(model.named_parameters())
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in aliases}
    state = {name: tensor.detach().contiguous() for name, tensor in (parameters | buffers).items()}
    save_file(state, path, metadata={"format": "pt"})
