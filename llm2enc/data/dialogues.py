"""Dialogues: what a user says and what is answered, from the columns that instruction data come in.

    messages                [{role, content}], the roles user and assistant in turn (Tulu, UltraChat, the hub's chat format)
    text                    [user, assistant, user, assistant, ...] (GritLM, gritlm/training/data.py)
    prompt, response        a text each; `completion` is taken for `response`

A system message stands in front of the first user's text, an empty line between. What a user says behind the last response
predicts nothing, and is left out.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from llm2enc.data import cells
from llm2enc.data.rows import Dialogue
from llm2enc.errors import DataError

_NAMES = {
    "messages": ("messages", "text"),
    "prompt": ("prompt",),
    "response": ("response", "completion"),
}


def columns_of(schema: Mapping[str, pa.DataType], given: Mapping[str, str]) -> dict[str, str]:
    """The columns by role, `messages` or `prompt` and `response`.

    given   role to column, as the recipe says it
    raises  DataError if neither is there, or both, or if a column holds something else
    """
    for role, column in given.items():
        if column not in schema:
            raise DataError(f"no column {column!r} ({role}); the columns are {', '.join(schema)}")
    found = {role: next((name for name in names if name in schema), None) for role, names in _NAMES.items()}
    found = {role: name for role, name in found.items() if name and cells.holds_turns(role, schema[name])} | dict(given)
    alone, pair = "messages" in found, {"prompt", "response"} <= found.keys()
    if given:  # the recipe goes before what is there besides
        alone, pair = "messages" in given, "messages" not in given and pair
    if alone == pair:
        raise DataError(
            f"the columns {', '.join(schema)} hold {'two readings of' if alone else 'no'} dialogues; expected messages "
            "[{role, content}], or a prompt and a response. Say which columns they are: `columns: {messages: ...}` or "
            "`columns: {prompt: ..., response: ...}`"
        )
    roles = ("messages",) if alone else ("prompt", "response")
    for role in roles:
        if not cells.holds_turns(role, schema[found[role]]):
            raise DataError(
                f"column {found[role]!r} ({role}) holds {schema[found[role]]}, expected "
                f"{'[{role, content}] or a list of texts' if role == 'messages' else 'text'}"
            )
    return {role: found[role] for role in roles}


def responses(cell: Any) -> list[cells.Text]:
    """The responses in a cell: a text is one; of a list every second text, or what the assistant says."""
    if isinstance(cell, str):
        return [("", cell)]
    parts = cell or []
    if parts and isinstance(parts[0], dict):
        return [("", part["content"] or "") for part in parts if part["role"] == "assistant"]
    return [("", text or "") for text in parts[1::2]]


def to_dialogue(columns: Mapping[str, str], record: Mapping[str, Any]) -> Dialogue:
    """The dialogue of a record that has a response. DataError if its turns are not a user's and an assistant's, in turn."""
    if "messages" not in columns:
        return Dialogue(((record[columns["prompt"]] or "", record[columns["response"]]),))
    cell = record[columns["messages"]]
    system, said = "", cell
    if isinstance(cell[0], dict):
        roles = [part["role"] for part in cell]
        system = cell[0]["content"] or "" if roles[0] == "system" else ""
        start = roles[0] == "system"
        said = [part["content"] for part in cell[start:]]
        if any(role != ("user", "assistant")[place % 2] for place, role in enumerate(roles[start:])):
            raise DataError(
                f"column {columns['messages']!r}: the roles of a row are {', '.join(map(str, roles))}; expected user and "
                "assistant in turn, a system message before them at most"
            )
    texts = [text or "" for text in said]
    texts[0] = "\n\n".join(filter(None, (system, texts[0])))
    return Dialogue(tuple(zip(texts[0::2], texts[1::2], strict=False)))
