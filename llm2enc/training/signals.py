"""Ctrl-C and SIGTERM: noted when they come, obeyed at the end of a step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llm2enc import distributed


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """A list that gets the signal's number on Ctrl-C or SIGTERM; a second Ctrl-C stops at once."""
    received: list[int] = []

    def note(number: int, frame) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: a notebook's or a server's own handlers stay
        former = {}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def stop_requested(received: list[int], device: torch.device) -> bool:
    """Whether any process was asked to stop: all must leave the loop at the same step."""
    if distributed.world_size() == 1:
        return bool(received)
    return bool(distributed.all_reduce_sum(torch.tensor(float(len(received)), device=device)).item())
