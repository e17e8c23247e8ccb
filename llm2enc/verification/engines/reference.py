"""What the scripts of this folder share: reading the directory's small files, padding, pooling, and the answer.

The scripts are run by path in a process of their own and know nothing of llm2enc, because a program that opens the
directory doesn't either. Called as `python SCRIPT JOB.json ANSWER.npz`:

    job      {"folder", "file", "trusted", "texts": [str], "runs": [{"prompt", "side", "batches": [[index of a text]]}]}
             file: the one to open, "" where the directory itself is the model; trusted: it may run the directory's code;
             side: "" leaves the padding to the engine
    answer   vectors0, vectors1, ... (N, D) float32, one per run, rows in the order of its batches, NaN where a text was
             left out; about: JSON {"version", "notes", "missing": prompts, "normalizes", "ids": {prompt: [[int] or null]}}
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


class Job:
    """What to do, and what the directory says about how."""

    def __init__(self) -> None:
        asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        self.folder = Path(asked["folder"])
        self.file: str = asked["file"]
        self.trusted: bool = asked["trusted"]
        self.texts: list[str] = asked["texts"]
        self.runs: list[dict] = asked["runs"]
        pooling = self._read("1_Pooling/config.json")
        self.pooling = pooling.get("pooling_mode") or _old_mode(pooling)
        self.include_prompt: bool = pooling.get("include_prompt", True)
        modules = self._read("modules.json")
        self.normalize = any(module["type"].endswith(".Normalize") for module in modules)
        self.dense = [self.folder / module["path"] for module in modules if module["type"].endswith(".Dense")]
        blocks = [self.folder / module["path"] for module in modules if module["type"].endswith(".LatentAttention")]
        self.latent: Path | None = blocks[0] if blocks else None
        self.prompts: dict[str, str] = self._read("config_sentence_transformers.json")["prompts"]
        # The prompts once more, for programs with a tokenizer of their own: in `prompts` a mark that the directory's
        # tokenizer understands may stand for what the template has there.
        prefixes = self._read("llm2enc.json").get("prefixes", self.prompts)
        self.prefixes: dict[str, str] = {name: prefix for name, prefix in prefixes.items() if prefix is not None}
        settings = self._read("sentence_bert_config.json")
        self.limit: int = settings["max_seq_length"]
        self.attention: str | None = settings.get("model_args", {}).get("attn_implementation")

    def pad_token(self) -> str:
        token = self._read("tokenizer_config.json")["pad_token"]
        return token["content"] if isinstance(token, dict) else token

    def _read(self, name: str):
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


Embed = Callable[[str, list[str], str], np.ndarray]
"""(prompt, texts, side) -> vectors (B, D) of one batch; NaN for a text that the engine cannot take."""
Ids = Callable[[str], "list[int] | None"]
"""Prompt and text in one string -> the token ids that the engine reads; None if it cannot take the text."""


def answer(job: Job, version: str, embed: Embed, ids: Ids, *, notes: list[str], normalizes: bool) -> None:
    """Do every run and write the answer.

    notes       how the engine was asked, where that is not what everybody would do
    normalizes  whether the vectors come in the length that the directory promises
    """
    arrays, read = {}, {}
    for number, run in enumerate(job.runs):
        prompt = job.prompts.get(run["prompt"])
        if prompt is None:
            continue
        batches = [embed(prompt, [job.texts[index] for index in batch], run["side"]) for batch in run["batches"]]
        arrays[f"vectors{number}"] = np.concatenate(batches).astype(np.float32)
        if run["prompt"] not in read:
            read[run["prompt"]] = [ids(prompt + text) for text in job.texts]
    missing = sorted({run["prompt"] for run in job.runs} - job.prompts.keys())
    about = {"version": version, "notes": notes, "missing": missing, "normalizes": normalizes, "ids": read}
    np.savez(sys.argv[2], about=np.array(json.dumps(about)), **arrays)


def padded(rows: list[list[int]], pad: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids and attention mask (B, S) int64 of texts of different length."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[number, place], mask[number, place] = row, 1
    return ids, mask


def pooled(job: Job, states: np.ndarray, mask: np.ndarray, skipped: int) -> np.ndarray:
    """Vectors (B, D) of states (B, S, D), as 1_Pooling/config.json says, through each Dense, of unit length if there is a
    Normalize.

    skipped  tokens of the prompt that are not pooled
    """
    vectors = []
    for row, real in zip(states, mask.astype(bool), strict=True):
        text = row[real]
        kept = text[skipped:]
        if job.pooling == "mean":
            vectors.append(kept.mean(axis=0))
        elif job.pooling == "weightedmean":  # weights count from the first token, also if it is left out
            weights = np.arange(1, len(text) + 1)[skipped:, None]
            vectors.append((kept * weights).sum(axis=0) / weights.sum())
        elif job.pooling in ("lasttoken", "cls"):
            vectors.append(kept[-1 if job.pooling == "lasttoken" else 0])
        else:
            raise ValueError(f"1_Pooling/config.json asks for {job.pooling!r}, which no directory of llm2enc does")
    found = np.stack(vectors)
    for folder in job.dense:
        weights = load_file(folder / "model.safetensors")
        found = found @ weights["linear.weight"].T + weights.get("linear.bias", 0)
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["activation_function"]
        found = np.tanh(found) if kind.endswith(".Tanh") else found
    return found / np.linalg.norm(found, axis=1, keepdims=True) if job.normalize else found


def _old_mode(pooling: dict) -> str:
    """The mode in the schema of sentence-transformers before release 6: one key for each."""
    names = {"cls_token": "cls", "mean_tokens": "mean", "weightedmean_tokens": "weightedmean", "lasttoken": "lasttoken"}
    chosen = [mode for name, mode in names.items() if pooling.get(f"pooling_mode_{name}")]
    return "+".join(chosen) or "nothing"


def unpooled(job: Job, prompt: str, encode: Callable[[str], list[int]], special: set[int]) -> int:
    """How many tokens of a prompt are not pooled, by the rule of sentence-transformers: special tokens in front counted,
    one behind not."""
    if job.include_prompt or not prompt:
        return 0
    ids = encode(prompt)
    return len(ids) - (ids[-1] in special)
