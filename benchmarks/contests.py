"""What is measured: our job beside a peer's on the same weights, texts and truncation, and what must come out.

Gates and stretches are ratios: seconds of the peer / ours (higher is better), memory of ours / the peer's (lower is
better), or plain numbers where a row says so.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import material

Metric = Literal["speed", "memory", "cost", "ceiling", "growth", "flat"]
"""speed: peer's seconds / ours. cost: ours / the peer's. memory: our peak / the peer's. ceiling: share of the measured
rate of the model's matrix products. growth: our peak at the larger job minus that at the smaller one, MB, without the
output. flat: the same as a ratio, without vectors and logits."""
Agreement = Literal["vectors", "gradients", "cosine", "none"]
LOWER_IS_BETTER = {"memory", "cost", "growth", "flat"}

ECHO = {"before": "Rewrite the sentence: ", "between": "\nThe rewritten sentence: "}
SCALE = 20.0
CHUNK = 2048  # tokens per forward pass on a CPU: what stays in its caches


@dataclass(frozen=True)
class Claim:
    """One row of the table."""

    name: str
    metric: Metric
    gate: float
    stretch: float


@dataclass(frozen=True)
class Contest:
    """Two jobs that must agree, and the rows that come out of their times and peaks."""

    peer: str  # tool
    ours_job: dict[str, Any]
    peer_job: dict[str, Any]
    claims: tuple[Claim, ...]
    agreement: Agreement
    tolerance: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    rounds: int | None = None  # where the default would take too long


class Material:
    """The files of the jobs, made when they are first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    def lm(self, shape: str) -> str:
        return self._once(f"{shape}-lm", lambda path: material.causal_lm(path, shape))

    def encoder(self, shape: str, dtype: str = "float32") -> str:
        return self._once(f"{shape}-{dtype}", lambda path: material.encoder(path, Path(self.lm(shape)), dtype))

    def json(self, name: str, rows: Callable[[], list[Any]]) -> str:
        return self._once(f"{name}.json", lambda path: path.write_text(json.dumps(rows())))

    def texts(self, count: int) -> str:
        return self.json(f"lognormal-all-{count}", lambda: material.texts(count, seed=9))

    def short(self) -> str:
        return self.json("short", lambda: material.texts(512, seed=3, kind="short"))

    def pairs(self, count: int) -> str:
        return self.json(f"pairs-{count}", lambda: material.pairs(count, seed=5))

    def sample(self, blocks: int, size: int = 32) -> str:
        """Blocks of `size` neighbours of 5,000 log-normal texts."""
        name = f"lognormal-{blocks}x{size}"
        return self.json(name, lambda: material.neighbours(material.texts(5000, seed=2), blocks, size))

    def corpus(self) -> dict[str, float]:
        """Facts about those 5,000 texts."""
        path = self.json("lognormal-corpus", lambda: material.texts(5000, seed=2))
        return material.statistics(json.loads(Path(path).read_text()), self.token_counts(path, 512))

    def arrays(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> str:
        return self._once(f"{name}.npz", lambda path: np.savez(path, **make()))

    def adapter(self, shape: str) -> str:
        """Random LoRA weights; both factors differ from zero, so that both get a gradient."""
        return self.arrays(f"{shape}-adapter", lambda: material.adapter(shape))

    def blocks(self) -> str:
        """Four blocks of 256 tokens, a fifth of them masked."""
        return self.arrays("blocks", lambda: material.mntp_blocks(Path(self.lm("m256")), 4, 256, rate=0.2, seed=4))

    def token_counts(self, texts: str, limit: int) -> np.ndarray:
        return material.token_counts(Path(self.lm("m256")), texts, limit)

    def _once(self, name: str, make: Callable[[Path], Any]) -> str:
        path = self.folder / name
        if not path.exists():
            partial = self.folder / f"partial-{name}"
            self.folder.mkdir(parents=True, exist_ok=True)
            make(partial)
            partial.rename(path)
        return str(path)


def contests(files: Material, quick: bool) -> dict[str, Callable[[], Contest]]:
    """Every contest by key, made (with its files) when called; `quick` measures fewer texts, pairs and rounds."""
    every = {**_encoding(files, quick), **_training(files, quick), **_echo(files, quick), **_memory(files, quick)}
    return every if quick else {**every, **_others(files)}


def _encoding(files: Material, quick: bool) -> dict[str, Callable[[], Contest]]:
    def contest(
        shape: str, texts: str, dtype: str, agreement: Agreement, *claims: Claim, stored: str = "float32"
    ) -> Contest:
        job = {"task": "encode", "model": files.encoder(shape, stored), "texts": texts, "dtype": dtype}
        counts = files.token_counts(texts, 512)
        facts = {"shape": shape, "flops": material.flops(shape, counts)}
        return Contest("sentence_transformers", job, job, claims, agreement, 1e-5, facts)

    many, few = (4, 2) if quick else (12, 3)

    def one() -> str:  # bfloat16 may be emulated: few texts are enough, and slow enough
        return files.sample(1, size=8 if quick else 32)

    return {
        "encode-256": lambda: contest(
            "m256", files.sample(many), "float32", "vectors", Claim("encode fp32, hidden 256", "speed", 1.40, 1.75)
        ),
        "encode-512": lambda: contest(
            "m512", files.sample(few), "float32", "vectors",
            Claim("encode fp32, hidden 512", "speed", 1.25, 1.45),
            Claim("share of the GEMM ceiling, hidden 512, fp32", "ceiling", 0.75, 0.87),
        ),
        "encode-short": lambda: contest(
            "m256", files.short(), "float32", "vectors",
            Claim("encode fp32, hidden 256, texts of 17 tokens", "speed", 1.0, 1.2),
        ),
        "encode-256-bf16": lambda: contest(
            "m256", one(), "bfloat16", "cosine", Claim("encode bf16, hidden 256", "speed", 1.50, 2.0)
        ),
        "encode-512-bf16": lambda: contest(
            "m512", one(), "bfloat16", "cosine",
            Claim("encode bf16, hidden 512", "speed", 1.45, 1.7),
            Claim("share of the GEMM ceiling, hidden 512, bf16", "ceiling", 0.75, 0.88),
        ),
        "encode-shipped": lambda: contest(
            "m256", files.sample(few), "shipped", "vectors",
            Claim("encode as shipped, stored in fp32", "speed", 2.6, 3.2),
        ),
        "encode-shipped-bf16": lambda: contest(
            "m256", one(), "shipped", "cosine", Claim("encode as shipped, stored in bf16", "speed", 2.6, 3.2),
            stored="bfloat16",
        ),
    }  # fmt: skip


def _training(files: Material, quick: bool) -> dict[str, Callable[[], Contest]]:
    def mntp(shape: str, name: str, speed: tuple[float, float], memory: tuple[float, float], **bounds: int) -> Contest:
        job = {**_mntp_job(files, shape), **bounds}
        claims = (
            Claim(f"MNTP step, vocabulary {name}", "speed", *speed),
            Claim(f"MNTP step memory, vocabulary {name}", "memory", *memory),
        )
        return Contest("hugging_face", job, job, claims, "gradients", 1e-6)

    def contrastive(count: int, what: str = "", rounds: int | None = None, **changes: Any) -> Contest:
        ours = {**_contrastive_job(files, count), **changes}
        name = f"contrastive step, {count} pairs{what}"
        claims = (
            Claim(name, "speed", 2.4, 3.5 if "adapter" in changes else 3.2),
            Claim(f"{name}, memory", "memory", 0.30, 0.20),
        )
        peer = {**ours, "model": files.encoder("m256")}
        return Contest("sentence_transformers", ours, peer, claims, "gradients", 1e-5, rounds=rounds)

    def simcse() -> Contest:
        job = {
            "task": "simcse", "texts": files.json("sentences", lambda: material.texts(64, seed=7, kind="sentence")),
            "dtype": "float32", "scale": SCALE, "dropout": 0.1, "micro_batch_tokens": CHUNK, "activation_tokens": 1_000_000,
        }  # fmt: skip
        ours, peer = {**job, "model": files.lm("m256")}, {**job, "model": files.encoder("m256"), "max_tokens": 256}
        claims = (Claim("SimCSE step, 64 sentences", "speed", 1.5, 2.2),)
        return Contest("sentence_transformers", ours, peer, claims, "gradients", 1e-5)

    found = {
        "mntp-32k": lambda: mntp("m512", "32k", (1.6, 2.2), (0.65, 0.45)),
        "mntp-128k": lambda: mntp("m512-128k", "128k", (2.6, 3.5), (0.35, 0.25), micro_batch_tokens=512, logit_rows=64),
        "contrastive-64": lambda: contrastive(64),
        "contrastive-256": lambda: contrastive(256, rounds=2),
        "contrastive-64-lora": lambda: contrastive(64, ", LoRA", adapter=files.adapter("m256")),
        "simcse": simcse,
    }
    return {key: make for key, make in found.items() if not (quick and key == "contrastive-256")}


def _others(files: Material) -> dict[str, Callable[[], Contest]]:
    """Tools that need an environment of their own."""

    def encode(peer: str, texts: str, claim: Claim, rounds: int | None = None) -> Contest:
        job = {"task": "encode", "texts": texts, "dtype": "float32", "max_tokens": 512, "batch_size": 32}
        ours, theirs = {**job, "model": files.encoder("m256")}, {**job, "model": files.lm("m256")}
        return Contest(peer, ours, theirs, (claim,), "vectors", 1e-5, rounds=rounds)

    def tevatron() -> Contest:
        claims = (
            Claim("contrastive step, 64 pairs, beside Tevatron", "speed", 2.4, 3.3),
            Claim("contrastive step, 64 pairs, memory beside Tevatron", "memory", 0.30, 0.20),
        )
        job = _contrastive_job(files, 64)
        return Contest("tevatron", job, job, claims, "gradients", 1e-5, rounds=3)

    def llm2vec_mntp() -> Contest:
        claims = (
            Claim("MNTP step, vocabulary 32k, beside LLM2Vec", "speed", 1.6, 2.2),
            Claim("MNTP step memory, vocabulary 32k, beside LLM2Vec", "memory", 0.65, 0.45),
        )
        job = _mntp_job(files, "m512")
        return Contest("llm2vec", job, job, claims, "gradients", 1e-6)

    return {
        "llm2vec": lambda: encode(
            "llm2vec", files.sample(6), Claim("encode fp32, hidden 256, beside LLM2Vec", "speed", 1.6, 2.1), rounds=3
        ),
        "llm2vec-mntp": llm2vec_mntp,
        "gritlm": lambda: encode(
            "gritlm",
            files.texts(256),
            Claim("encode fp32, hidden 256, beside GritLM (given order)", "speed", 4, 9),
            rounds=2,
        ),
        "tevatron": tevatron,
    }


def _mntp_job(files: Material, shape: str) -> dict[str, Any]:
    return {
        "task": "mntp", "model": files.lm(shape), "blocks": files.blocks(), "adapter": files.adapter("m512"),
        "dtype": "float32", "micro_batch_tokens": 1024, "logit_rows": 128,
    }  # fmt: skip


def _contrastive_job(files: Material, count: int) -> dict[str, Any]:
    """A cached step: the memory of one and a half chunks is spent on graphs that are kept."""
    return {
        "task": "contrastive", "model": files.lm("m256"), "pairs": files.pairs(count), "dtype": "float32",
        "scale": SCALE, "max_tokens": 256, "micro_batch": 32, "micro_batch_tokens": 1024, "activation_tokens": 1536,
    }  # fmt: skip


def _echo(files: Material, quick: bool) -> dict[str, Callable[[], Contest]]:
    def contest(peer: str, task: str, claim: Claim, agreement: Agreement) -> Contest:
        count = 48 if quick else 96
        job = {
            "task": "echo", "model": files.lm("m256"), "dtype": "float32", "max_tokens": 512, **ECHO,
            "texts": files.json(f"echo-{count}", lambda: material.texts(count, seed=8)),
        }  # fmt: skip
        return Contest(peer, job, {**job, "task": task}, (claim,), agreement, 1e-6)

    return {
        "echo": lambda: contest(
            "hugging_face", "echo", Claim("Echo, beside padded batches in given order", "speed", 3.0, 4.0), "vectors"
        ),
        "echo-cost": lambda: contest(
            "ours", "causal", Claim("Echo over own classical encode", "cost", 2.2, 2.05), "none"
        ),
    }


def _memory(files: Material, quick: bool) -> dict[str, Callable[[], Contest]]:
    def encode(few: int, many: int) -> Contest:
        jobs = [
            {"task": "encode", "model": files.encoder("m64"), "dtype": "float32", "texts": files.texts(count)}
            for count in (few, many)
        ]
        claim = Claim(f"encode, growth of peak memory from {few:,} to {many:,} texts, MB", "growth", 64, 16)
        facts = {"bytes_apart": (many - few) * 64 * 4}  # of the output, which is not counted
        return Contest("ours", jobs[1], jobs[0], (claim,), "none", facts=facts, rounds=1)

    def contrastive(few: int, many: int) -> Contest:
        jobs = [
            {
                "task": "contrastive", "model": files.lm("m256"), "dtype": "float32", "scale": SCALE, "max_tokens": 256,
                "pairs": files.pairs(count), "micro_batch_tokens": CHUNK, "activation_tokens": 0,
            }
            for count in (few, many)
        ]  # fmt: skip
        claim = Claim(f"contrastive step, peak memory of {many:,} pairs over {few:,}", "flat", 1.10, 1.03)
        facts = {"bytes": [vectors_and_logits(count, 256) for count in (many, few)]}
        return Contest("ours", jobs[1], jobs[0], (claim,), "none", facts=facts, rounds=1)

    return {
        "memory-encode": lambda: encode(5_000, 15_000 if quick else 100_000),
        "memory-contrastive": lambda: contrastive(64, 128 if quick else 1024),
    }


def vectors_and_logits(pairs: int, width: int) -> int:
    """Bytes of float32 vectors and logits of a contrastive step, each with a copy and a gradient."""
    return 4 * 3 * (2 * pairs * width + pairs * pairs)
