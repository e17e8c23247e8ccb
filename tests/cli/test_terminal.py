"""Tables and bars: texts are shown as they are, whatever is in them."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from llm2enc.terminal import Column, bar, counter, line, note, readable, status, table

EVIL = "[red]x[/] [/nothing] \x1b[31m \ud800"
SEEN = r"[red]x[/] [/nothing] \x1b[31m \xd800"


def shown(*things: object, width: int = 100) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    for thing in things:
        thing(console) if callable(thing) else console.print(thing)
    return out.getvalue()


def test_readable_keeps_text_and_lines_and_nothing_that_steers() -> None:
    assert readable("Zürich 東京 🦜\n[b]") == "Zürich 東京 🦜\n[b]"
    assert readable(EVIL) == SEEN


def test_no_text_is_markup_anywhere_in_a_table() -> None:
    text = shown(table([EVIL, Column("n", "right")], [(EVIL, Text("kept", "red")), (None, "1")], EVIL))
    assert text.count(SEEN) == 3 and "kept" in text and "None" not in text


def test_lines_and_notes_say_all_of_it_in_one_line() -> None:
    text = shown(lambda console: line(console, status("failed"), f" {EVIL} ", ("dim" * 60, "dim")))
    assert text == f"failed {SEEN} {'dim' * 60}\n"
    assert shown(lambda console: note(console, EVIL, "what.", "do this")) == f"{SEEN}: what. do this.\n"
    assert shown(lambda console: note(console, "name", "")) == ""


def test_a_narrow_table_loses_no_character() -> None:
    name = "model-" + "0123456789" * 6
    narrow = shown(table(["file", "verdict"], [(name, status("agrees"))]), width=40)
    assert "".join(one.split()[0] for one in narrow.splitlines() if one.strip("─ ")).endswith(name)
    assert "…" not in narrow and "agrees" in narrow


def test_every_row_has_its_style() -> None:
    assert [row.style for row in table(["a"], [["1"], ["2"]], styles=["", "dim"]).rows] == ["", "dim"]


@pytest.mark.parametrize("show", [True, False])
def test_a_bar_keeps_to_stderr(show: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with bar("encode [x]", 7, show, keep=True) as move:
        move(2)
        move(to=7, facts="loss [0]")
    with counter("opening", "rows", show) as advance:
        advance("a", 2)
        advance("a", 3)
    said = capsys.readouterr()
    assert not said.out and all((text in said.err) == show for text in ("encode [x]", "7/7", "loss [0]"))
