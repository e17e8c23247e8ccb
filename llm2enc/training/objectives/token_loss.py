"""What objectives that predict tokens share: blocks of tokens, and cross-entropy without a (T, V) tensor.

Legend: B blocks, L tokens of a block, T tokens of the packed row, R predicted positions, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm2enc import distributed
from llm2enc.data import RowBatch, block_batches
from llm2enc.encoding import Encoder
from llm2enc.losses import cross_entropy_sum
from llm2enc.model import Backbone
from llm2enc.text import InputFormat, Tokens
from llm2enc.training.microbatch import BatchPartition, pad_to_same_count


@dataclass(frozen=True)
class TokenBatch:
    """Token prediction on this process's sequences."""

    tokens: Tokens
    targets: Tensor  # (T,) int64: the id to predict from this token's state, -100 where there is nothing to predict
    num_targets: int  # over all processes
    partition: BatchPartition  # of all sequences over the processes
    source: str
    weights: Tensor | None = None  # (T,) float32: what a target counts in the loss; None: 1 / num_targets each

    @property
    def num_tokens(self) -> int:
        return len(self.tokens.ids)

    def describe(self) -> dict[str, str]:
        """What the table before step 1 shows of this batch: the tokens to predict, over all processes."""
        return {"predicted tokens per batch": f"{self.num_targets:,}"}


def blocks_of(stage, input_format: InputFormat, seed: int, start: int) -> Iterator[RowBatch]:
    """Batches of token blocks: every text opens with BOS (EOS if the tokenizer has none), as language models see text."""
    tokenizer = input_format.tokenizer
    opening: Any = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    prefix = [] if opening is None else [opening]

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [prefix + ids for ids in input_format.plain_ids(texts)]

    return block_batches(stage.data, tokenize, stage.block_tokens, stage.batch_size, seed, start, stage.mixture_alpha)


def token_batch(inputs: np.ndarray, targets: np.ndarray, source: str, partition: BatchPartition) -> TokenBatch:
    """This process's part of (B, L) inputs and, at the same places, the (B, L) ids to predict or -100."""
    own = partition.rows()
    return TokenBatch(
        Tokens.from_blocks(torch.from_numpy(inputs[own.start : own.stop])),
        torch.from_numpy(targets[own.start : own.stop].reshape(-1).astype(np.int64)),
        int((targets != -100).sum()),
        partition,
        source,
    )


def token_backward(
    encoder: Encoder, batch: TokenBatch, micro_batch_tokens: int, logit_rows: int, causal: bool
) -> dict[str, Tensor]:
    """Gradient of the cross-entropy over all targets of the global batch: of its mean, or its sum by `weights`.

    The head runs on the states of predicted positions only.
    """
    backbone = encoder.backbone
    total = torch.zeros((), device=encoder.device)
    tokens, targets = batch.tokens.to(encoder.device), batch.targets.to(encoder.device)
    targets = replace(tokens, ids=targets)
    weights = None if batch.weights is None else replace(tokens, ids=batch.weights.to(encoder.device))
    scale = 1 / batch.num_targets if weights is None else 1.0
    own = list(batch.partition.micro_batches(tokens.lengths, micro_batch_tokens))
    for number, part in enumerate(pad_to_same_count(own, encoder.device) if backbone.sharded else own):
        part.seed_dropout()
        wanted = targets.select(part.rows).ids
        if number >= len(own):  # it is there for the sake of the other processes only
            wanted = torch.full_like(wanted, -100)
        chosen = wanted != -100
        states = backbone.hidden(tokens.select(part.rows), causal=causal, queries=chosen)[chosen]  # (R, D)
        counts = None if weights is None else weights.select(part.rows).ids[chosen]
        overwrite = backbone.plain_head
        loss, gradient = head_gradient(backbone, states, wanted[chosen], scale, logit_rows, overwrite, counts)
        total += loss
        if gradient is not None:
            states.backward(gradient)
        del states, gradient  # before the next micro-batch runs
    return {"loss": distributed.all_reduce_sum(total)}


def head_gradient(
    backbone: Backbone,
    states: Tensor,
    targets: Tensor,
    scale: float,
    logit_rows: int,
    overwrite: bool,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`scale` x the sum of the cross-entropy at states (R, D) against ids (R,), and its gradient (R, D) in the states.

    `logit_rows` rows at a time: each slice of logits is computed, turned into a gradient in the states, and dropped before
    the next one exists. The gradient in the head's own weights, if they train, is left in them.

    overwrite  the gradient may take the place of the logits (`Backbone.plain_head`)
    weights    (R,) what each row counts; 1 by default
    """
    leaf = states.detach().requires_grad_()
    total = torch.zeros((), device=states.device)
    parts = leaf.split(logit_rows), targets.split(logit_rows)
    weighted = repeat(None) if weights is None else weights.split(logit_rows)
    for slice_states, slice_targets, slice_weights in zip(*parts, weighted, strict=False):
        logits = backbone.logits(slice_states)
        loss, gradient = cross_entropy_sum(logits, slice_targets, scale, overwrite, slice_weights)
        logits.backward(gradient)
        total += loss
        del logits, gradient
    return total, leaf.grad
