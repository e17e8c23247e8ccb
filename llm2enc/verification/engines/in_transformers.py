"""The directory in transformers alone: AutoModel and AutoTokenizer; prompt, pooling and length by hand."""

import torch
import transformers
from reference import Job, answer, padded, pooled, unpooled
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
        skipped = unpooled(job, prompt, ids, set(tokenizer.all_special_ids))
        return pooled(job, states.numpy(), mask, skipped)

    notes = [f"opened with {name}={value!r}, without which it gives other vectors" for name, value in choice.items()]
    answer(job, transformers.__version__, embed, ids, notes=notes, normalizes=True)


main()
