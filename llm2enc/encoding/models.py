"""Any encoder on disk or on the hub, behind one face: ours, and those of sentence-transformers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llm2enc.encoding.encoder import Encoder
from llm2enc.errors import InputError, explained, require
from llm2enc.storage import recover

_PIECE = 1024  # texts that are tokenized at a time
_WHENCE = ("_name_or_path", "transformers_version")  # of a configuration: says nothing of the vectors


class LoadedModel(Protocol):
    """An encoder that can say what its vectors depend on."""

    def encode(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> np.ndarray:
        """Vectors (B, D) of the texts, in their order."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest input; what goes beyond is cut."""
        ...

    @property
    def prompts(self) -> Mapping[str, str]:
        """Its instructions by name."""
        ...

    def fingerprint(self) -> str:
        """Equal for two encoders that give the same vectors."""
        ...

    def cache_key(self, *, instruction: str | None = None, prompt_name: str | None = None) -> str:
        """What a text becomes with these keywords; equal for two calls that give equal vectors."""
        ...

    def count_tokens(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> int:
        """Tokens that the model reads to encode the texts."""
        ...


def open_encoder(name: str) -> LoadedModel:
    """The encoder of a directory, of a run's folder, or of a hub id.

    raises  ValueError if the directory holds no encoder, or sentence-transformers is needed and not installed
    """
    place = find_encoder(name)
    return SentenceTransformerEncoder(name) if place is None else Encoder.load(place)


def find_encoder(name: str) -> Path | None:
    """Where an encoder of ours stands; None for what sentence-transformers opens. ValueError if it cannot be either."""
    folder = Path(name)
    for place in (folder, folder / "model"):
        if not place.exists():
            recover(place)
        if (place / "llm2enc.json").is_file():
            return place
    if not folder.is_dir() and (folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise InputError(f"{name}: no such directory; expected one with an encoder, or a hub id such as owner/name")
    if folder.is_dir() and not (folder / "modules.json").is_file():
        raise InputError(
            f"{name} holds no encoder: neither llm2enc.json nor modules.json of sentence-transformers. For a causal "
            "language model: `llm2enc compare` measures it as it is, `llm2enc convert DIR --training-free` makes an "
            "encoder of it"
        )
    return None


class SentenceTransformerEncoder:
    """A model of sentence-transformers. Prompts are its own; an instruction is given in E5's form, `Instruct: ...`."""

    def __init__(self, name: str):
        require("sentence_transformers", extra="serve")
        from sentence_transformers import SentenceTransformer

        if not Path(name).is_dir():
            _check_hub(name)
        with explained(name, "sentence-transformers opens no such model: name another, or look at its files"):
            self.model = SentenceTransformer(name, trust_remote_code=False, model_kwargs={"use_safetensors": True})
        self.max_tokens: int = self.model.max_seq_length or 2**31
        self.prompts: Mapping[str, str] = {key: prompt or "" for key, prompt in self.model.prompts.items()}
        self._routed = any(hasattr(module, "sub_modules") for module in self.model)  # other weights for queries

    def encode(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> np.ndarray:
        kwargs = self._prompt_kwargs(instruction, prompt_name)
        return self.model.encode(list(texts), **kwargs, convert_to_numpy=True, show_progress_bar=False)

    def fingerprint(self) -> str:
        import torch

        model = self.model
        digest = hashlib.sha256(repr([model, model.max_seq_length, model.truncate_dim, model.prompts]).encode())
        for module in model.modules():
            digest.update(json.dumps(_facts(module), sort_keys=True, default=str).encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def cache_key(self, *, instruction: str | None = None, prompt_name: str | None = None) -> str:
        return json.dumps(self._prompt_kwargs(instruction, prompt_name))

    def count_tokens(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> int:
        kwargs = self._prompt_kwargs(instruction, prompt_name)
        prompt, total = kwargs.pop("prompt"), 0
        for start in range(0, len(texts), _PIECE):
            read = self.model.preprocess([prompt + text for text in texts[start : start + _PIECE]], **kwargs)
            # Static embeddings come packed, without a mask.
            total += int(read["attention_mask"].sum()) if "attention_mask" in read else read["input_ids"].numel()
        return total

    def _prompt_kwargs(self, instruction: str | None, prompt_name: str | None) -> dict[str, Any]:
        """Keywords of the model's own `encode`: the prompt that is put before a text, and the route it takes."""
        prompt = (
            f"Instruct: {instruction}\nQuery: " if instruction else self.model.prompts.get(prompt_name or "document")
        )
        asks = bool(instruction) or prompt_name == "query"
        return {"prompt": prompt or ""} | ({"task": "query" if asks else "document"} if self._routed else {})


def _check_hub(name: str) -> None:
    """ValueError for a hub model that is no encoder: sentence-transformers would put mean pooling over it, silently."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        with explained(name, "give a directory that exists, or a hub id such as owner/name"):
            hf_hub_download(name, "modules.json")
    except LocalEntryNotFoundError as error:  # also an EntryNotFoundError, of a hub that does not answer
        raise InputError(f"{name}: the hub cannot be reached, and no copy of it is here ({error})") from None
    except EntryNotFoundError:
        raise InputError(
            f"{name} on the hub is no encoder (it has no modules.json); for a causal language model use `llm2enc compare` "
            "or `llm2enc convert`"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(f"{name}: no such directory, and no such model on the hub that you may read") from None


def _facts(module: Any) -> dict[str, Any]:
    """What a module of sentence-transformers or transformers does besides its weights: its settings and tokenizer."""
    facts = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
    config: Any = getattr(module, "config", None)
    if hasattr(config, "to_dict"):
        facts = facts | {"config": {key: value for key, value in config.to_dict().items() if key not in _WHENCE}}
    tokenizer: Any = getattr(module, "tokenizer", None)
    tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)  # of transformers; static embeddings have it bare
    if hasattr(tokenizer, "to_str"):
        # Truncation and padding are what the last call left behind.
        facts = facts | {"tokenizer": json.loads(tokenizer.to_str()) | {"truncation": None, "padding": None}}
    return facts
