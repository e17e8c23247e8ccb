"""Formats: which columns of a table are the query, the positives and the negatives, and how their cells read.

    columns                 query, positive, negatives | negative | negative_1 ..., instruction; the last two roles are
                            optional, positive and negatives may be lists. Any table, once `columns` names its columns.
    sentence-transformers   anchor, positive, negative | negative_1 ..., or a pair such as question, answer.
                            `label`, `labels`, `score`, `scores` are scores, the ORDER of all other columns decides
                            (sbert.net, Training Overview, "Dataset Format"; base/data_collator.py of v6)
    flagembedding           query, pos: [...], neg: [...]; `prompt` is the instruction; type is for its own trainer
                            (FlagEmbedding, abc/finetune/embedder/AbsDataset.py)
    gritlm                  query: [instruction, text], pos and neg: [[instruction, text], ...]; plain texts are taken too
                            (GritLM, gritlm/training/data.py)
    tevatron                query | query_text, positive_passages and negative_passages: [{docid, title, text}]; a passage
                            is title + space + text (Tevatron, docs/datasets.md and retriever/dataset.py)
    ms-swift                messages: [{role, content}], positive_messages and negative_messages: [[{role, content}]]; a
                            system message is the instruction. Older: query, response, rejected_response
                            (ms-swift, docs/source_en/BestPractices/Embedding.md, and the same page of v3.8)
    beir                    a folder: data/beir.py

Scores, in a table of any format: pos_scores | positive_scores and neg_scores | negative_scores, a number for each positive
and negative; or one list in a column of labels, the positives' first (distillation in sentence-transformers
and Tevatron). A number there is the score of a row of two texts (`ScoredPair`).

Detection is a pure function of the schema: it reads no file, and decides nothing that its result does not say.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llm2enc.data import cells, content
from llm2enc.data.rows import Pair, PairKind, ScoredPair
from llm2enc.errors import DataError

Schema = Mapping[str, pa.DataType]
Roles = dict[str, tuple[str, ...]]

LABELS = ("label", "labels", "score", "scores")  # what sentence-transformers takes for labels
_SCORES = {"positive_scores": ("positive_scores", "pos_scores"), "negative_scores": ("negative_scores", "neg_scores")}
SCORES = ("score", "scores", *_SCORES)  # roles of columns with numbers
_MEDIA = ("images", "videos", "audios")
_REQUIRED = ("query", "positive")


@dataclass(frozen=True)
class DetectedFormat:
    """What a table was taken for."""

    format: str
    roles: Roles
    """Columns by role: query, positive, and negatives, instruction and scores where the table has them and they are read."""
    notes: tuple[str, ...] = ()
    """What else was decided: columns left out, where an instruction comes from."""

    @property
    def columns(self) -> list[str]:
        """The columns that are read, each once."""
        return list(dict.fromkeys(name for names in self.roles.values() for name in names))

    def __str__(self) -> str:
        roles = ", ".join(f"{role} = {' + '.join(names)}" for role, names in self.roles.items())
        return "; ".join([f"format {self.format} ({roles})", *self.notes])


@dataclass(frozen=True)
class Format:
    """The columns of one format, and how their cells read."""

    variants: tuple[Roles, ...]
    """Role to the names that a column of this role may have."""
    query: Callable[[Any], cells.Text]
    documents: Callable[[Any], list[cells.Text]]
    holds: Callable[[str, pa.DataType], bool]
    """Whether a column of this type can play this role."""
    expected: str = "text"
    """What the columns hold, for messages."""


def _roles(query: str, positive: str, negatives: str, instruction: str = "") -> Roles:
    named = {"query": query, "positive": positive, "negatives": negatives, "instruction": instruction}
    return {role: tuple(names.split()) for role, names in named.items() if names}


_TEXTS = (cells.plain, cells.plain_list, cells.holds_plain)
_PAIRS = (  # sentence-transformers: the query, then the document
    *("anchor positive", "sentence1 sentence2", "sentence_A sentence_B", "text1 text2"),
    *("question answer", "query answer", "query document", "query passage"),
)

FORMATS: dict[str, Format] = {
    "columns": Format((_roles("query", "positive positives", "negatives negative", "instruction"),), *_TEXTS),
    "sentence-transformers": Format(
        tuple(_roles(*pair.split(), "negatives negative", "instruction") for pair in _PAIRS), *_TEXTS
    ),
    "flagembedding": Format((_roles("query", "pos", "neg", "prompt"),), *_TEXTS),
    "gritlm": Format(
        (_roles("query", "pos", "neg"),),
        cells.instructed,
        cells.instructed_list,
        cells.holds_instructed,
        "text or [instruction, text]",
    ),
    "tevatron": Format(
        (_roles("query query_text", "positive_passages", "negative_passages"),),
        cells.plain,
        cells.passages,
        cells.holds_passages,
        "text (query) or [{title, text}]",
    ),
    "ms-swift": Format(
        (
            _roles("messages", "positive_messages", "negative_messages"),
            _roles("query", "response", "rejected_response"),
        ),
        cells.message,
        cells.messages,
        cells.holds_messages,
        "text or [{role, content}]",
    ),
}

_NAMES = {name for form in FORMATS.values() for roles in form.variants for names in roles.values() for name in names}


# ------------------------------------------------------------------------------------------------------------ detection


def detect_format(
    schema: Schema,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    row: PairKind = Pair,
    scores: bool = False,
) -> DetectedFormat:
    """The format of a table of pairs and the columns of each role.

    schema   column name to Arrow type, in the order of the table
    format   a name of `FORMATS`, or `auto`
    columns  role to column as the recipe says it; goes before what is detected
    row      the kind of row that is read
    scores   read the scores of the documents of a `Pair`, where the table has them
    raises   ValueError if no format fits, if several do, or if pairs carry scores that are not read, or scored pairs none:
             it says what to write in the recipe
    """
    given = dict(columns or {})
    for role, column in given.items():
        if column not in schema:
            raise _missing(role, column, schema)
    given = _scores(schema, given, row, scores) | given
    if format == "auto":
        format = "columns" if given.keys() & set(_REQUIRED) else _only_fit(schema, given)
        roles = _by_name(format, schema, given)
    else:
        roles = _by_order(schema, given) if format == "sentence-transformers" else _by_name(format, schema, given)
    _check_types(format, roles, schema)
    _check_meaning(format, roles, schema, given)
    return DetectedFormat(format, roles, tuple(_remarks(format, roles, schema)))


def _scores(schema: Schema, given: Mapping[str, str], row: PairKind, scores: bool) -> dict[str, str]:
    """The columns with scores that a row of this kind has, by role."""
    label = next((name for name in schema if name.lower() in LABELS), None)
    if row is ScoredPair:
        if label is None and "score" not in given:
            raise _missing("score", "score", schema)
        return {"score": label} if label else {}
    if not scores or "scores" in given:
        return {}
    found = {role: name for role, names in _SCORES.items() for name in schema if name.lower() in names}
    joint = label is not None and not found and not given.keys() & set(_SCORES) and cells.is_numbers(schema[label])
    return {"scores": label} if joint else found


def _only_fit(schema: Schema, given: Mapping[str, str]) -> str:
    named = {key: roles for key, form in FORMATS.items() if (roles := _fit(form, schema, given, lambda *_: True))}
    found = {key: roles for key, form in FORMATS.items() if (roles := _fit(form, schema, given, form.holds))}
    if "flagembedding" in found:
        del found["gritlm"]  # plain texts, which both read alike
    if "columns" in found and "anchor" not in schema:
        found.pop("sentence-transformers", None)  # `positive` says more than `answer` or `document`
    if len(found) == 1:
        return next(iter(found))
    if found:
        readings = [f"`format: {key}` ({r['query'][0]}, {r['positive'][0]})" for key, r in found.items()]
        raise DataError(
            f"the columns {', '.join(schema)} fit several formats; say which one it is: {' or '.join(readings)}"
        )
    if named:
        return next(iter(named))  # whose cells are refused with what they hold
    if "positive_document_ids" in schema:
        raise DataError(
            "these rows name their documents by id (positive_document_ids), and the texts are elsewhere; write query, "
            "positive_passages and negative_passages with their texts, or a BEIR folder"
        )
    texts = [column for column, kind in schema.items() if cells.is_text(kind) and column not in LABELS]
    order = f", or `format: sentence-transformers` to go by order ({', '.join(texts)})" if len(texts) > 1 else ""
    raise DataError(
        f"cannot tell the query and the positive among the columns {', '.join(schema)}; "
        f"write `columns: {{query: ..., positive: ...}}`{order}"
    )


def _fit(
    form: Format, schema: Schema, given: Mapping[str, str], holds: Callable[[str, pa.DataType], bool]
) -> Roles | None:
    """Columns by role of the first variant whose query and positive are there, with types that hold them."""
    for variant in form.variants:
        roles = _lookup(variant, schema, given)
        if all(role in roles and holds(role, schema[roles[role][0]]) for role in _REQUIRED):
            return roles
    return None


def _by_name(format: str, schema: Schema, given: Mapping[str, str]) -> Roles:
    variants = [_lookup(variant, schema, given) for variant in FORMATS[format].variants]
    roles = max(variants, key=lambda found: sum(role in found for role in _REQUIRED))
    for role in _REQUIRED:
        if role not in roles:
            raise _missing(role, FORMATS[format].variants[0][role][0], schema)
    return roles


def _by_order(schema: Schema, given: Mapping[str, str]) -> Roles:
    """The first column is the query, the second the positive, the others are negatives."""
    left = [name for name in schema if name not in (*LABELS, "dataset_name", *given.values())]
    roles = {role: (column,) for role, column in given.items()}
    for role in _REQUIRED:
        if role not in roles:
            if not left:
                raise _missing(role, role, schema)
            roles[role] = (left.pop(0),)
    if left and "negatives" not in roles:
        roles["negatives"] = tuple(left)
    return roles


def _lookup(variant: Roles, schema: Schema, given: Mapping[str, str]) -> Roles:
    """Columns by role: the recipe's, else the first of the names that the table has, in whatever case."""
    folded = {name.lower(): name for name in schema}
    found: Roles = {}
    for role, names in variant.items():
        known = [name if name in schema else folded.get(name.lower()) for name in names]
        column = given.get(role) or next((name for name in known if name), None)
        if column:
            found[role] = (column,)
        elif role == "negatives" and "negative" in names:
            found |= {role: numbered} if (numbered := _numbered(schema)) else {}
    return found | {role: (column,) for role, column in given.items()}


def _numbered(schema: Schema) -> tuple[str, ...]:
    """negative_1, negative_2, ..., in the order of their numbers."""
    numbers = {name: int(match[1]) for name in schema if (match := re.fullmatch(r"negative_?(\d+)", name.lower()))}
    return tuple(sorted(numbers, key=numbers.__getitem__))


# --------------------------------------------------------------------------------------------------------------- checks


def _check_types(format: str, roles: Roles, schema: Schema) -> None:
    form = FORMATS[format]
    for role, names in roles.items():
        for name in names:
            if role in SCORES and not cells.holds_scores(role, schema[name]):
                lists = "" if role == "score" else " or a list of numbers"
                raise DataError(f"column {name!r} ({role}) holds {schema[name]}, expected a number{lists}")
            if role not in SCORES and not form.holds(role, schema[name]):
                lists = " or a list of texts" if role in {"positive", "negatives"} and form.expected == "text" else ""
                raise DataError(f"column {name!r} ({role}) holds {schema[name]}, expected {form.expected}{lists}")
    media = [name for name in schema if format == "ms-swift" and name in _MEDIA]
    if media:
        raise DataError(f"the rows have {', '.join(media)}, and only texts can be trained on; keep such rows apart")


def _check_meaning(format: str, roles: Roles, schema: Schema, given: Mapping[str, str]) -> None:
    """Raises if the rows may be no pairs at all, or the other way round."""
    if "score" in roles and "negatives" in roles:
        raise DataError(
            f"a scored pair is two texts and a number, and these rows have {', '.join(roles['negatives'])} besides; "
            "leave them out"
        )
    query, positive = (roles[role][0] for role in _REQUIRED)
    if query == positive:
        raise DataError(
            f"query and positive are one column, {query!r}, so there is nothing to learn; name two, or train on its texts "
            "with `objective: simcse`"
        )
    if all(role in given for role in _REQUIRED):
        return
    read = {name for role in SCORES for name in roles.get(role, ())}
    label = next((name for name in schema if name.lower() in LABELS and name not in read), None)
    if label:
        raise DataError(
            f"column {label!r} says how well the texts of a row match, and contrastive training takes every row for a "
            f"match. Keep the rows that match and leave {label!r} out; or, if all of them do, name the columns: "
            f"`columns: {{query: {query}, positive: {positive}}}`"
        )
    order = list(schema)
    if format == "sentence-transformers" and order.index(query) > order.index(positive):
        raise DataError(
            f"by their names {query!r} is the query and {positive!r} the positive, but sentence-transformers goes by the "
            f"order of the columns, {', '.join(order)}; say which it is: `columns: {{query: {query}, positive: "
            f"{positive}}}` or the other way round"
        )


def check_content(
    detected: DetectedFormat, sample: Mapping[str, Sequence[Any]], given: Mapping[str, str], row: PairKind
) -> None:
    """DataError if the cells of some rows contradict what was decided, or leave a question that the names do not.

    sample  cells by column
    given   role to column as the recipe says it: what it says is no guess
    """
    known = _NAMES | set(given.values())
    for role in {*_REQUIRED, "negatives"} & detected.roles.keys():
        for column in detected.roles[role]:
            content.check_texts(column, sample[column], guessed=role in _REQUIRED and column not in known)
    if all(role in given for role in _REQUIRED):
        return
    query, positive = (detected.roles[role][0] for role in _REQUIRED)
    if len(sample[query]) > 1 and list(sample[query]) == list(sample[positive]):
        raise DataError(
            f"columns {query!r} and {positive!r} hold the same texts; name those of the query and the positive"
        )
    graded = {name: content.grades(name, sample[name]) for name in sample if name not in detected.columns}
    column = next((name for name, found in graded.items() if found and row is Pair), None)
    if column is not None:
        pair = f"query: {query}, positive: {positive}"
        raise DataError(
            f"column {column!r} is not read, and looks like {graded[column]}. If every row is a match all the same, write "
            f"`columns: {{{pair}}}`. If it says how well the texts of a row match, keep the rows that do, or write "
            f"`columns: {{{pair}, score: {column}}}` in a stage that reads scored pairs"
        )


def _remarks(format: str, roles: Roles, schema: Schema) -> list[str]:
    """What else was decided."""
    used = {column for names in roles.values() for column in names}
    unused = [column for column in schema if column not in used]
    notes = [f"not read: {', '.join(unused)}"] if unused else []
    if format == "flagembedding" and "type" in schema:
        notes.append("type is not read: a symmetric task needs `symmetric: true`, classes `in_batch_negatives: false`")
    if not cells.is_text(schema[roles["query"][0]]):
        notes.append(f"the instruction is {'the system message' if format == 'ms-swift' else 'that of the row'}")
    return notes


def _missing(role: str, wanted: str, schema: Schema) -> ValueError:
    return DataError(
        f"no column {wanted!r} for the {role}; its columns are {', '.join(schema)}. "
        f"Say which one it is: `columns: {{{role}: ...}}`"
    )
