"""The process that runs parts, one after another, and tells of them on a pipe: `worker FD SETTINGS PART...`."""

import importlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from tools.gpu.rows import Row, failed
from tools.gpu.settings import Context, Part, Settings, part_end, parts


def main() -> None:
    pipe, settings, wanted = int(sys.argv[1]), Settings.from_json(sys.argv[2]), sys.argv[3:]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})  # held back while this was started
    _end_with_parent()

    def tell(event: dict[str, Any]) -> None:
        os.write(pipe, (json.dumps(event, default=str) + "\n").encode())

    from tools.gpu import machine

    machine.prepare(settings)
    tell({"machine": machine.facts(settings)})
    for part in [part for part in parts(settings) if part.name in wanted]:
        tell({"begin": part.name})
        _run(part, Context(settings, part_end(part, settings, time.time())), tell)
        machine.clean_up()
        tell({"end": part.name})
        if machine.is_spent(settings):
            break  # the supervisor starts a fresh process for the others


def _run(part: Part, context: Context, tell) -> None:
    """Tell every row of a part, and of its failure if it does."""
    started = time.time()

    def send(row: Row) -> None:
        nonlocal started
        now = time.time()
        row.part, row.section, row.seconds, started = part.name, part.section, now - started, now
        tell({"row": asdict(row)})

    try:
        module, _, name = part.function.partition(":")
        for row in getattr(importlib.import_module(f"tools.gpu.{module}"), name)(context, *part.arguments):
            send(row)
    except Exception as error:
        send(failed(part.name, error))


def _end_with_parent() -> None:
    """A worker whose supervisor is gone would hold the device for nobody."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(4)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
