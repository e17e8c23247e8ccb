"""Do the directory's small files still say what was written into them? Each names one place that engines read."""

import json
from pathlib import Path
from typing import Any

from llm2enc.artifact import Metadata, head_files
from llm2enc.errors import InputError
from llm2enc.model import POOLERS
from llm2enc.verification.report import Parity


def check(folder: Path, metadata: Metadata) -> Parity:
    """One row for all of them; its note names every file and key that does not fit llm2enc.json."""
    found: list[str] = []
    for look in (_config, _modules, _pooling, _head, _sentence_transformers, _tokenizer):
        try:
            found += look(folder, metadata)
        except ValueError as error:
            found.append(str(error))
    if found:
        remedy = "put these values back, or write the directory again with Encoder.load(DIR).save(DIR)"
        return Parity("files", None, "; ".join(found), verdict="differs", remedy=remedy)
    gone = _guards(folder, metadata)
    if gone:
        note = f"without {' and '.join(gone)}, some old releases run it as a causal model and say nothing"
        return Parity("files", None, note, remedy="write the directory again to have old releases stop at it")
    return Parity("files", None, "say what llm2enc.json says")


def _config(folder: Path, metadata: Metadata) -> list[str]:
    config = _read(folder / "config.json")
    if metadata.attention == "causal":
        expected = {"is_causal": (None, True)}
    elif metadata.model_type == "gemma3_text":  # the one family whose engines read another key
        expected = {"use_bidirectional_attention": (True,)}
    else:
        expected = {"is_causal": (False,)}
    return _unlike("config.json", config, expected)


def _guards(folder: Path, metadata: Metadata) -> list[str]:
    """Keys at which old releases stop (export/config.py) that are not there. Recent ones open the directory without them,
    and some users have to take them out, so this is no fault."""
    if metadata.attention == "causal":
        return []
    settings = _read(folder / "sentence_bert_config.json")
    there = {
        "pruned_heads in config.json": "pruned_heads" in _read(folder / "config.json"),
        "transformer_task in sentence_bert_config.json": "transformer_task" in settings,
        "allow_all_kernels in sentence_bert_config.json": "allow_all_kernels" in settings.get("model_args", {}),
    }
    return [name for name, found in there.items() if not found]


def _modules(folder: Path, metadata: Metadata) -> list[str]:
    kinds = [module["type"].rpartition(".")[2] for module in _read(folder / "modules.json")]
    head = [head_files.module(metadata.head).rpartition(".")[2]] if metadata.head else []
    before, behind = (head, []) if metadata.needs_code else ([], head)
    expected = ["Transformer", *before, "Pooling", *behind, *["Normalize"] * metadata.normalize]
    return [] if kinds == expected else [f"modules.json: {kinds}, expected {expected}"]


def _pooling(folder: Path, metadata: Metadata) -> list[str]:
    """The mode under its new name and under the old ones, where they are there."""
    name = "1_Pooling/config.json"
    pooling = _read(folder / name)
    expected = {f"pooling_mode_{pooler.flag}": (own == metadata.pooling,) for own, pooler in POOLERS.items()}
    width = _width(folder, metadata)
    expected |= {key: (width,) for key in ("embedding_dimension", "word_embedding_dimension")}
    expected = {key: value for key, value in expected.items() if key in pooling}
    return _unlike(name, pooling, {"pooling_mode": (POOLERS[metadata.pooling].mode,), **expected})


def _width(folder: Path, metadata: Metadata) -> int | None:
    """Of the model's states."""
    if metadata.head is None:
        return metadata.dimensions
    config = _read(folder / head_files.place(metadata.head) / "config.json")
    return config.get("width" if metadata.needs_code else "in_features")


def _head(folder: Path, metadata: Metadata) -> list[str]:
    """The weights themselves are part of the fingerprint; the width they take is looked at by `_pooling`."""
    if metadata.head is None:
        return []
    place = head_files.place(metadata.head)
    config = _read(folder / place / "config.json")
    expected = head_files.settings(_width(folder, metadata) or 0, metadata.head)
    found = _unlike(f"{place}/config.json", config, {key: (value,) for key, value in expected.items()})
    if metadata.needs_code and not has_our_code(folder):
        found.append(f"{head_files.CODE} is not the file that this release writes; sentence-transformers would run it")
    return found


def has_our_code(folder: Path) -> bool:
    """Whether what sentence-transformers would run of the directory is the file that llm2enc writes, byte for byte."""
    path = folder / head_files.CODE
    return path.is_file() and path.read_bytes() == head_files.source().encode()


def _sentence_transformers(folder: Path, metadata: Metadata) -> list[str]:
    settings, top = "sentence_bert_config.json", "config_sentence_transformers.json"
    found = _unlike(settings, _read(folder / settings), {"do_lower_case": (False,)})
    # The engines are given each prompt by name; only here it is seen what a text without one gets.
    default = "document" if metadata.prompts.get("document") else None
    return found + _unlike(
        top, _read(folder / top), {"prompts": (metadata.prompts,), "default_prompt_name": (default,)}
    )


def _tokenizer(folder: Path, metadata: Metadata) -> list[str]:
    name = "tokenizer_config.json"
    return _unlike(name, _read(folder / name), {"padding_side": ("right",), "truncation_side": ("right",)})


def _unlike(name: str, content: dict[str, Any], expected: dict[str, tuple]) -> list[str]:
    return [
        f"{name}: {key} is {content.get(key)!r}, expected {allowed[-1]!r}"
        for key, allowed in expected.items()
        # 0 == False: kinds count too
        if not any(content.get(key) == value and type(content.get(key)) is type(value) for value in allowed)
    ]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read ({error})") from None
