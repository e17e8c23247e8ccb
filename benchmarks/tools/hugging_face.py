"""Plain transformers: what published code does. Logits at every position, padded batches in the given order."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jobs import fill_adapter, gradients, read
from transformers import AutoModelForCausalLM, AutoTokenizer

Run = Callable[[], dict[str, np.ndarray]]


def prepare(job: dict[str, Any]) -> Run:
    """The job as a function; everything is loaded."""
    return {"mntp": mntp, "echo": echo}[job["task"]](job)


def mntp(job: dict[str, Any]) -> Run:
    """Loss and LoRA gradients of masked next-token prediction, with logits of all tokens."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    model.config.is_causal = False
    for module in model.modules():
        if isinstance(getattr(module, "is_causal", None), bool):
            module.is_causal = False
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
    model.train()
    peft = get_peft_model(model.model, lora)
    fill_adapter(peft.named_parameters(), job["adapter"])
    model.lm_head.requires_grad_(False)
    blocks = {name: torch.from_numpy(array) for name, array in np.load(job["blocks"]).items()}

    def run() -> dict[str, np.ndarray]:
        model.zero_grad(set_to_none=True)
        loss = model(input_ids=blocks["input_ids"], labels=blocks["labels"]).loss
        loss.backward()
        return {"loss": loss.detach().reshape(1).numpy(), **gradients(peft.named_parameters())}

    return run


def echo(job: dict[str, Any]) -> Run:
    """Mean over the second occurrence of each text, 32 texts at a time, padded on the left, in the given order."""
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).model.eval()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    texts = read(job["texts"])
    before, between = (tokenizer(part, add_special_tokens=False).input_ids for part in (job["before"], job["between"]))

    def batch(rows: list[str]) -> torch.Tensor:
        ids = tokenizer(rows, add_special_tokens=False, truncation=True, max_length=job["max_tokens"]).input_ids
        whole = [before + text + between + text for text in ids]
        longest = max(map(len, whole))
        inputs = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in whole])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in whole])
        pool = torch.tensor([[0.0] * (longest - len(text)) + [1.0] * len(text) for text in ids])[:, :, None]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        states = model(input_ids=inputs, attention_mask=mask, position_ids=positions, use_cache=False)
        return (states.last_hidden_state * pool).sum(1) / pool.sum(1)

    @torch.no_grad()
    def run() -> dict[str, np.ndarray]:
        vectors = torch.cat([batch(texts[start : start + 32]) for start in range(0, len(texts), 32)])
        return {"vectors": torch.nn.functional.normalize(vectors, dim=-1).numpy()}

    return run
