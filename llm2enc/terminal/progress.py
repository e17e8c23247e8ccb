"""How far something is, on stderr: stdout is for results."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def bar(what: str, total: int | None = None, show: bool = True, keep: bool = False) -> Iterator[Callable[..., None]]:
    """A progress bar, and the function that moves it: `move(3)` by three, `move(to=7)` to the seventh.

    That function also takes `what` and `facts`, the texts before and behind the bar.

    total  None if it is not known
    keep   the bar stays when all is done
    """
    if not show:
        yield lambda *_, **__: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    before, behind = (TextColumn(field, markup=False) for field in ("{task.description}", "{task.fields[facts]}"))
    columns = (before, BarColumn(), MofNCompleteColumn(), behind, TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, transient=not keep, refresh_per_second=2, console=console) as progress:
        task = progress.add_task(what, total=total, facts="")

        def move(count: float = 0, to: float | None = None, what: str | None = None, **facts: Any) -> None:
            progress.update(task, advance=count, completed=to, description=what, **facts)

        yield move


@contextmanager
def counter(what: str, unit: str, show: bool) -> Iterator[Callable[[str, int], None]]:
    """A bar without an end over several things, and the function that adds to one of them: `advance(name, count)`."""
    done: Counter[str] = Counter()
    with bar(what, show=show) as move:

        def advance(name: str, count: int) -> None:
            done[name] += count
            move(to=done[name], what=name, facts=unit)

        yield advance
