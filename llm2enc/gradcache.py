"""The gradient of a loss over many texts, at the memory of a few (GradCache, arXiv 2101.06983, algorithm 1).

    1. vectors of all texts, in mini-batches, without a graph
    2. loss over all vectors of all processes -> gradient of the loss in each vector
    3. each mini-batch again, with the same dropout, and backward from its vectors' gradients

Step 3 repeats step 1 exactly, dropout included (`splitting.py`), so the result is the gradient of the unsplit batch.
Graphs of the first `graph_tokens` tokens are kept in step 1 and need no step 3: activations that fit in memory are not
computed twice.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from llm2enc import distributed
from llm2enc.splitting import MiniBatch, Split
from llm2enc.tokens import Tokens


def cached_backward(
    encode: Callable[[Tokens], Tensor],
    tokens: Tokens,
    split: Split,
    loss: Callable[[Tensor], Tensor],
    mini_batch_tokens: int,
    graph_tokens: int = 0,
) -> Tensor:
    """Leave this process's part of the gradient of `loss(vectors of all texts)` in the parameters; return the loss.

    encode   Tokens of B texts -> (B, D)
    tokens   this process's texts, `split.rows()` of the global batch, on the device
    loss     (total, D) -> scalar; the same function on every process
    """
    parts = list(_encode_all(encode, tokens, split, mini_batch_tokens, graph_tokens))
    device = parts[0][1].device
    own = torch.cat([vectors.detach() for _, vectors in parts])
    own = own[torch.argsort(torch.cat([part.rows for part, _ in parts])).to(device)]
    everything = distributed.gather(own, split.counts()).requires_grad_()
    value = loss(everything)
    value.backward()
    mine = split.rows()
    gradient = everything.grad[mine.start : mine.stop]
    for part, vectors in parts:
        if not vectors.requires_grad:
            part.start_noise()
            vectors = encode(tokens.select(part.rows))
        vectors.backward(gradient[part.rows.to(device)])
    return value.detach()


def _encode_all(
    encode, tokens: Tokens, split: Split, mini_batch_tokens: int, graph_tokens: int
) -> Iterator[tuple[MiniBatch, Tensor]]:
    """Mini-batches of R texts and their vectors (R, D), with a graph as long as `graph_tokens` lasts."""
    kept = 0
    for part in split.mini_batches(tokens.lengths, mini_batch_tokens):
        batch = tokens.select(part.rows)
        kept += len(batch.ids)
        part.start_noise()
        with torch.set_grad_enabled(kept <= graph_tokens):
            vectors = encode(batch)
        yield part, vectors
