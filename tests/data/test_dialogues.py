"""Dialogues from the columns that instruction data come in, and refusals of those that hold none."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from llm2enc.data import Dialogue, read_dialogues
from llm2enc.data.dialogues import columns_of
from llm2enc.recipe import DocstringsData, FilesData


def read(folder: Path, rows: list[dict], **fields) -> list[Dialogue]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_dialogues(FilesData(kind="files", path=str(path), **fields)))


def said(*turns: str, system: str = "") -> list[dict]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns))]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "rows",
    [
        [{"messages": said("a", "b", "c", "d"), "id": 1}, {"messages": said("e", "f"), "id": 2}],
        [{"text": ["a", "b", "c", "d"]}, {"text": ["e", "f"]}],
    ],
)
def test_turns_of_messages_and_of_gritlms_lists(rows: list[dict], streaming: bool, tmp_path: Path) -> None:
    assert read(tmp_path, rows, streaming=streaming) == [Dialogue((("a", "b"), ("c", "d"))), Dialogue((("e", "f"),))]


@pytest.mark.parametrize("name", ["response", "completion"])
def test_a_prompt_and_a_response(name: str, tmp_path: Path) -> None:
    assert read(tmp_path, [{"prompt": "a", name: "b"}, {"prompt": "c", name: " "}]) == [Dialogue((("a", "b"),))]


def test_a_system_message_and_what_nobody_answers(tmp_path: Path) -> None:
    rows = [{"messages": said("a", "b", "c", system="Be kind.")}, {"messages": said("a")}]
    assert read(tmp_path, rows) == [Dialogue((("Be kind.\n\na", "b"),))]


def test_columns_by_name(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "b", "messages": said("c", "d")}]
    assert read(tmp_path, rows) == [Dialogue((("c", "d"),))]
    columns = {"prompt": "instruction", "response": "output"}
    assert read(tmp_path, rows, columns=columns) == [Dialogue((("a", "b"),))]


@pytest.mark.parametrize(
    ("schema", "given", "words"),
    [
        ({"query": pa.string(), "positive": pa.string()}, {}, "hold no dialogues"),
        ({"prompt": pa.string()}, {}, "hold no dialogues"),
        ({"text": pa.string()}, {}, "hold no dialogues"),  # texts
        ({"text": pa.list_(pa.string()), "prompt": pa.string(), "response": pa.string()}, {}, "two readings"),
        ({"prompt": pa.string(), "a": pa.string()}, {"response": "b"}, "no column 'b'"),
        ({"a": pa.string()}, {"messages": "a"}, "holds string, expected"),
        ({"a": pa.list_(pa.string()), "b": pa.string()}, {"prompt": "a", "response": "b"}, "expected text"),
    ],
)
def test_columns_that_hold_no_dialogue_are_refused(schema: dict, given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        columns_of(schema, given)


def test_roles_that_do_not_take_turns_are_refused(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}]}]
    with pytest.raises(ValueError, match="the roles of a row are assistant, user; expected user and assistant in turn"):
        read(tmp_path, rows)


def test_fields_for_other_rows_are_refused(tmp_path: Path) -> None:
    rows = [{"messages": said("a", "b")}]
    with pytest.raises(ValueError, match="remove `format` and `view`"):
        read(tmp_path, rows, format="ms-swift")
    with pytest.raises(ValueError, match="whose roles are messages, prompt, response"):
        read(tmp_path, rows, columns={"query": "messages"})
    with pytest.raises(ValueError, match="which docstrings and BEIR folders are not"):
        read_dialogues(DocstringsData(kind="docstrings"))
    with pytest.raises(ValueError, match="written as text"):
        read(tmp_path, [{"prompt": "['a']", "response": "['b']"}])
