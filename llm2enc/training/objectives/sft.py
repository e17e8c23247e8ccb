"""Supervised fine-tuning: responses from what stands before them, with causal attention. The generative half of GRIT.

    <s>  <|user|>\\n  What is salt?  \\n<|assistant|>\\n  A mineral.  </s>  \\n<|user|>\\n  ...
                                                        ----------------  predicted

The marks are text, as GritLM has them; BOS stands where the model's own tokenizer puts one. So what the model learns to go
on from is what that tokenizer makes of the same text, and `generator/` generates from it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from llm2enc import distributed
from llm2enc.data import Dialogue, RowBatch, row_batches
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.losses import target_weights
from llm2enc.recipe import DialogueFormat, InputSpec, Part, SftStage
from llm2enc.text import InputFormat, Tokens, concatenate
from llm2enc.training.microbatch import BatchPartition
from llm2enc.training.objectives.token_loss import TokenBatch, token_backward

_NO_LIMIT = 2**31 - 1  # a dialogue is cut as a whole


@dataclass(frozen=True)
class DialogueBatch(TokenBatch):
    """This process's dialogues; `num_targets` counts those of this process until `backward` weighs all of them."""

    def describe(self) -> dict[str, str]:
        """What the table before step 1 shows of this batch."""
        return {"dialogues": f"{self.partition.total} ({self.num_targets:,} tokens to predict on this process)"}


def batches(stage: SftStage, input_format: InputFormat, seed: int, start: int) -> Iterator[RowBatch]:
    """Dialogues, each batch from one source."""
    return row_batches(Dialogue, stage.data, stage.batch_size, seed, start, stage.mixture_alpha)


def collate(rows: RowBatch, stage: SftStage, input_format: InputFormat, seed: int) -> DialogueBatch:
    """This process's dialogues, each cut at the stage's limit; the token before a token of a response predicts it."""
    partition = BatchPartition(len(rows.rows), stage.rng_shards, seed, rows.step)
    own = [rows.rows[place] for place in partition.rows()]
    tokens = pack(own, stage, input_format, stage.max_tokens or input_format.spec.max_tokens)
    follows = (tokens.positions[1:] > 0) & tokens.pool[1:]
    targets = torch.full_like(tokens.ids, -100)
    targets[:-1] = torch.where(follows, tokens.ids[1:], -100)
    return DialogueBatch(tokens, targets, int(follows.sum()), partition, rows.source)


def backward(encoder: Encoder, batch: DialogueBatch, stage: SftStage, weight: float = 1.0) -> dict[str, Tensor]:
    """Gradient of `weight` x the loss of all responses of the global batch; `loss` is returned without the weight.

    raises  InputError if no response begins within the limit
    """
    lengths = batch.tokens.lengths
    own = torch.tensor([int((part != -100).sum()) for part in batch.targets.split(lengths.tolist())])
    counts = distributed.gather(own[:, None].double().to(encoder.device), batch.partition.counts())[:, 0].cpu()
    if not counts.any():
        raise InputError(
            f"no response of {len(counts)} dialogues begins within {stage.max_tokens or 'input.max_tokens'} tokens, so "
            "there is nothing to predict; raise max_tokens, or leave out such long prompts"
        )
    mine = batch.partition.rows()
    each = target_weights(counts, stage.aggregation, stage.group)[mine.start : mine.stop]
    weighted = replace(batch, weights=torch.repeat_interleave(each * weight, lengths).float())
    found = token_backward(encoder, weighted, stage.micro_batch_tokens, stage.logit_rows, causal=True)
    return {"loss": found["loss"] / weight, "unanswered": (counts == 0).double().mean()}


def predicted_share(stage: SftStage) -> float:
    """The most that can be: what share of the tokens are a response's, the data decide."""
    return 1.0


def pack(dialogues: Sequence[Dialogue], form: DialogueFormat, input_format: InputFormat, limit: int) -> Tokens:
    """The dialogues as the model reads them, at most `limit` tokens each; `pool` marks responses and the EOS behind them."""
    turns = [(number, *turn) for dialogue in dialogues for number, turn in enumerate(dialogue.turns)]
    later = np.array([number > 0 for number, _, _ in turns])
    order = np.argsort(later, kind="stable")  # first turns first
    packed = [
        input_format.with_spec(spec).pack([turns[i][2] for i in places], [turns[i][1] for i in places], "query")
        for spec, places in zip(templates(form), (order[: (~later).sum()], order[(~later).sum() :]), strict=True)
        if len(places)
    ]
    flat = concatenate(packed).select(torch.from_numpy(np.argsort(order)))
    sizes = flat.lengths.split([len(dialogue.turns) for dialogue in dialogues])
    whole = replace(flat, lengths=torch.stack([size.sum() for size in sizes]))
    kept = whole.positions < limit
    lengths = whole.lengths.clamp(max=limit)
    return Tokens(whole.ids[kept], lengths, whole.pool[kept], lengths < whole.lengths)


def templates(form: DialogueFormat) -> tuple[InputSpec, InputSpec]:
    """The first turn of a dialogue and those behind it: the user's text is the instruction, the response the text."""
    response = (Part(slot="text", pool=True), Part(special="eos", pool=True))

    def spec(*before: Part, user: str) -> InputSpec:
        opening = (*before, *([Part(literal=user)] if user else []))
        asked = (*opening, Part(slot="instruction"), Part(literal=form.assistant), *response)
        return InputSpec(
            query=asked, document=(*opening, Part(literal=form.assistant), *response), max_tokens=_NO_LIMIT
        )

    return spec(Part(special="bos", when="tokenizer"), user=form.user), spec(user=form.between + form.user)
