"""Models with random weights and texts of random words: what speed depends on, and nothing that has to be fetched."""

import json
import random
from pathlib import Path
from typing import Any

import torch

from llm2enc.encoding import Encoder
from llm2enc.model import Backbone, load_tokenizer, resolve
from llm2enc.recipe import InputSpec, ModelSpec, Part
from llm2enc.text import InputFormat

# As their config.json says, with the packaged tokenizer's ids for special tokens.
REAL: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936,
        "max_position_embeddings": 40960, "rope_theta": 1e6, "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rope_theta": 5e5, "tie_word_embeddings": True,
    },
    "mistral-7b": {
        "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 14336, "vocab_size": 32000,
        "max_position_embeddings": 32768, "rope_theta": 1e6, "sliding_window": None, "tie_word_embeddings": False,
    },
}  # fmt: skip
TINY = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 96, "vocab_size": 10240, "max_position_embeddings": 512,
}  # fmt: skip
# Texts to encode, and pairs of a contrastive step: a second or a few of a fast device's time each.
TEXTS = {"qwen3-0.6b": 8192, "llama-3.2-1b": 4096, "mistral-7b": 512}
PAIRS = {"qwen3-0.6b": 256, "llama-3.2-1b": 256, "mistral-7b": 64}
DOCUMENT = (Part(special="bos"), Part(slot="text", pool=True))


def shape(name: str, rehearse: bool) -> dict[str, Any]:
    """The configuration of a real model, or a tiny one of its family."""
    return REAL[name] | (TINY if rehearse else {})


def write_model(folder: Path, values: dict[str, Any]) -> Path:
    """A directory with config.json and the packaged tokenizer, without weights."""
    from transformers import CONFIG_MAPPING

    tokenizer = packaged_tokenizer()
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    kind = values["model_type"]
    own = {key: value for key, value in values.items() if key != "model_type"}
    CONFIG_MAPPING[kind](**own, **special).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def packaged_tokenizer():
    return load_tokenizer(ModelSpec(name="pocket"))


def random_model(folder: Path, device: str, dtype: torch.dtype, seed: int = 0):
    """The causal language model of a directory's config.json, its weights drawn on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype).eval()


def encoder_of(model, max_tokens: int) -> Encoder:
    """A bidirectional encoder, mean over the text's tokens."""
    spec = InputSpec(query=DOCUMENT, document=DOCUMENT, max_tokens=max_tokens)
    return Encoder(Backbone(model, True), InputFormat(spec, packaged_tokenizer()), "mean").eval()


def texts(number: int, longest: int, seed: int = 0, median: float = 70.0) -> list[str]:
    """Texts of words from the packaged vocabulary; lengths log-normal, sigma 0.9, as those of docstrings are."""
    draw = random.Random(seed)
    words = _words()
    lengths = [max(3, min(longest, round(draw.lognormvariate(0, 0.9) * median))) for _ in range(number)]
    return [" ".join(draw.choices(words, k=length)) for length in lengths]


def _words() -> list[str]:
    """Words that are one token after a space."""
    vocabulary = json.loads((Path(resolve("pocket")) / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return sorted(token[1:] for token in vocabulary if token[:1] == "Ġ" and token[1:].isalpha() and token.isprintable())


def write_texts(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def write_pairs(path: Path, count: int, longest: int) -> tuple[Path, list[tuple[str, str, str]]]:
    """Short queries, each with a positive and a hard negative, as a file of ours and as plain triples."""
    queries = texts(count, longest, seed=1, median=12)
    positives, negatives = texts(count, longest, seed=2), texts(count, longest, seed=3)
    triples = list(zip(queries, positives, negatives, strict=True))
    rows = [{"query": query, "positive": right, "negatives": [wrong]} for query, right, wrong in triples]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path, triples


def encode_flops(config: dict[str, Any], lengths: list[int]) -> float:
    """Multiplications and additions of the matrix products of one forward pass over texts, without a language-model head.

    Per token 2 x the weights of the linear layers; per text and layer 4 x length^2 x heads x head_dim.
    """
    hidden, heads, head = config["hidden_size"], config["num_attention_heads"], config["head_dim"]
    attention = hidden * head * (2 * heads + 2 * config["num_key_value_heads"])
    weights = config["num_hidden_layers"] * (attention + 3 * hidden * config["intermediate_size"])
    pairs = config["num_hidden_layers"] * heads * head * sum(length**2 for length in lengths)
    return 2.0 * weights * sum(lengths) + 4.0 * pairs
