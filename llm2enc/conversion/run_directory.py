"""The folder of a run: one job at a time writes it, all processes of the job see it, and a killed one leaves it in order.

recipe.yaml      makes a folder one of ours; there before anything else
.lock            who writes here now; the operating system releases it with the process (.lock.soft: no file locks here)
.overwritten/    what --overwrite deletes: a folder with this and without a recipe is ours and counts as empty

--overwrite deletes what a run writes, and nothing else that is in its folder.
"""

import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llm2enc import distributed
from llm2enc.errors import InputError
from llm2enc.recipe import Recipe, load_recipe
from llm2enc.storage import check_room, file_lock, owner, remove_stale, replace_text, stale_temps

RECIPE, LOCK, OVERWRITTEN = "recipe.yaml", ".lock", ".overwritten"
# What a run writes: the recipe, scores, a folder of each stage, the encoder, the generator; and what a killed process left.
_WRITTEN = re.compile(rf"{re.escape(RECIPE)}|history\.json|\d+-[a-z_]+|model|generator|\..+\.(?:partial|former)-\d+")
PATIENCE = 60.0  # seconds that a shared file system may take to show a new file on another machine


@contextmanager
def opened(recipe: Recipe, out: Path, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold `out` for this job, checked but unchanged: `begin` makes it a run's.

    raises  ValueError if it cannot be used as asked, another job writes it, or a process of this job does not see it;
            OSError if it cannot be written
    """
    if resume and overwrite:
        raise InputError("give one of resume and overwrite: one keeps what is there, the other deletes it")
    if not distributed.is_main():
        _wait_until_visible(out / LOCK, distributed.broadcast(""))
        distributed.barrier()
        yield
        return
    made = [path for path in (out, *out.parents) if not path.exists()]
    try:
        _check(recipe, out, resume, overwrite)
        check_room(out)
        out.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(8)
        with file_lock(out / LOCK, out, token):
            _check(recipe, out, resume, overwrite)  # once more: the job before us may just have ended
            distributed.broadcast(token)
            distributed.barrier()
            yield
    finally:
        for path in made:  # empty if nothing was begun
            with suppress(OSError):
                path.rmdir()


def begin(recipe: Recipe, out: Path, overwrite: bool) -> None:
    """Make the opened folder the recipe's run, on the main process; the others wait."""
    if distributed.is_main():
        old = out / OVERWRITTEN
        if overwrite or (old.exists() and not (out / RECIPE).exists()):
            old.mkdir(exist_ok=True)
            # Without its recipe the folder counts as empty: a kill in between leaves no mixture of two runs.
            for name in (RECIPE, *sorted(os.listdir(out))):
                if _WRITTEN.fullmatch(name) and os.path.lexists(out / name):
                    (out / name).rename(old / f"{secrets.token_hex(4)}-{name}")
        remove_stale(out / RECIPE)
        if not (out / RECIPE).exists():
            replace_text(out / RECIPE, recipe.to_yaml())
        shutil.rmtree(old, ignore_errors=True)
    distributed.barrier()


def _check(recipe: Recipe, out: Path, resume: bool, overwrite: bool) -> None:
    """ValueError if `out` cannot be used as asked; nothing is changed."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder with -o")
    saved = out / RECIPE
    if not saved.is_file():
        ours = {out / LOCK, out / f"{LOCK}.soft", *stale_temps(saved)}
        if out.is_dir() and not (out / OVERWRITTEN).is_dir() and set(out.iterdir()) - ours:
            raise InputError(f"{out} is not empty and holds no run of llm2enc; choose another folder with -o")
        return
    if not resume and not overwrite:
        raise InputError(f"{out} holds a run already; add --resume to go on with it, or --overwrite")
    if resume and _result(load_recipe(str(saved))) != _result(recipe):
        raise InputError(f"{out} was started with another recipe (see {saved}); give that one, or another -o")


def _result(recipe: Recipe) -> Recipe:
    """What the result depends on: where processes keep the weights may change within a run, and so may words about it."""
    alike = {number: stage.model_copy(update={"strategy": "ddp"}) for number, stage in recipe.training.items()}
    stages = tuple((alike | recipe.merges)[number] for number in range(len(recipe.stages)))
    words = {"description": "", "family": "", "published": {}}
    return recipe.model_copy(update={"stages": stages, **words})


def _wait_until_visible(path: Path, token: str) -> None:
    """Wait until a file that the main process has written shows here. ValueError if it does not."""
    until = time.monotonic() + PATIENCE
    while owner(path).get("token") != token:
        if time.monotonic() > until:
            raise InputError(
                f"process {distributed.rank()} on {socket.gethostname()} does not see {path.absolute()}, which process 0 "
                "has written: all machines of a run need one folder that they share; give its path there with -o"
            )
        with suppress(OSError):
            os.listdir(path.parent)  # makes network file systems look again
        time.sleep(0.2)
