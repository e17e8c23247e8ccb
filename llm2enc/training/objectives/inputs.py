"""The texts of a batch and what is read with each: its instruction, in-context examples, the id of its row."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from llm2enc.data import Pair, RowBatch
from llm2enc.recipe import ContrastiveStage, Role
from llm2enc.text import Example, InputFormat, Tokens, concatenate

PIECE = 256  # texts tokenized at a time: what a tokenizer returns takes far more memory than the tokens


class TextInput(NamedTuple):
    """A text, and what is read with it."""

    text: str
    instruction: str
    is_query: bool
    row: int = 0
    """Of the batch."""
    mark: str = ""
    """Stands right behind the text."""
    examples: tuple[Example, ...] = ()


def inputs_of(pairs: Sequence[Pair]) -> list[TextInput]:
    """The texts of the pairs, row by row."""
    return [
        TextInput(text, instruction, is_query, row)
        for row, pair in enumerate(pairs)
        for text, instruction, is_query in (
            (pair.query, pair.instruction, True),
            *((document, pair.document_instruction, False) for document in (pair.positive, *pair.negatives)),
        )
    ]


def with_examples(
    given: TextInput,
    pairs: Sequence[Pair],
    stage: ContrastiveStage,
    input_format: InputFormat,
    seed: int,
    step: int,
) -> TextInput:
    """A query with other rows of the batch as in-context examples (bge-en-icl, arXiv 2409.15700), as many as fit of a
    number drawn from 0 to `in_context_examples`; a document as it is.

    The draws depend on seed, step and row alone, and differ from those of negatives.
    """
    if not given.is_query:
        return given
    generator = np.random.default_rng((seed, step, given.row + 1))  # without the 1 row 0 would repeat (seed, step)
    others = [row for row in range(len(pairs)) if row != given.row]
    count = min(int(generator.integers(stage.in_context_examples + 1)), len(others))
    chosen = [pairs[row] for row in generator.choice(others, count, replace=False).tolist()] if count else []
    examples = [Example(pair.instruction, pair.query, pair.positive) for pair in chosen]
    return given._replace(examples=input_format.fitting(examples, given.instruction, stage.max_tokens))


def row_marks(rows: RowBatch) -> list[str]:
    """What stands behind the texts of each row: an id that no other row of the run has, where the source asks for it."""
    first = rows.step * len(rows.rows)
    return [f" {first + row}" if rows.unique_ids else "" for row in range(len(rows.rows))]


def with_mark(pair: Pair, mark: str) -> Pair:
    """The pair with the mark as a part of its texts, for comparisons: equal labels of other rows are then different."""
    negatives, others = (tuple(text + mark for text in texts) for texts in (pair.negatives, pair.extra_positives))
    query, positive = pair.query + mark, pair.positive + mark
    return replace(pair, query=query, positive=positive, negatives=negatives, extra_positives=others)


def pack(input_format: InputFormat, inputs: Sequence[TextInput], max_tokens: int | None) -> Tokens:
    """The tokens of the inputs. A document with an instruction (a symmetric task) takes the query template, as it will
    at encoding time."""
    asking = np.array([given.is_query or bool(given.instruction) for given in inputs])
    order = np.argsort(~asking, kind="stable")  # those that ask first
    split = int(asking.sum())
    packed = []
    parts: tuple[tuple[np.ndarray, Role], ...] = ((order[:split], "query"), (order[split:], "document"))
    for part, role in parts:
        for piece in np.split(part, range(PIECE, len(part), PIECE)) if len(part) else ():
            texts, instructions, _, _, marks, examples = zip(*(inputs[place] for place in piece), strict=True)
            packed.append(input_format.pack(texts, instructions, role, max_tokens, examples=examples, marks=marks))
    return concatenate(packed).select(torch.from_numpy(np.argsort(order)))
