"""Runs the parts in another process, watches the clock, and writes down what comes back. Needs Python alone."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tools.gpu.rows import FAILED, SKIPPED, Report, Row
from tools.gpu.settings import CLOSING, GRACE, STARTUP, Part, Settings, part_end

LOG = "run.log"
ENDING = {signal.SIGTERM, signal.SIGINT}
ATTEMPTS = 2  # workers in a row that may end before they begin a part


class Stopped(Exception):
    """The worker had to be killed, or ended by itself; the message says which."""


def supervise(todo: list[Part], settings: Settings, report: Report) -> None:
    """Run every part, or say why not. Returns before `settings.end`."""
    remaining, fruitless = list(todo), 0
    while remaining and time.time() < settings.end - CLOSING and fruitless < ATTEMPTS:
        before = len(remaining)
        _one_worker(remaining, settings, report)
        fruitless = fruitless + 1 if len(remaining) == before else 0
    for part in remaining:
        reason = "no worker could be started" if fruitless else "no time was left"
        report.add(Row(part.name, SKIPPED, message=reason, part=part.name, section=part.section))


def _one_worker(remaining: list[Part], settings: Settings, report: Report) -> None:
    """Start a worker and follow it to its end; parts that it began are no longer `remaining`."""
    current: Part | None = None
    known = {part.name: part for part in remaining}
    worker: Worker | None = None
    try:
        with _signals_wait():  # one that comes while a process starts would leave it behind
            worker = Worker(remaining, settings)
        worker.limit = min(time.time() + STARTUP, settings.end - CLOSING)
        for event in worker.events():
            if "machine" in event:
                report.machine.update(event["machine"])
                report.write()
            elif "begin" in event:
                current = known[event["begin"]]
                remaining.remove(current)
                worker.limit = part_end(current, settings, time.time()) + GRACE
            elif "row" in event:
                report.add(Row(**event["row"]))
            else:
                current = None
                worker.limit = min(time.time() + STARTUP, settings.end - CLOSING)
    except Exception as reason:  # Stopped, or words on the pipe that are none of ours
        name, section = (current.name, current.section) if current else ("worker", "Worker")
        words = worker.last_words() if worker else "it did not start"
        report.add(Row(name, FAILED, message=f"{reason}; {words}", part=name, section=section))
    finally:
        if worker:
            worker.kill()


@contextmanager
def _signals_wait() -> Iterator[None]:
    former = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def command(writer: int, settings: Settings, names: list[str]) -> list[str]:
    """What starts a worker."""
    return [sys.executable, "-u", "-m", "tools.gpu.worker", str(writer), settings.to_json(), *names]


class Worker:
    """A process that runs parts, and a pipe on which it tells of them."""

    def __init__(self, todo: list[Part], settings: Settings):
        self.limit = settings.end
        self.log = Path(settings.out) / LOG
        self.reader, writer = os.pipe()
        with self.log.open("ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            words = command(writer, settings, [part.name for part in todo])
            self.process = subprocess.Popen(words, **streams, pass_fds=[writer], start_new_session=True)
        os.close(writer)

    def events(self) -> Iterator[dict[str, Any]]:
        """What the worker tells, until it ends. Stopped if it takes longer than `limit`, or ends badly."""
        rest = b""
        while True:
            ready = select.select([self.reader], [], [], max(0.0, self.limit - time.time()))[0]
            if not ready:
                raise Stopped("killed: it took longer than it may")
            data = os.read(self.reader, 65536)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            yield from map(json.loads, lines)
        try:
            code = self.process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            raise Stopped("killed: it did not end") from None
        if code:
            raise Stopped(f"the process ended with code {code}")

    def last_words(self) -> str:
        """The end of what the worker printed."""
        lines = self.log.read_text(errors="replace")[-4000:].splitlines()
        return "last output: " + (" / ".join(line.strip() for line in lines[-4:] if line.strip())[-600:] or "none")

    def kill(self) -> None:
        """End the worker and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.reader)
