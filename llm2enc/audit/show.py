"""Rows exactly as the model will see them: token by token, with those that enter the vector marked."""

from collections.abc import Sequence
from typing import Any

from llm2enc.audit.checks.lengths import InputView, encodable, prompt_of
from llm2enc.audit.chunks import Row
from llm2enc.data import ScoredPair
from llm2enc.recipe import Role


def show(rows: Sequence[Row], view: InputView) -> list[dict[str, Any]]:
    """Each row's texts as `seen` gives them, by side."""
    return [
        {side: [seen(text, *prompt_of(side, row), view) for text in texts] for side, texts in _sides(row)}
        for row in rows
    ]


def seen(text: str, instruction: str, role: Role, view: InputView) -> dict[str, Any]:
    """The pieces of an input with their pooling flags; joined, the pieces are the decoded input."""
    if view.block_tokens:
        ids = view.input_format.plain_ids([encodable(text)])[0]
        pool, truncated = [True] * len(ids), False
    else:
        tokens = view.input_format.pack([encodable(text)], instruction, role, view.max_tokens)
        ids, pool, truncated = tokens.ids.tolist(), tokens.pool.tolist(), bool(tokens.truncated[0])
    return {
        "instruction": instruction,
        "pieces": pieces(view.input_format.tokenizer, ids),
        "pooled": pool,
        "tokens": len(ids),
        "truncated": truncated,
    }


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The part of the decoded text that each token adds: empty for a token that ends inside of a character.

    Decoding a token alone would lose the space in front of it (SentencePiece) or give half a character (byte level).
    """

    def decoded(count: int) -> str:
        return tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    found: list[str] = []
    known = 0
    for count in range(1, len(ids) + 1):
        text = decoded(count)
        whole = len(text.rstrip("\ufffd")) if count < len(ids) else len(text)
        found.append(text[known:whole])
        known = max(known, whole)
    return found


def marked(shown: dict[str, Any], most: int = 60) -> str:
    """One line: pieces between bars, runs of pooled ones in brackets, the middle of a long input left out."""
    line, pooled = "", False
    for place, (piece, pool) in enumerate(zip(shown["pieces"], shown["pooled"], strict=True)):
        if most // 2 <= place < len(shown["pieces"]) - most // 2 and len(shown["pieces"]) > most:
            if place == most // 2:
                line += f" ... {len(shown['pieces']) - 2 * (most // 2)} tokens ... "
            continue
        if pool != pooled:
            line += "[" if pool else "]"
        elif line and not line.endswith(("[", "]")):
            line += "|"
        pooled = pool
        line += piece.replace("\n", "\\n")
    return line + ("]" if pooled else "")


def _sides(row: Row) -> list[tuple[str, list[str]]]:
    if isinstance(row, str):
        return [("text", [row])]
    if isinstance(row, ScoredPair):
        return [("first", [row.first]), ("second", [row.second])]
    return [
        ("query", [row.query]),
        ("positive", [row.positive]),
        ("other", list(row.extra_positives)),
        ("negative", list(row.negatives)),
    ]
