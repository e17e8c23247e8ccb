"""The directory in sentence-transformers, by its own `encode`."""

from typing import Any

import sentence_transformers
from reference import Job, answer
from sentence_transformers import SentenceTransformer


def main() -> None:
    job = Job()
    choice = {"dtype": "float32", "use_safetensors": True}
    model: Any = SentenceTransformer(str(job.folder), device="cpu", trust_remote_code=False, model_kwargs=choice)
    job.prompts = model.prompts
    own_side = model.tokenizer.padding_side
    read = getattr(model, "preprocess", None) or model.tokenize  # the name before release 5.4

    def embed(prompt: str, texts: list[str], side: str):
        model.tokenizer.padding_side = side or own_side
        return model.encode(texts, prompt=prompt, batch_size=len(texts), show_progress_bar=False)

    def ids(text: str) -> list[int]:
        return read([text])["input_ids"][0].tolist()

    answer(job, sentence_transformers.__version__, embed, ids, notes=[], normalizes=True)


main()
