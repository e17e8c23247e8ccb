"""Which family leaves the house in which format: every format is written, opened in its engine, and compared with ours.

    python -m benchmarks.targets -o FOLDER [--families llama,qwen3] [--markdown FILE]

Each family is a tiny random model of its own configuration class with the packaged tokenizer and a template of BOS, text
and EOS. A cell is what `llm2enc verify` says: ✓ the smallest cosine is at least 0.9999 in float32, ✗ it is not, – refused
by us or unsupported there, · not installed here. vLLM and TEI are judged by the engine rules. An interrupted table
goes on where it was.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

COMMON = (
    "llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2 gemma3_text phi phi3 gpt_neox gpt2 opt olmo olmo2 "
    "olmo3 granite cohere cohere2 smollm3 starcoder2 exaone4 glm4 gpt_oss deepseek_v3 falcon stablelm nemotron"
).split()
WRITTEN = {"onnx": "float32", "openvino": "float32", "gguf": "float32"}
COLUMNS = ("sentence-transformers", "transformers", "onnx", "openvino", "llama.cpp", "vllm", "tei")
# As in real models, where miniatures are not: positions and windows beyond max_tokens (a window that no text reaches is
# taken out), scores scaled by the width of a head, and layers of both kinds in the pattern that the configuration names.
SIZES = {"max_position_embeddings": 512, "n_positions": 512, "sliding_window": 1024, "query_pre_attn_scalar": 8}
PATTERNS = {"gemma3_text": {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}}
INPUT = {
    "query": [{"special": "bos", "pool": True}, {"slot": "text", "pool": True}, {"special": "eos", "pool": True}],
    "document": [{"special": "bos", "pool": True}, {"slot": "text", "pool": True}, {"special": "eos", "pool": True}],
    "max_tokens": 128,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True, help="the directories and results")
    parser.add_argument("--families", default=",".join(COMMON), help="model types with commas between them")
    parser.add_argument("--markdown", type=Path, help="write the table here too")
    arguments = parser.parse_args()
    families = arguments.families.split(",")
    rows = {family: result(family, arguments.out) for family in families}
    text = table(rows)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")


def result(family: str, out: Path) -> dict[str, Any]:
    """Verdicts by column, from disk if they are there."""
    path = out / f"{family}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    print(f"{family} ...", flush=True)
    try:
        found = measure(family, out / family)
    except Exception as error:  # a family that cannot even be built is a row of the table too
        found = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def measure(family: str, folder: Path) -> dict[str, Any]:
    """A tiny model of `family` in every format, written into `folder` and verified."""
    from llm2enc.export import Source, export, why_not
    from llm2enc.verification import verify

    made = encoder(family)
    made.save(folder)
    source = Source.of(folder)
    refused = why_not(source)
    for format, dtype in WRITTEN.items():
        if not refused[format]:
            try:
                export(folder, [format], dtypes=[dtype])
            except ValueError as error:  # what only the writing finds out
                refused[format] = " ".join(str(error).split())
    report = verify(folder, encoder=made)
    wrong = [f"{row.engine}: {row.note}" for row in report.rows if row.engine not in COLUMNS and not row.agrees]
    if wrong:  # what the others were compared with is itself not right
        raise ValueError("; ".join(wrong))
    cells: dict[str, Any] = {"reasons": {}}
    for row in report.rows:
        if row.engine in COLUMNS:
            format = "gguf" if row.engine == "llama.cpp" else row.engine
            verdict = "refused" if row.verdict == "missing" else row.verdict
            cells[row.engine] = {"verdict": verdict, "cosine": row.cosine, "difference": row.difference}
            reason = refused.get(format, "") if verdict == "refused" else f"{row.note}. {row.remedy}"
            if verdict not in ("agrees", "should agree"):
                cells["reasons"][row.engine] = reason
    return cells


def encoder(family: str):
    """A tiny random encoder of a family."""
    from transformers import CONFIG_MAPPING

    from llm2enc.encoding import Encoder
    from llm2enc.model import Backbone, load_tokenizer
    from llm2enc.model.tiny_random import miniature
    from llm2enc.recipe import InputSpec, ModelSpec
    from llm2enc.text import InputFormat

    tokenizer = load_tokenizer(ModelSpec(name="pocket"))
    if family == "qwen2":  # transformers reads any tokenizer beside a qwen2 configuration with this class
        tokenizer = _qwen2_tokenizer(tokenizer)
    config = CONFIG_MAPPING[family]()
    sizes = {name: size for name, size in SIZES.items() if getattr(config, name, None)}
    sizes |= {"vocab_size": len(tokenizer)} | PATTERNS.get(family, {})
    model = miniature(config, 0, **sizes)
    spec = InputSpec.model_validate_json(json.dumps(INPUT))
    return Encoder(Backbone(model, bidirectional=True), InputFormat(spec, tokenizer), "mean").eval()


def _qwen2_tokenizer(tokenizer):
    """The tokenizer with Qwen's own rules for digits, punctuation and normal forms."""
    from transformers import Qwen2Tokenizer

    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    names = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "unk_token": None}
    return Qwen2Tokenizer(vocab=model["vocab"], merges=merges, pad_token=tokenizer.eos_token, **names)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row per family, and below it why a cell is not ✓."""
    marks = {
        "agrees": "✓",
        "should agree": "✓",
        "differs": "✗",
        "failed": "✗",
        "should differ": "✗",
        "not installed": "·",
    }
    lines = ["| family | " + " | ".join(COLUMNS) + " |", "| --- |" + " :---: |" * len(COLUMNS)]
    reasons: dict[str, list[str]] = {}
    for family, found in rows.items():
        if "failed" in found:
            lines.append(f"| {family} |" + " |" * len(COLUMNS))
            reasons.setdefault(f"not built: {found['failed']}", []).append(family)
            continue
        cells = [marks.get(found[column]["verdict"], "–") for column in COLUMNS]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
        for column, reason in found["reasons"].items():
            reasons.setdefault(f"{column}: {_general(reason, family)}", []).append(family)
    notes = [f"- {', '.join(families)}: {reason}" for reason, families in reasons.items()]
    return "\n".join([*lines, "", *notes]) + "\n"


def _general(reason: str, family: str) -> str:
    """A reason without the family's names, so that families share it."""
    return re.sub(rf"\b[A-Z]\w*Model\b|'{family}'|\ba {family}\b", "it", reason).replace("model_type it", "it")


if __name__ == "__main__":
    main()
