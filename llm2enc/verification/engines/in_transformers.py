"""The directory in transformers alone: AutoModel and AutoTokenizer; prompt, pooling and length by hand."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from reference import Job, answer, padded, pooled, unpooled
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer


def main() -> None:
    job = Job()
    tokenizer = AutoTokenizer.from_pretrained(job.folder, trust_remote_code=False)
    choice = {"attn_implementation": job.attention} if job.attention else {}
    safe = {"use_safetensors": True, "trust_remote_code": False}
    model = AutoModel.from_pretrained(job.folder, dtype=torch.float32, **safe, **choice).eval()

    def ids(text: str) -> list[int]:
        return tokenizer(text, truncation=True, max_length=job.limit)["input_ids"]

    def embed(prompt: str, texts: list[str], side: str):
        rows, mask = padded([ids(prompt + text) for text in texts], tokenizer.pad_token_id, side)
        with torch.no_grad():
            states = model(input_ids=torch.from_numpy(rows), attention_mask=torch.from_numpy(mask)).last_hidden_state
        if job.latent:
            states = attended(job.latent, states)
        skipped = unpooled(job, prompt, ids, set(tokenizer.all_special_ids))
        return pooled(job, states.numpy(), mask, skipped)

    notes = [f"opened with {name}={value!r}, without which it gives other vectors" for name, value in choice.items()]
    answer(job, transformers.__version__, embed, ids, notes=notes, normalizes=True)


def attended(folder: Path, states: torch.Tensor) -> torch.Tensor:
    """(B, S, D) the states after the latent attention of `folder`, written out."""
    w, heads = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())["heads"]
    width = states.size(-1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    queries = (norm(states, "norm_states") @ w["to_queries.weight"].T).unflatten(-1, (heads, width))
    known = (norm(w["latents"], "norm_latents") @ w["to_keys_and_values.weight"].T).unflatten(-1, (2, heads, width))
    scores = torch.einsum("bshd,mhd->bshm", queries, known[:, 0]) / width**0.5
    found = torch.einsum("bshm,mhd->bshd", scores.softmax(-1), known[:, 1])
    states = states + found.flatten(-2) @ w["to_out.weight"].T
    wide = norm(states, "norm_attended") @ w["widen.weight"].T + w["widen.bias"]
    values, gates = wide[..., : 4 * width], wide[..., 4 * width :]
    return states + (values * F.gelu(gates)) @ w["narrow.weight"].T + w["narrow.bias"]


main()
