"""Causal language modelling: the next token from the tokens before it. Pre-training, from scratch or continued."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from llm2enc.data import RowBatch
from llm2enc.encoding import Encoder
from llm2enc.recipe import ClmStage
from llm2enc.text import InputFormat
from llm2enc.training.microbatch import BatchPartition
from llm2enc.training.objectives.token_loss import TokenBatch, blocks_of, token_backward, token_batch


def batches(stage: ClmStage, input_format: InputFormat, seed: int, start: int) -> Iterator[RowBatch]:
    """Blocks of joined text."""
    return blocks_of(stage, input_format, seed, start)


def collate(rows: RowBatch, stage: ClmStage, input_format: InputFormat, seed: int) -> TokenBatch:
    """Every position predicts its successor; the last of a block predicts nothing."""
    blocks = np.stack(rows.rows)
    targets = np.full(blocks.shape, -100, dtype=np.int64)
    targets[:, :-1] = blocks[:, 1:]
    return token_batch(blocks, targets, rows.source, BatchPartition(len(blocks), stage.rng_shards, seed, rows.step))


def backward(encoder: Encoder, batch: TokenBatch, stage: ClmStage) -> dict[str, Tensor]:
    """Gradient of the mean next-token loss, with causal attention whatever the encoder's own direction."""
    return token_backward(encoder, batch, stage.micro_batch_tokens, stage.logit_rows, causal=True)


def predicted_share(stage: ClmStage) -> float:
    """Share of the tokens that are predicted: all but one of a block."""
    return 1 - 1 / stage.block_tokens
