"""Any encoder on disk or on the hub, behind one face: ours, and those of sentence-transformers."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from llm2enc.encoder import Encoder
from llm2enc.evaluation.tasks import TextEncoder


class Opened(TextEncoder, Protocol):
    """An encoder that can say what its vectors depend on."""

    def fingerprint(self) -> str:
        """Equal for two encoders that give the same vectors."""
        ...

    def reading(self, *, instruction: str | None = None, prompt_name: str | None = None) -> str:
        """How a text is read that is encoded with these keywords; equal for two calls that give equal vectors."""
        ...

    def count_tokens(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> int:
        """Tokens that the model reads to encode the texts."""
        ...


def open_encoder(name: str) -> Opened:
    """The encoder of a directory, of a run's folder, or of a hub id.

    raises  ValueError if the directory holds no encoder, or sentence-transformers is needed and not installed
    """
    folder = Path(name)
    for place in (folder, folder / "model"):
        if (place / "llm2enc.json").is_file():
            return Encoder.load(place)
    if folder.is_dir() and not (folder / "modules.json").is_file():
        raise ValueError(
            f"{name} holds no encoder: neither llm2enc.json nor modules.json of sentence-transformers. For a causal "
            "language model: `llm2enc compare` measures it as it is, `llm2enc convert DIR --training-free` makes an "
            "encoder of it"
        )
    return SentenceTransformerEncoder(name)


class SentenceTransformerEncoder:
    """A model of sentence-transformers. Prompts are its own; an instruction is given in E5's form, `Instruct: ...`."""

    def __init__(self, name: str):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise ValueError(
                f"{name} is opened by sentence-transformers, which is not installed: pip install 'llm2enc[serve]'"
            ) from None
        self.model = SentenceTransformer(name)

    def encode(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> np.ndarray:
        prompt = self.reading(instruction=instruction, prompt_name=prompt_name)
        return self.model.encode(list(texts), prompt=prompt, convert_to_numpy=True, show_progress_bar=False)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr([self.model, self.model.max_seq_length]).encode())
        for module in self.model:
            digest.update(json.dumps(getattr(module, "get_config_dict", dict)(), default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(_bytes()).numpy().data)
        return digest.hexdigest()

    def reading(self, *, instruction: str | None = None, prompt_name: str | None = None) -> str:
        """The prompt that is put before a text."""
        if instruction:
            return f"Instruct: {instruction}\nQuery: "
        return (self.model.prompts or {}).get(prompt_name or "document") or ""

    def count_tokens(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> int:
        prompt = self.reading(instruction=instruction, prompt_name=prompt_name)
        ids = self.model.tokenizer([prompt + text for text in texts])["input_ids"]
        limit = self.model.max_seq_length or max(map(len, ids))
        return sum(min(len(row), limit) for row in ids)


def _bytes():
    import torch

    return torch.uint8
