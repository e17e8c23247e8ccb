"""The gradient of a loss over many texts, at the memory of a few (GradCache, arXiv 2101.06983, algorithm 1).

    1. vectors of all texts, in micro-batches, without a graph
    2. loss over all vectors of all processes -> gradient of the loss in each vector
    3. each micro-batch again, with the same dropout, and backward from its vectors' gradients

Step 3 repeats step 1 exactly, dropout included (`microbatch.py`), so the result is the gradient of the unsplit batch.
Graphs of the first `activation_tokens` tokens are kept in step 1 and need no step 3: activations that fit in memory are not
computed twice.
"""

from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch import Tensor, nn

from llm2enc import distributed
from llm2enc.text import Tokens
from llm2enc.training.checks import check_vectors
from llm2enc.training.microbatch import BatchPartition, pad_to_same_count


def cached_backward(
    encode: Callable[[Tokens], Tensor],
    tokens: Tokens,
    partition: BatchPartition,
    loss: Callable[[Tensor], Tensor],
    micro_batch_tokens: int,
    activation_tokens: int = 0,
    together: bool = False,
    auxiliary: nn.Module | None = None,
) -> Tensor:
    """Leave this process's part of the gradient of `loss(vectors of all texts)` in the parameters; return the loss.

    encode    Tokens of B texts -> (B, D)
    tokens    this process's texts, `partition.rows()` of the global batch, on the device
    loss      (total, D) -> scalar; the same function on every process
    together  every process calls `encode` equally often and keeps equally many graphs, as sharded layers need it
    auxiliary what the loss trains itself
    """
    own = list(partition.micro_batches(tokens.lengths, micro_batch_tokens))
    sizes = (int(tokens.lengths[part.rows].sum()) for part in own)
    parts, kept, device = own, kept_activations(sizes, activation_tokens), tokens.ids.device
    if together:
        parts, kept = pad_to_same_count(own, device), -distributed.all_reduce_max(-kept, device)
    encoded = []
    for number, part in enumerate(parts):
        part.seed_dropout()
        with torch.set_grad_enabled(number < kept):
            encoded.append(encode(tokens.select(part.rows)))
    vectors = torch.cat([some.detach() for some in encoded[: len(own)]])
    vectors = vectors[torch.argsort(torch.cat([part.rows for part in own])).to(vectors.device)]
    everything = distributed.gather(vectors, partition.counts()).requires_grad_()
    with torch.autocast(device.type, enabled=False):  # similarities in 16 bits are off by 0.1 nats, see losses
        value = loss(everything)
        check_vectors(value, everything)
        value.backward()
    if auxiliary is not None and not distributed.is_main():
        auxiliary.zero_grad()  # every process has its whole gradient, and one of them counts
    mine, whole = partition.rows(), everything.grad
    assert whole is not None
    gradient = whole[mine.start : mine.stop]
    for number, part in enumerate(parts):
        if number >= kept:
            part.seed_dropout()
            encoded[number] = encode(tokens.select(part.rows))
        weight = gradient[part.rows.to(gradient.device)]
        encoded[number].backward(weight if number < len(own) else torch.zeros_like(weight))
        encoded[number] = None  # its graph is gone, and so may be its vectors
    return value.detach()


def kept_activations(sizes: Iterable[int], activation_tokens: int) -> int:
    """How many micro-batches, from the first one on, have at most `activation_tokens` tokens together.

    sizes  tokens of each of a process's micro-batches
    """
    return sum(total <= activation_tokens for total in accumulate(sizes))
