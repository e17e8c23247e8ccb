"""A file of GGUF in llama.cpp, by llama-cpp-python. Pooling and tokenizer are the file's own."""

import llama_cpp  # pyright: ignore[reportMissingImports]  # not for every machine
import numpy as np
from reference import Job, answer


def main() -> None:
    job = Job()
    job.prompts = job.prefixes
    # llama.cpp aborts the process if a text does not fit into n_ubatch, so a batch must hold the longest.
    room = max(job.limit, 512)
    model = llama_cpp.Llama(
        job.file, embedding=True, n_ctx=room, n_batch=room, n_ubatch=room, pooling_type=-1, verbose=False
    )

    def ids(text: str) -> list[int] | None:
        found = model.tokenize(text.encode("utf-8"))
        return found if len(found) <= job.limit else None

    def embed(prompt: str, texts: list[str], side: str) -> np.ndarray:
        kept = [number for number, text in enumerate(texts) if ids(prompt + text) is not None]
        vectors = np.full((len(texts), model.n_embd()), np.nan, dtype=np.float32)
        if kept:
            vectors[kept] = np.asarray(model.embed([prompt + texts[number] for number in kept], normalize=False))
        return vectors

    long = f"llama.cpp cuts no text at the model's limit: cut texts to {job.limit} tokens before"
    answer(job, llama_cpp.__version__, embed, ids, notes=[long], normalizes=False)


main()
