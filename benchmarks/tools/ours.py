"""llm2enc, called as its stages and its users call it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jobs import fill_adapter, gradients, read

from llm2enc import Encoder
from llm2enc.data import Pair, RowBatch
from llm2enc.model import quiet
from llm2enc.recipe import (
    ContrastiveStage,
    DocstringsData,
    InputSpec,
    LoraSpec,
    LossSpec,
    MntpStage,
    ModelSpec,
    SimcseLossSpec,
    SimcseStage,
)
from llm2enc.training import BatchPartition
from llm2enc.training.objectives import contrastive, mntp, simcse
from llm2enc.training.objectives.token_loss import token_batch

Run = Callable[[], dict[str, np.ndarray]]
TEXT = [{"slot": "text", "pool": True}]
# What a stage must have, and what a benchmark does not use: it makes its batches itself and takes no optimizer step.
UNUSED = {"data": (DocstringsData(kind="docstrings"),), "steps": 1, "lr": 1e-4, "precision": "float32"}


def prepare(job: dict[str, Any]) -> Run:
    """The job as a function; everything is loaded."""
    quiet()
    return TASKS[job["task"]](job)


def encode(job: dict[str, Any]) -> Run:
    """Vectors of texts, from the exported directory; `shipped` leaves the number type to the loader."""
    encoder = Encoder.load(job["model"], **({} if job["dtype"] == "shipped" else {"dtype": job["dtype"]}))
    texts = read(job["texts"])
    return lambda: {"vectors": encoder.encode(texts)}


def echo(job: dict[str, Any]) -> Run:
    """Vectors of texts read twice by a causal model; the second occurrence is pooled."""
    parts = [{"literal": job["before"]}, {"slot": "text"}, {"literal": job["between"]}, *TEXT]
    encoder = from_causal_lm(
        job, "causal", parts, max_tokens=4096, max_text_tokens=job["max_tokens"], tokenize="pieces"
    )
    texts = read(job["texts"])
    return lambda: {"vectors": encoder.encode(texts)}


def causal(job: dict[str, Any]) -> Run:
    """Vectors of texts read once by the same causal model."""
    encoder, texts = from_causal_lm(job, "causal", TEXT, max_tokens=job["max_tokens"]), read(job["texts"])
    return lambda: {"vectors": encoder.encode(texts)}


def mntp_step(job: dict[str, Any]) -> Run:
    """Loss and gradients of one masked next-token step with LoRA."""
    encoder = from_causal_lm(job, "bidirectional", TEXT)
    adapt(encoder, job["adapter"])
    blocks = np.load(job["blocks"])
    targets = np.full(blocks["labels"].shape, -100)
    targets[:, :-1] = blocks["labels"][:, 1:]  # a token is predicted from the state before it
    stage = MntpStage(objective="mntp", batch_size=len(targets), mask_rate=0.2, mask_policy="all", **stage_fields(job))
    partition = BatchPartition(len(targets), stage.rng_shards, 0, 0)

    def backward() -> dict[str, torch.Tensor]:
        return mntp.backward(encoder, token_batch(blocks["input_ids"], targets, "benchmark", partition), stage)

    return step(encoder, backward)


def contrastive_step(job: dict[str, Any]) -> Run:
    """Loss and gradients of one contrastive step; tokenizing is part of it."""
    encoder = from_causal_lm(job, "bidirectional", TEXT)
    encoder.backbone.train_everything(head=False)
    if job.get("adapter"):
        adapt(encoder, job["adapter"])
    pairs = [Pair(query, document, (), "", "") for query, document in read(job["pairs"])]
    stage = ContrastiveStage(
        objective="contrastive", batch_size=len(pairs), loss=LossSpec(temperature=1 / job["scale"]), hard_negatives=0,
        max_tokens=job["max_tokens"], **stage_fields(job),
    )  # fmt: skip

    def backward() -> dict[str, torch.Tensor]:
        rows = RowBatch(0, pairs, "benchmark", in_batch_negatives=True)
        return contrastive.backward(encoder, contrastive.collate(rows, stage, encoder.input_format, 0), stage)

    return step(encoder, backward)


def simcse_step(job: dict[str, Any]) -> Run:
    """Loss and gradients of one SimCSE step. The first run is without dropout, so that its results can be compared."""
    encoder = from_causal_lm(job, "bidirectional", TEXT)
    encoder.backbone.train_everything(head=False)
    texts = read(job["texts"])
    stage = SimcseStage(
        objective="simcse", batch_size=len(texts), loss=SimcseLossSpec(temperature=1 / job["scale"]),
        attention_dropout=job["dropout"], **stage_fields(job),
    )  # fmt: skip
    objectives = iter([contrastive])  # the same computation, without SimCSE's refusal to run without dropout

    def backward() -> dict[str, torch.Tensor]:
        rows = RowBatch(0, texts, "benchmark", in_batch_negatives=True)
        batch = simcse.collate(rows, stage, encoder.input_format, 0)
        metrics = next(objectives, simcse).backward(encoder, batch, stage)
        encoder.backbone.set_attention_dropout(job["dropout"])
        return metrics

    return step(encoder, backward)


TASKS = {
    "encode": encode, "echo": echo, "causal": causal, "mntp": mntp_step, "contrastive": contrastive_step,
    "simcse": simcse_step,
}  # fmt: skip


def from_causal_lm(job: dict[str, Any], attention: str, parts: list[dict[str, Any]], **spec: Any) -> Encoder:
    input_spec = InputSpec.model_validate({"query": parts, "document": parts, **spec}, strict=False)
    model = ModelSpec(name=job["model"], attention=attention, dtype=job["dtype"])
    return Encoder.from_causal_lm(model, input_spec)


def stage_fields(job: dict[str, Any]) -> dict[str, Any]:
    """The fields that bound memory, as the job has them, and those that are not used."""
    own = {name: job[name] for name in ("micro_batch_tokens", "activation_tokens", "logit_rows") if name in job}
    return {**UNUSED, **own}


def adapt(encoder: Encoder, weights: str) -> None:
    """A LoRA adapter of r 16 on every linear layer, with the given weights."""
    encoder.backbone.add_lora(LoraSpec(r=16, alpha=32, dropout=0.0), seed=0)
    fill_adapter(encoder.backbone.named_parameters(), weights)


def step(encoder: Encoder, backward: Callable[[], dict[str, torch.Tensor]]) -> Run:
    """A training step without its optimizer: gradients are dropped, computed and returned."""
    encoder.train()

    def run() -> dict[str, np.ndarray]:
        encoder.zero_grad(set_to_none=True)
        loss = backward()["loss"]
        return {"loss": loss.reshape(1).numpy(), **gradients(encoder.backbone.named_parameters())}

    return run
