"""LLM2Vec 0.2.3 as a worker of the benchmarks: `LLM2Vec.encode`, and a step of `MistralBiForMNTP`.

LLM2Vec pools the tokens after the instruction and leaves out special tokens. Where the tokenizer adds none and there is
no instruction, that is the plain mean over all tokens, so its own `skip_instruction=True` is kept.
"""

from collections.abc import Callable

import numpy as np
import torch
from jobs import fill_adapter, gradients, read

Result = dict[str, np.ndarray]
LORA_RANK, LORA_ALPHA = 16, 32  # LLM2Vec's own: alpha is twice the rank
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def prepare(job: dict) -> Callable[[], Result]:
    """A function that runs the job's task once and returns what has to be equal between tools."""
    tasks = {"encode": prepare_encode, "mntp": prepare_mntp}
    if job["task"] not in tasks:
        raise ValueError(f"LLM2Vec has no task {job['task']!r} here; give one of {', '.join(tasks)}")
    return tasks[job["task"]](job)


def prepare_encode(job: dict) -> Callable[[], Result]:
    """`LLM2Vec.encode` of the texts: {"vectors": (B, D)}, float32 and of unit length."""
    from llm2vec import LLM2Vec

    # Above `doc_max_length` (400) LLM2Vec drops whole words and joins the rest by single spaces. At `max_length` the
    # tokenizer cuts first, so every tool sees the same tokens.
    limits = {"max_length": job["max_tokens"], "doc_max_length": job["max_tokens"]}
    dtype = getattr(torch, job["dtype"])
    model = LLM2Vec.from_pretrained(job["model"], pooling_mode="mean", torch_dtype=dtype, **limits)
    model.tokenizer.model_input_names = ["input_ids", "attention_mask"]  # its decoder refuses token_type_ids
    texts = read(job["texts"])

    def run() -> Result:
        vectors = model.encode(texts, batch_size=job["batch_size"], show_progress_bar=False)  # (B, D) float32
        return {"vectors": torch.nn.functional.normalize(vectors, dim=-1).numpy()}

    return run


def prepare_mntp(job: dict) -> Callable[[], Result]:
    """A forward and a backward pass: {"loss": (1,), "gradient:<name>": array} of a LoRA adapter."""
    from llm2vec.models import MistralBiForMNTP

    model = MistralBiForMNTP.from_pretrained(job["model"], torch_dtype=getattr(torch, job["dtype"]))
    # LLM2Vec leaves the head trainable; the tools are compared with a frozen one, which spares LLM2Vec its gradient.
    model.lm_head.requires_grad_(False)
    _add_adapter(model, job["adapter"])
    model.train()
    blocks = np.load(job["blocks"])
    batch = {name: torch.from_numpy(blocks[name]) for name in ("input_ids", "labels")}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])  # as its data collator gives one

    def run() -> Result:
        model.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        trained = gradients(model.get_model_for_peft().named_parameters())
        return {"loss": loss.detach().numpy().reshape(1), **trained}

    return run


def _add_adapter(model: torch.nn.Module, weights: str) -> None:
    """Put LoRA on every linear of the decoder, as LLM2Vec's scripts do, with known values in A and B."""
    from peft import LoraConfig, get_peft_model

    # Dropout would make the tools differ; it is cheap, so leaving it out favours nobody.
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=LINEARS, lora_dropout=0.0, bias="none")
    model.set_model_for_peft(get_peft_model(model.get_model_for_peft(), config))
    fill_adapter(model.get_model_for_peft().named_parameters(), weights)
