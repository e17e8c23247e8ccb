"""The gradient of a loss over many texts, at the memory of a few (GradCache, arXiv 2101.06983, algorithm 1).

    1. vectors of all texts, in mini-batches, without a graph; the random state before each is noted
    2. loss over all vectors of all processes -> gradient of the loss in each vector
    3. each mini-batch again, with its random state, and backward from its vectors' gradients

Step 3 repeats step 1 exactly, dropout included, so the result is the gradient of the unsplit batch. Graphs of the first
`graph_tokens` tokens are kept in step 1 and need no step 3: activations that fit in memory are not computed twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from llm2enc import distributed
from llm2enc.tokens import Tokens, mini_batches


@dataclass
class _MiniBatch:
    rows: Tensor  # (R,) which of this process's texts
    vectors: Tensor  # (R, D) with a graph, or without
    random: list[Tensor] | None  # the random state before the forward pass; None if the graph was kept


def cached_backward(
    encode: Callable[[Tokens], Tensor],
    tokens: Tokens,
    total: int,
    loss: Callable[[Tensor], Tensor],
    mini_batch_tokens: int,
    graph_tokens: int = 0,
) -> Tensor:
    """Leave the gradient of `loss(vectors of all texts)` in the parameters of `encode`; return the loss.

    encode   Tokens of B texts -> (B, D)
    tokens   this process's texts, `distributed.share(total)` of the global batch, on the device
    total    number of texts over all processes
    loss     (total, D) -> scalar; the same function on every process
    """
    parts = list(_encode_all(encode, tokens, mini_batch_tokens, graph_tokens))
    own = parts[0].vectors.new_empty(len(tokens), parts[0].vectors.size(-1))
    for part in parts:
        own[part.rows.to(own.device)] = part.vectors.detach()
    everything = distributed.gather(own, total).requires_grad_()
    value = loss(everything)
    value.backward()
    mine = distributed.share(total)
    gradient = everything.grad[mine.start : mine.stop]
    for part in parts:
        vectors = part.vectors
        if part.random is not None:
            with _random_state(part.random, tokens.ids.device):
                vectors = encode(tokens.select(part.rows))
        vectors.backward(gradient[part.rows.to(own.device)])
    return value.detach()


def _encode_all(encode, tokens: Tokens, mini_batch_tokens: int, graph_tokens: int) -> Iterator[_MiniBatch]:
    kept = 0
    for rows in mini_batches(tokens.lengths, mini_batch_tokens):
        batch = tokens.select(rows)
        kept += len(batch.ids)
        if kept <= graph_tokens:
            yield _MiniBatch(rows, encode(batch), None)
            continue
        random = random_state(tokens.ids.device)
        with torch.no_grad():
            vectors = encode(batch)
        yield _MiniBatch(rows, vectors, random)


def random_state(device: torch.device) -> list[Tensor]:
    """State of the generators that dropout on `device` draws from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextmanager
def _random_state(states: list[Tensor], device: torch.device) -> Iterator[None]:
    """Draw from `states` inside, and go on afterwards as if nothing had been drawn."""
    after = random_state(device)
    _set_random_state(states, device)
    try:
        yield
    finally:
        _set_random_state(after, device)


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
