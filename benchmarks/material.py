"""Models, tokenizer and texts of the benchmarks, all from seeds: nothing is downloaded.

Texts are pseudo-words with Zipf frequencies. Their lengths are log-normal, median 76 tokens and 90th percentile 250, as
measured on software documentation. Every text mixes in its own share of words the tokenizer has never seen, so that
characters predict tokens as badly as in real text: log(characters / token) spreads by 0.13 on Wikipedia and 0.18 on
docstrings with a vocabulary of 10,000, which makes batches of 32 sorted by characters compute 1.32 and 1.45 tokens per
real one. `statistics` gives the same figures for these texts.
"""

import json
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

VOCABULARY = 8192
SYLLABLES = [c + v + e for c in "b c d f g h l m n p r s t v st tr pl".split() for v in "aeiou" for e in ("", "n", "r")]
LETTERS = list("abcdefghijklmnopqrstuvwxyz_0123456789")

# Mistral's architecture: hidden size, layers, heads, key/value heads, feed-forward width, vocabulary.
SHAPES: dict[str, tuple[int, int, int, int, int, int]] = {
    "m64": (64, 2, 2, 1, 176, VOCABULARY),
    "m256": (256, 6, 4, 2, 704, VOCABULARY),
    "m512": (512, 8, 8, 4, 1408, 32_000),
    "m512-128k": (512, 8, 8, 4, 1408, 128_000),
}


@lru_cache
def lexicon(size: int = 20_000) -> list[str]:
    """Distinct pseudo-words, the frequent ones short."""
    generator = np.random.default_rng(0)
    words: dict[str, None] = {}
    while len(words) < size:
        count = 1 + int(generator.integers(0, 2 + (len(words) > 200) + (len(words) > 4000)))
        words["".join(generator.choice(SYLLABLES, count))] = None
    return list(words)


# Words of a text as (median, sigma) of a log-normal or (low, high) of a uniform distribution, the mean share of words the
# tokenizer has never seen, and from how many words the others are drawn.
KINDS: dict[str, dict] = {
    "lognormal": {"words": (51.0, 0.93), "unknown": 1 / 29, "common": 20_000},
    "short": {"words": (16, 16), "unknown": 0.0, "common": 500},
    "sentence": {"words": (20.0, 0.5), "unknown": 1 / 29, "common": 20_000},
    "query": {"words": (5, 20), "unknown": 1 / 29, "common": 20_000},
}


def texts(count: int, seed: int, kind: str = "lognormal") -> list[str]:
    """`count` texts of one of the KINDS."""
    generator = np.random.default_rng(seed)
    (low, high), unknown, common = KINDS[kind].values()
    known, frequency = lexicon()[:common], 1 / np.arange(3, common + 3)
    if isinstance(low, int):
        lengths = generator.integers(low, high + 1, count)
    else:
        lengths = np.exp(generator.normal(np.log(low), high, count)).clip(3, 900).astype(int)
    # Most texts have few unknown words, some are full of them.
    share = generator.beta(0.7, 0.7 / unknown - 0.7, count) if unknown else np.zeros(count)
    frequency /= frequency.sum()
    return [_text(generator, known, frequency, length, own) for length, own in zip(lengths, share, strict=True)]


def _text(generator: np.random.Generator, known: list[str], frequency, count: int, unknown_share: float) -> str:
    words = [known[i] for i in generator.choice(len(known), count, p=frequency)]
    for place in np.flatnonzero(generator.random(count) < unknown_share):
        words[place] = "".join(generator.choice(LETTERS, generator.integers(3, 10)))
    return " ".join(words) + "."


def pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Queries of 5 to 20 words and documents of log-normal length, truncated at 256 tokens by the task."""
    return list(zip(texts(count, seed, "query"), texts(count, seed + 1), strict=True))


@cache
def _trained_tokenizer() -> str:
    """JSON of a byte-level BPE of `VOCABULARY` pieces; one training, of some seconds, serves all shapes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts(8_000, seed=1), trainer)
    return backend.to_str()


def tokenizer(folder: Path) -> None:
    """The tokenizer, saved with padding token and without special tokens in its template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(_trained_tokenizer())
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"], **names)
    fast.save_pretrained(folder)
    # What the peers' older releases of tokenizers and transformers can read.
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["model"]["merges"] = [" ".join(pair) for pair in saved["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def causal_lm(folder: Path, shape: str, seed: int = 0) -> Path:
    """A MistralForCausalLM of this shape with random weights, and the tokenizer, in `folder`."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    hidden, layers, heads, kv_heads, feed_forward, vocabulary = SHAPES[shape]
    config = MistralConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=feed_forward, vocab_size=vocabulary, max_position_embeddings=4096, sliding_window=None,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(seed)
    MistralForCausalLM(config).save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text())
    described["rope_theta"] = described["rope_parameters"]["rope_theta"]  # the name older releases read
    (folder / "config.json").write_text(json.dumps(described, indent=1))
    tokenizer(folder)
    return folder


def encoder(folder: Path, lm: Path, dtype: str) -> Path:
    """The exported encoder of a causal LM: bidirectional, mean over all tokens, no template. Both sides open it."""
    from llm2enc import Encoder
    from llm2enc.recipe import InputSpec, ModelSpec

    template = [{"slot": "text", "pool": True}]
    spec = InputSpec.model_validate({"query": template, "document": template, "max_tokens": 512}, strict=False)
    Encoder.from_causal_lm(ModelSpec(name=str(lm), dtype=dtype), spec).save(folder)
    return folder


def neighbours(all_texts: Sequence[str], blocks: int, size: int = 32) -> list[str]:
    """Whole blocks of `size` neighbours in the character order of all texts, spread evenly over it.

    A sample keeps the padding that sentence-transformers would have on the whole set.
    """
    order = sorted(range(len(all_texts)), key=lambda row: -len(all_texts[row]))
    starts = ((np.arange(blocks) + 0.5) / blocks * len(order)).astype(int) // size * size
    return [all_texts[row] for start in starts for row in order[start : start + size]]


def ids_of(lm: Path, all_texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts by the tokenizer of a model folder."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(lm / "tokenizer.json"))
    return [encoding.ids for encoding in backend.encode_batch_fast(list(all_texts), add_special_tokens=False)]


def token_counts(lm: Path, path: str, limit: int) -> np.ndarray:
    """(B,) tokens of each text of a JSON file, at most `limit`."""
    return np.array([min(limit, len(ids)) for ids in ids_of(lm, json.loads(Path(path).read_text()))])


def mntp_blocks(lm: Path, count: int, length: int, rate: float, seed: int) -> dict[str, np.ndarray]:
    """(B, L) input ids with masked tokens replaced by id 1, and (B, L) labels at the masked places, -100 elsewhere."""
    flat = np.array([token for ids in ids_of(lm, texts(count * length // 20, seed)) for token in ids], dtype=np.int64)
    blocks = flat[: count * length].reshape(count, length)
    chosen = np.random.default_rng(seed).random(blocks.shape) < rate
    chosen[:, 0] = False  # nothing predicts the first token
    return {"input_ids": np.where(chosen, 1, blocks), "labels": np.where(chosen, blocks, -100)}


def adapter(shape: str, rank: int = 16) -> dict[str, np.ndarray]:
    """LoRA factors of every linear layer by plain name, all of them random: a zero factor would hide a gradient."""
    generator = np.random.default_rng(6)
    found = {}
    for layer in range(SHAPES[shape][1]):
        for name, (width, out) in linears(shape).items():
            for factor, size in (("lora_A", (rank, width)), ("lora_B", (out, rank))):
                found[f"layers.{layer}.{name}.{factor}"] = 0.02 * generator.standard_normal(size, dtype=np.float32)
    return found


def linears(shape: str) -> dict[str, tuple[int, int]]:
    """Input and output width of each linear layer of a decoder layer."""
    hidden, _, heads, kv_heads, feed_forward, _ = SHAPES[shape]
    head = hidden // heads
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, kv_heads * head),
        "self_attn.v_proj": (hidden, kv_heads * head),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (hidden, feed_forward),
        "mlp.up_proj": (hidden, feed_forward),
        "mlp.down_proj": (feed_forward, hidden),
    }


def flops(shape: str, lengths: np.ndarray) -> float:
    """Multiplications and additions of a forward pass over texts of these lengths: linear layers and attention."""
    hidden, layers = SHAPES[shape][:2]
    attention = layers * 4 * hidden * (lengths.astype(float) ** 2).sum()
    return float(linear_flops(shape) * lengths.sum() + attention)


def linear_flops(shape: str) -> int:
    """Multiplications and additions of one token in all linear layers."""
    return 2 * SHAPES[shape][1] * sum(width * out for width, out in linears(shape).values())


def statistics(all_texts: Sequence[str], lengths: np.ndarray, size: int = 32) -> dict[str, float]:
    """Facts about a set of texts: token quantiles, and computed tokens per real one in padded batches by each order."""
    order = {
        "padding_by_characters": np.argsort([-len(text) for text in all_texts], kind="stable"),
        "padding_by_tokens": np.argsort(-lengths, kind="stable"),
        "padding_in_given_order": np.arange(len(lengths)),
    }
    per_token = np.log([len(text) / n for text, n in zip(all_texts, lengths, strict=True)])
    facts = {
        "texts": len(all_texts),
        "median_tokens": float(np.median(lengths)),
        "p90_tokens": float(np.percentile(lengths, 90)),
        "spread_of_log_characters_per_token": float(per_token.std()),
    }
    for name, rows in order.items():
        batches = [lengths[rows[start : start + size]] for start in range(0, len(rows), size)]
        facts[name] = float(sum(batch.max() * len(batch) for batch in batches) / lengths.sum())
    return facts
