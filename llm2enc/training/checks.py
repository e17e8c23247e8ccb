"""What can be wrong with the numbers of a run, found in the step where it happens and named.

not finite        a loss, vector or gradient that is no number       stops before the update
zero loss         nothing to learn from                              stops the first step, later a warning
nothing moves     the first update leaves every trained weight as it was      stops
some don't move   trained tensors that two updates leave as they were         a warning that names them
duplicates        a query's positive stands among its negatives               a warning per data source
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llm2enc import distributed
from llm2enc.errors import NotFinite, NothingLearnt

_log = logging.getLogger(__name__)

_NAMED = 3  # examples in a message


def check_vectors(loss: Tensor, vectors: Tensor) -> None:
    """NotFinite if the loss is no number; names the texts of the global batch whose vectors (B, D) made it so."""
    if torch.isfinite(loss):
        return
    bad = (~torch.isfinite(vectors).all(1)).nonzero()[:, 0].tolist()
    whose = f"the vectors of {_some(bad)} of {len(vectors)} texts are not finite" if bad else "all vectors are finite"
    raise NotFinite(f"loss {loss.item()}, {whose}")


def check_finite(loss: Tensor, norm: Tensor, trained: Mapping[str, nn.Parameter]) -> None:
    """NotFinite if the loss or the norm of the gradient is no number; names the parameters with such a gradient."""
    if torch.isfinite(loss) and torch.isfinite(norm):
        return
    bad = [
        name
        for name, p in trained.items()
        if p.grad is not None and not torch.isfinite(distributed.to_local(p.grad)).all()
    ]
    whose = f", in {_some(bad)} of {len(trained)} trained tensors" if bad else ""
    raise NotFinite(f"loss {loss.item()}, gradient norm {norm.item()}{whose}")


class Guard:
    """Watches the steps of one stage."""

    def __init__(self, trained: Mapping[str, nn.Parameter]):
        self.trained = trained
        self._still = dict.fromkeys(trained, True)
        self._updates = 0
        self._first = True
        self._said: set[tuple[str, str]] = set()

    def check_batch(self, metrics: Mapping[str, Tensor], source: str) -> None:
        """Warnings about a batch, once for each source; NothingLearnt if the loss of the first batch is exactly zero.

        metrics  what the objective returned: `loss`, and `duplicate_positives`, the share of rows whose positive is
                 another document of the batch too, and counts as a negative there
        """
        if metrics["loss"].item() == 0:
            reason = (
                "the loss is exactly 0, which teaches nothing: no query has a negative (one row per batch, "
                "`in_batch_negatives: false` without hard negatives), all pairs have one score, or all are told apart "
                "already (raise `temperature`, or bring harder negatives)"
            )
            if self._first:
                raise NothingLearnt(reason)
            self._warn("zero loss", source, reason)
        self._first = False
        share = float(metrics.get("duplicate_positives", 0))
        if share:
            self._warn(
                "duplicates",
                source,
                f"the positives of {100 * share:.0f} % of the rows of a batch are also among their negatives, so they are "
                "pulled and pushed at once. Set `loss.masks.duplicates: true` in the stage; for class labels set "
                "`unique_ids: true` in the source, or `in_batch_negatives: false` and give it hard negatives",
            )

    @contextmanager
    def update(self, lr: float) -> Iterator[None]:
        """Around the optimizer's step. NothingLearnt if the first one at a rate above zero moves nothing."""
        if lr == 0 or self._updates == 2:
            yield
            return
        before = {name: _norm(parameter) for name, parameter in self.trained.items()}
        yield
        self._updates += 1
        moved = torch.stack(
            [(_norm(p) != before[name]).to(distributed.to_local(p).device) for name, p in self.trained.items()]
        )
        moved = distributed.all_reduce_sum(moved.float()).tolist()  # of a sharded tensor every process has a part
        for name, count in zip(self.trained, moved, strict=True):
            self._still[name] &= not count
        still = [name for name, unmoved in self._still.items() if unmoved]
        if len(still) == len(self.trained):
            raise NothingLearnt(self._why_nothing_moves(lr))
        if self._updates == 2 and still:  # the A of a fresh adapter moves in the second update, after its B
            self._warn(
                "still",
                "the first updates",
                f"left {_some(still)} of {len(self.trained)} trained tensors as they were: nothing that the "
                "loss sees depends on them (experts that no token chose, or targets beside the way of the states)",
            )

    def _why_nothing_moves(self, lr: float) -> str:
        peaks = [
            float(distributed.to_local(p.grad).abs().max())
            for p in self.trained.values()
            if p.grad is not None and distributed.to_local(p).numel()
        ]
        vanish = "updates vanish in the rounding of the weights"
        if not peaks:  # ZeRO lets go of gradients in the update
            reason = f"the loss does not depend on them, or at the rate {lr:.1e} {vanish}"
        elif max(peaks) == 0:
            reason = "their gradients are all zero: the loss does not depend on them"
        else:
            reason = f"the largest gradient is {max(peaks):.1e} and the rate {lr:.1e}: {vanish}"
        return f"the first update moved none of the {len(self.trained)} trained tensors; {reason}"

    def _warn(self, kind: str, source: str, text: str) -> None:
        if (kind, source) not in self._said and distributed.is_main():
            _log.warning("%s: %s", source, text)
        self._said.add((kind, source))


def _norm(parameter: nn.Parameter) -> Tensor:
    """One number that changes with the weights, in float64, so that no small update is lost in it."""
    return torch.linalg.vector_norm(distributed.to_local(parameter.detach()), dtype=torch.float64)


def _some(found: list) -> str:
    """How many, and the first of them."""
    return f"{len(found)} ({', '.join(map(str, found[:_NAMED]))}{', ...' if len(found) > _NAMED else ''})"
