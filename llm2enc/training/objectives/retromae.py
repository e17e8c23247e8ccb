"""RetroMAE (arXiv 2205.12035): a text is rebuilt from its vector, so that the vector holds it.

    loss = mean over the tokens masked in the backbone's input, each named from the state before it (as in MNTP)
         + mean over the tokens of the clean text, each named by the enhanced decoder (enhanced_decoder.py)

Masks are drawn token by token: a whole-word rule as in BERT's RetroMAE would need word pieces that are marked as such.
Special tokens are neither masked, nor hidden, nor named. Noise depends on the seed, the step and the row alone.

Legend: R texts of a micro-batch, L tokens of the longest, D width. Memory beside the backbone's: L^2 bytes of masks for a
text of L tokens while its batch waits, R L^2 bytes for a micro-batch, and the activations of one more layer, padded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from llm2enc import distributed
from llm2enc.data import RowBatch, row_batches
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.model import POOLERS
from llm2enc.recipe import RetromaeStage
from llm2enc.text import InputFormat, Tokens
from llm2enc.training.microbatch import BatchPartition, pad_to_same_count
from llm2enc.training.objectives.enhanced_decoder import EnhancedDecoder
from llm2enc.training.objectives.mntp import corrupt, mask_id
from llm2enc.training.objectives.token_loss import head_gradient
from llm2enc.training.teachers import Teachers

DECODER = "decoder"  # its name among what trains beside the encoder


@dataclass(frozen=True)
class RetromaeBatch:
    """This process's texts, masked, and what is to be named."""

    tokens: Tokens  # with the masked ids
    clean: Tensor  # (T,) int64 ids as they were
    masked: Tensor  # (T,) int64: the id to name from this token's state, -100 where there is none
    named: Tensor  # (T,) int64: the id that the decoder names in this token's row, -100 for special tokens
    visible: tuple[Tensor, ...]  # of each text (L, 1 + L) bool: the columns that a row of the decoder sees
    partition: BatchPartition
    source: str

    @property
    def num_tokens(self) -> int:
        return len(self.tokens.ids)

    @property
    def num_targets(self) -> int:
        """Masked tokens of this process."""
        return int((self.masked != -100).sum())

    def describe(self) -> dict[str, str]:
        """What the table before step 1 shows of this batch."""
        rebuilt = int((self.named != -100).sum())
        return {"predicted tokens": f"{self.num_targets:,} masked and {rebuilt:,} rebuilt on this process"}


def batches(stage: RetromaeStage, input_format: InputFormat, seed: int, start: int) -> Iterator[RowBatch]:
    """Texts, each batch from one source."""
    return row_batches(str, stage.data, stage.batch_size, seed, start, stage.mixture_alpha)


def auxiliary(encoder: Encoder, stage: RetromaeStage, teachers: Teachers, seed: int) -> dict[str, nn.Module]:
    """A fresh decoder."""
    with torch.device("meta" if encoder.device.type == "meta" else "cpu"):
        return {DECODER: EnhancedDecoder(encoder.backbone.width, seed).to(encoder.device)}


def collate(rows: RowBatch, stage: RetromaeStage, input_format: InputFormat, seed: int) -> RetromaeBatch:
    """This process's texts by the document template, masked, with the masks of the decoder."""
    partition = BatchPartition(len(rows.rows), stage.rng_shards, seed, rows.step)
    own = partition.rows()
    tokens = input_format.pack(rows.rows[own.start : own.stop], max_tokens=stage.max_tokens)
    tokenizer = input_format.tokenizer
    clean = tokens.ids.numpy()
    plain = ~np.isin(clean, tokenizer.all_special_ids)
    maskable = plain & (tokens.positions.numpy() > 0)  # nothing predicts the first
    hidden_id, inputs, chosen, visible = mask_id(tokenizer, stage.mask_token), clean.copy(), np.zeros_like(plain), []
    starts = np.cumsum(tokens.lengths.numpy()) - tokens.lengths.numpy()
    for row, start, length in zip(own, starts, tokens.lengths.tolist(), strict=True):
        generator, here = np.random.default_rng((seed, rows.step, row)), slice(start, start + length)
        if maskable[here].any():
            inputs[here], chosen[here] = corrupt(
                clean[here], maskable[here], hidden_id, len(tokenizer), stage.mask_rate, stage.mask_policy, generator
            )
        visible.append(torch.from_numpy(decoder_mask(plain[here], stage.decoder_mask_rate, generator)))
    masked = np.full(len(clean), -100)
    masked[:-1] = np.where(chosen[1:], clean[1:], -100)
    return RetromaeBatch(
        tokens=replace(tokens, ids=torch.from_numpy(inputs)),
        clean=tokens.ids,
        masked=torch.from_numpy(masked),
        named=torch.from_numpy(np.where(plain, clean, -100)),
        visible=tuple(visible),
        partition=partition,
        source=rows.source,
    )


def decoder_mask(plain: np.ndarray, rate: float, generator: np.random.Generator) -> np.ndarray:
    """(L, 1 + L) bool: what each row sees of the vector and of the L tokens.

    Always the vector, never its own token; special tokens otherwise, and each of the others with probability 1 - `rate`.

    plain  (L,) bool, which tokens are no special ones
    """
    length = len(plain)
    seen = (generator.random((length, length), dtype=np.float32) >= rate) | ~plain
    np.fill_diagonal(seen, False)
    return np.concatenate([np.ones((length, 1), dtype=bool), seen], axis=1)


def backward(encoder: Encoder, batch: RetromaeBatch, stage: RetromaeStage) -> dict[str, Tensor]:
    """Gradient of both losses over the global batch. InputError if it has nothing to name."""
    backbone, device = encoder.backbone, encoder.device
    flat = torch.stack([batch.clean, batch.masked, batch.named]).to(device)
    clean, masked, named = (replace(batch.tokens, ids=ids, pool=batch.tokens.pool.to(device)) for ids in flat)
    tokens = batch.tokens.to(device)
    counts = distributed.all_reduce_sum((flat[1:] != -100).sum(1))
    if not counts.all():
        raise InputError("a batch of special tokens only has nothing to mask; is the source text empty?")
    scales = [1 / count for count in counts.tolist()]
    totals = torch.zeros(2, device=device)
    own = list(batch.partition.micro_batches(tokens.lengths, stage.micro_batch_tokens))
    for number, part in enumerate(pad_to_same_count(own, device) if backbone.sharded else own):
        part.seed_dropout()
        rows = part.rows
        texts, wanted = tokens.select(rows), [masked.select(rows).ids, named.select(rows).ids]
        if number >= len(own):  # it is there for the sake of the other processes only
            wanted = [torch.full_like(ids, -100) for ids in wanted]
        hidden = backbone.hidden(texts, causal=False)
        rebuilt = decode(encoder, hidden, clean.select(rows), [batch.visible[row] for row in rows.tolist()])
        states = [found[ids != -100] for found, ids in zip((hidden, rebuilt), wanted, strict=True)]
        gradients = []
        for place, (some, ids, scale) in enumerate(zip(states, wanted, scales, strict=True)):
            targets = ids[ids != -100]
            loss, gradient = head_gradient(backbone, some, targets, scale, stage.logit_rows, backbone.plain_head)
            totals[place] += loss
            gradients.append(torch.zeros_like(some) if gradient is None else gradient)
        torch.autograd.backward(states, gradients)
        del hidden, rebuilt, states, gradients  # before the next micro-batch runs
    masked_loss, decoder_loss = distributed.all_reduce_sum(totals)
    return {"loss": masked_loss + decoder_loss, "loss_masked": masked_loss, "loss_decoder": decoder_loss}


def decode(encoder: Encoder, hidden: Tensor, clean: Tokens, visible: Sequence[Tensor]) -> Tensor:
    """The decoder's states (T, D), from the vectors of texts whose states are `hidden` (T, D); it is given them padded.

    clean    the texts as they are
    visible  of each text (L, 1 + L)
    """
    vectors = POOLERS[encoder.pooling].function(hidden, clean.pool, clean.lengths)  # (R, D)
    lengths = clean.lengths.tolist()
    longest = max(lengths)
    embeddings = encoder.backbone.model.get_input_embeddings()(clean.ids)
    padded = pad_sequence(embeddings.split(lengths), batch_first=True)
    mask = torch.zeros(len(lengths), longest, 1 + longest, dtype=torch.bool)
    mask[:, :, 0] = True  # of padded rows too: a row that sees nothing has no softmax
    for row, seen in enumerate(visible):
        mask[row, : len(seen), : 1 + len(seen)] = seen
    states = encoder.auxiliary[DECODER](vectors, padded, mask.to(embeddings.device)).to(embeddings.dtype)
    return torch.cat([row[:length] for row, length in zip(states, lengths, strict=True)])


def rebuild(encoder: Encoder, hidden: Tensor, tokens: Tokens) -> Tensor:
    """`decode` with nothing hidden: what it takes does not depend on that."""
    visible = [torch.ones(length, 1 + length, dtype=torch.bool) for length in tokens.lengths.tolist()]
    return decode(encoder, hidden, tokens, visible)


def predicted_share(stage: RetromaeStage) -> float:
    """Expected share of the tokens that are masked, special tokens left out of account."""
    return stage.mask_rate
