"""The directory in sentence-transformers, by its own `encode`."""

from typing import Any

import numpy as np
import sentence_transformers
from reference import Job, answer
from sentence_transformers import SentenceTransformer


def main() -> None:
    job = Job()
    choice = {"dtype": "float32", "use_safetensors": True}
    model: Any = SentenceTransformer(str(job.folder), device="cpu", trust_remote_code=job.trusted, model_kwargs=choice)
    job.prompts = model.prompts
    own_side = model.tokenizer.padding_side
    read = getattr(model, "preprocess", None) or model.tokenize  # the name before release 5.4

    def embed(prompt: str, texts: list[str], side: str):
        model.tokenizer.padding_side = side or own_side
        return model.encode(texts, prompt=prompt, batch_size=len(texts), show_progress_bar=False)

    def ids(text: str) -> list[int]:
        return read([text])["input_ids"][0].tolist()

    answer(job, sentence_transformers.__version__, embed, ids, notes=truncation(model, job.texts[:8]), normalizes=True)


def truncation(model: SentenceTransformer, texts: list[str]) -> list[str]:
    """What to add to `truncate_dim`, which cuts behind the Normalize module; nothing for a model without one."""
    width = len(model.encode(texts[0], show_progress_bar=False))
    if type(model[-1]).__name__ != "Normalize" or width < 2:
        return []
    lengths = np.linalg.norm(model.encode(texts, truncate_dim=width // 2, show_progress_bar=False), axis=1)
    return [
        f"`truncate_dim={width // 2}` gives vectors of length {lengths.min():.2f} to {lengths.max():.2f}: add "
        "`normalize_embeddings=True`"
    ]


main()
