"""How the processes of a run join, and how they end: all at once, if one fails."""

import os
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.util import Finalize
from typing import TypeVar

import torch
import torch.distributed as dist

from llm2enc.distributed import failure
from llm2enc.distributed.launch import check_launcher
from llm2enc.errors import InputError, Interrupted, Unreachable

T = TypeVar("T")
_client: failure.Client | None = None


def start() -> None:
    """Join the other processes if torchrun or accelerate started several; nothing otherwise.

    From here on they watch each other (failure.py). LLM2ENC_TIMEOUT is the number of minutes, 30 by default, after which a
    collective, or a process without a sign of life, is given up. ValueError if it is no such number, or if the launcher
    was asked for something that would not happen (launch.py).
    """
    check_launcher()
    minutes = _timeout()
    if _client is not None or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(minutes=minutes))
    _join(60 * minutes)


@contextmanager
def abort_with_peers(advice: str) -> Iterator[None]:
    """If this process fails in here, the others stop too and say why; so it does if another one failed first.

    advice  how to go on, for the message of those that are stopped
    """
    if _client is not None:
        _client.advice = advice
    try:
        yield
    except Interrupted:  # by all processes at the same step: none has to tell the others
        raise
    except BaseException as error:
        if _client is not None:
            interrupted = isinstance(error, KeyboardInterrupt)
            text = "was interrupted" if interrupted else f"failed: {type(error).__name__}: {error}"
            # A collective breaks or times out because of another process, whose end says more about the cause.
            _client.fail(text, 130 if interrupted else 1, failure.GRACE if _in_collective(error) else 0.0)
        raise


def barrier() -> None:
    """Wait for every process, for as long as it takes: one may work alone for hours."""
    if _client is not None:
        _client.wait()
    elif running():  # joined by someone else
        dist.barrier()


def broadcast(value: T) -> T:
    """The main process's value."""
    values = [value]
    if running():
        dist.broadcast_object_list(values)
    return values[0]


def running() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized()


def _timeout() -> float:
    """Minutes after which a process that does not take part is given up."""
    given = os.environ.get("LLM2ENC_TIMEOUT", "30")
    try:
        minutes = float(given)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= 7 * 24 * 60:
        raise InputError(f"LLM2ENC_TIMEOUT is {given!r}; expected minutes, more than 0 and at most a week")
    return minutes


def _join(silence: float) -> None:
    """Let the processes watch each other."""
    global _client
    number, count = dist.get_rank(), dist.get_world_size()
    supervisor = failure.Supervisor(count, silence) if number == 0 else None
    port, token = broadcast((supervisor.port, supervisor.token) if supervisor else (0, ""))
    host = "localhost" if supervisor else os.environ["MASTER_ADDR"]
    local, node = int(os.environ.get("LOCAL_RANK", "0")), os.environ.get("GROUP_RANK", socket.gethostname())
    try:
        _client = failure.Client((host, port), token, number, count, node, local, silence)
    except OSError as error:
        raise Unreachable(
            f"process {number} on {socket.gethostname()} cannot reach process 0 at {host}, port {port} ({error}). The "
            "machines of a run need open ports between them"
        ) from error
    for one in filter(None, (_client, supervisor)):
        Finalize(None, one.leave, exitpriority=0)  # atexit would leave out processes that multiprocessing forked


def _in_collective(error: BaseException) -> bool:
    """Whether an error comes from a collective."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and os.path.join("torch", "distributed") in frames[-1].filename
