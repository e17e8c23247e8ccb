"""Do the directory's small files still say what was written into them? Each names one place that engines read."""

import json
from pathlib import Path
from typing import Any

from llm2enc.encoder import Encoder
from llm2enc.export import tokenizer as exported
from llm2enc.export.sentence_transformers import POOLING_MODES
from llm2enc.verify.report import Parity


def check(folder: Path, facts: dict[str, Any], encoder: Encoder) -> Parity:
    """One row for all of them; its note names every file and key that does not fit llm2enc.json."""
    found: list[str] = []
    for look in (_config, _modules, _pooling, _sentence_transformers, _tokenizer):
        try:
            found += look(folder, facts, encoder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            found.append(f"a file can't be read ({type(error).__name__}: {error})")
    if not found:
        return Parity("files", None, "say what llm2enc.json says")
    remedy = "put these values back, or write the directory again with Encoder.load(DIR).save(DIR)"
    return Parity("files", None, "; ".join(found), verdict="differs", remedy=remedy)


def _config(folder: Path, facts: dict[str, Any], encoder: Encoder) -> list[str]:
    config = _read(folder / "config.json")
    if facts["attention"] == "causal":
        expected = {"is_causal": (None, True)}
    elif facts["model_type"] == "gemma3_text":  # the one family whose engines read another key
        expected = {"use_bidirectional_attention": (True,)}
    else:
        expected = {"is_causal": (False,)}
    return _unlike("config.json", config, expected)


def _modules(folder: Path, facts: dict[str, Any], encoder: Encoder) -> list[str]:
    kinds = [module["type"].rpartition(".")[2] for module in _read(folder / "modules.json")]
    expected = ["Transformer", "Pooling", *(["Normalize"] if facts["normalize"] else [])]
    return [] if kinds == expected else [f"modules.json: {kinds}, expected {expected}"]


def _pooling(folder: Path, facts: dict[str, Any], encoder: Encoder) -> list[str]:
    pooling, mode = _read(folder / "1_Pooling" / "config.json"), POOLING_MODES[facts["pooling"]]
    old = {"cls": "cls_token", "mean": "mean_tokens", "weightedmean": "weightedmean_tokens", "lasttoken": "lasttoken"}
    keys = {f"pooling_mode_{name}": (kind == mode,) for kind, name in old.items()}
    size = {name: (facts["dimensions"],) for name in ("embedding_dimension", "word_embedding_dimension")}
    return _unlike("1_Pooling/config.json", pooling, {"pooling_mode": (mode,), **keys, **size})


def _sentence_transformers(folder: Path, facts: dict[str, Any], encoder: Encoder) -> list[str]:
    split = exported.layout(encoder.input_format)
    limit = exported.max_seq_length(encoder.input_format, split)
    settings, top = "sentence_bert_config.json", "config_sentence_transformers.json"
    expected = {"max_seq_length": (limit,), "do_lower_case": (False,)}
    found = _unlike(settings, _read(folder / settings), expected)
    return found + _unlike(top, _read(folder / top), {"prompts": (facts["prompts"],)})


def _tokenizer(folder: Path, facts: dict[str, Any], encoder: Encoder) -> list[str]:
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
    return json.loads(path.read_text(encoding="utf-8"))
