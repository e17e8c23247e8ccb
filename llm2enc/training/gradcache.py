"""The gradient of a loss over many texts, at the memory of a few (GradCache, arXiv 2101.06983, algorithm 1).

    1. vectors of all texts, in mini-batches, without a graph
    2. loss over all vectors of all processes -> gradient of the loss in each vector
    3. each mini-batch again, with the same dropout, and backward from its vectors' gradients

Step 3 repeats step 1 exactly, dropout included (`microbatch.py`), so the result is the gradient of the unsplit batch.
Graphs of the first `graph_tokens` tokens are kept in step 1 and need no step 3: activations that fit in memory are not
computed twice.
"""

from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch import Tensor

from llm2enc import distributed
from llm2enc.text import Tokens
from llm2enc.training.checks import check_vectors
from llm2enc.training.microbatch import Split, in_step


def cached_backward(
    encode: Callable[[Tokens], Tensor],
    tokens: Tokens,
    split: Split,
    loss: Callable[[Tensor], Tensor],
    mini_batch_tokens: int,
    graph_tokens: int = 0,
    together: bool = False,
) -> Tensor:
    """Leave this process's part of the gradient of `loss(vectors of all texts)` in the parameters; return the loss.

    encode    Tokens of B texts -> (B, D)
    tokens    this process's texts, `split.rows()` of the global batch, on the device
    loss      (total, D) -> scalar; the same function on every process
    together  every process calls `encode` equally often and keeps equally many graphs, as sharded layers need it
    """
    own = list(split.mini_batches(tokens.lengths, mini_batch_tokens))
    sizes = (int(tokens.lengths[part.rows].sum()) for part in own)
    parts, kept, device = own, kept_graphs(sizes, graph_tokens), tokens.ids.device
    if together:
        parts, kept = in_step(own, device), -distributed.all_reduce_max(-kept, device)
    encoded = []
    for number, part in enumerate(parts):
        part.start_noise()
        with torch.set_grad_enabled(number < kept):
            encoded.append(encode(tokens.select(part.rows)))
    vectors = torch.cat([some.detach() for some in encoded[: len(own)]])
    vectors = vectors[torch.argsort(torch.cat([part.rows for part in own])).to(vectors.device)]
    everything = distributed.gather(vectors, split.counts()).requires_grad_()
    value = loss(everything)
    check_vectors(value, everything)
    value.backward()
    mine = split.rows()
    gradient = everything.grad[mine.start : mine.stop]
    for number, part in enumerate(parts):
        if number >= kept:
            part.start_noise()
            encoded[number] = encode(tokens.select(part.rows))
        weight = gradient[part.rows.to(gradient.device)]
        encoded[number].backward(weight if number < len(own) else torch.zeros_like(weight))
        encoded[number] = None  # its graph is gone, and so may be its vectors
    return value.detach()


def kept_graphs(sizes: Iterable[int], graph_tokens: int) -> int:
    """How many mini-batches, from the first one on, have at most `graph_tokens` tokens together.

    sizes  tokens of each of a process's mini-batches
    """
    return sum(total <= graph_tokens for total in accumulate(sizes))
