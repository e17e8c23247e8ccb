"""Masked next-token prediction (LLM2Vec, arXiv 2404.05961, section 2.2).

A masked token at position i is predicted from the state at i - 1: the head was trained to name the next token, and stays
frozen. Attention is bidirectional, so the state at i - 1 has seen what follows the mask.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch import Tensor

from llm2enc.data import RowBatch
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.recipe import MntpStage
from llm2enc.text import InputFormat
from llm2enc.training.microbatch import BatchPartition
from llm2enc.training.objectives.token_loss import TokenBatch, blocks_of, token_backward, token_batch


def batches(stage: MntpStage, input_format: InputFormat, seed: int, start: int) -> Iterator[RowBatch]:
    """Blocks of joined text."""
    return blocks_of(stage, input_format, seed, start)


def collate(rows: RowBatch, stage: MntpStage, input_format: InputFormat, seed: int) -> TokenBatch:
    """Corrupted blocks and their targets. The noise depends on the step alone, not on the number of processes."""
    tokenizer = input_format.tokenizer
    blocks = np.stack(rows.rows)
    maskable = ~np.isin(blocks, tokenizer.all_special_ids)
    maskable[:, 0] = False  # which nothing predicts
    if not maskable.any():
        raise InputError("a batch of special tokens only has nothing to mask; is the source text empty?")
    corrupted, chosen = corrupt(
        blocks,
        maskable,
        mask_id=mask_id(tokenizer, stage.mask_token),
        vocabulary=len(tokenizer),
        rate=stage.mask_rate,
        policy=stage.mask_policy,
        generator=np.random.default_rng((seed, rows.step)),
    )
    targets = np.full(blocks.shape, -100, dtype=np.int64)
    targets[:, :-1] = np.where(chosen[:, 1:], blocks[:, 1:], -100)
    return token_batch(corrupted, targets, rows.source, BatchPartition(len(blocks), stage.rng_shards, seed, rows.step))


def backward(encoder: Encoder, batch: TokenBatch, stage: MntpStage) -> dict[str, Tensor]:
    """Gradient of the mean loss over masked tokens."""
    return token_backward(encoder, batch, stage.micro_batch_tokens, stage.logit_rows, causal=False)


def predicted_share(stage: MntpStage) -> float:
    """Expected share of the tokens that are predicted, special tokens left out of account."""
    return stage.mask_rate


def corrupt(
    ids: np.ndarray,
    maskable: np.ndarray,
    mask_id: int,
    vocabulary: int,
    rate: float,
    policy: Literal["bert", "all"],
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Corrupted ids and the bool mask of chosen positions, of the shape of `ids`, which stay as they are.

    Chosen: each of the `maskable` tokens with probability `rate`, and one of them at least.
    bert: 80 % of them become the mask token, 10 % a random token, 10 % stay. all: every one becomes the mask token.
    """
    chosen = (generator.random(ids.shape) < rate) & maskable
    if not chosen.any():  # a tiny batch: a step without a target has no gradient
        candidates = np.flatnonzero(maskable)
        chosen.flat[candidates[generator.integers(len(candidates))]] = True
    fate = generator.random(ids.shape) if policy == "bert" else np.zeros(ids.shape)
    corrupted = np.where(chosen & (fate < 0.8), mask_id, ids)
    random = generator.integers(vocabulary, size=ids.shape)
    return np.where(chosen & (fate >= 0.8) & (fate < 0.9), random, corrupted), chosen


def mask_id(tokenizer, mask_token: Literal["blank", "eos", "mask"]) -> int:
    """Id of the token that hides others. ValueError if the tokenizer has no such single token."""
    name = {"blank": "_", "eos": tokenizer.eos_token, "mask": tokenizer.mask_token}[mask_token]
    vocabulary = tokenizer.get_vocab()
    if name is None or name not in vocabulary:
        raise InputError(
            f"mask_token: {mask_token} needs {'the token _' if mask_token == 'blank' else 'a token of that role'}, which "
            "this tokenizer lacks; choose another of blank, eos, mask"
        )
    return vocabulary[name]
