"""Formats: which columns of a table are the query, the right and the wrong documents, and how their cells read.

    columns                 query, positive, negatives | negative | negative_1 ..., instruction: texts; the last three roles
                            optional; positive and negatives may be lists. Any table, once `columns` names its columns.
    sentence-transformers   anchor, positive, negative | negative_1 ..., or a pair such as question, answer.
                            `label`, `labels`, `score`, `scores` are labels, the ORDER of all other columns decides
                            (sbert.net, Training Overview, "Dataset Format"; base/data_collator.py of v6)
    flagembedding           query, pos: [...], neg: [...]; prompt is the instruction; pos_scores, neg_scores and type are for
                            its own trainer (FlagEmbedding, abc/finetune/embedder/AbsDataset.py)
    gritlm                  query: [instruction, text], pos and neg: [[instruction, text], ...]; plain texts are taken too
                            (GritLM, gritlm/training/data.py)
    e5                      query, positive, negative: texts, one data set a file, the instruction known by the file's name
                            (the release of the Echo authors, read by LLM2Vec's llm2vec/dataset/E5Data.py)
    tevatron                query | query_text, positive_passages and negative_passages: [{docid, title, text}]; a passage is
                            title + space + text (Tevatron, docs/datasets.md and retriever/dataset.py)
    ms-swift                messages: [{role, content}], positive_messages and negative_messages: [[{role, content}]]; a
                            system message is the instruction. Older: query, response, rejected_response
                            (ms-swift, docs/source_en/BestPractices/Embedding.md, and the same page of v3.8)
    beir                    a folder: data/beir.py

Recognition is a pure function of the schema: it reads no file and decides nothing that its result does not say.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llm2enc.data.rows import Pair

Schema = Mapping[str, pa.DataType]
Text = tuple[str, str]  # instruction, text

LABELS = ("label", "labels", "score", "scores")  # what sentence-transformers takes for labels
_MEDIA = ("images", "videos", "audios")
_REQUIRED = ("query", "positive")

# Instruction of each file of the release, as LLM2Vec's E5Data.py gives it.
E5_INSTRUCTIONS = {
    **dict.fromkeys(
        ("allnli", "allnli_split1"), "Given a premise, retrieve a hypothesis that is entailed by the premise"
    ),
    "allnli_split2": "Retrieve semantically similar text",
    **dict.fromkeys(
        ("dureader", "t2ranking"),
        "Given a Chinese search query, retrieve web passages that answer the question",
    ),
    "eli5_question_answer": "Provided a user question, retrieve the highest voted answers on Reddit ELI5 forum",
    "fever": "Given a claim, retrieve documents that support or refute the claim",
    "hotpot_qa": "Given a multi-hop question, retrieve documents that can help answer the question",
    **dict.fromkeys(
        ("miracl", "mrtydi", "nq"), "Given a question, retrieve Wikipedia passages that answer the question"
    ),
    "msmarco_passage": "Given a web search query, retrieve relevant passages that answer the query",
    "msmarco_document": "Given a web search query, retrieve relevant documents that answer the query",
    **dict.fromkeys(
        ("quora_duplicates", "quora_duplicates_split1"),
        "Given a question, retrieve questions that are semantically equivalent to the given question",
    ),
    "quora_duplicates_split2": "Find questions that have the same meaning as the input question",
    **dict.fromkeys(("squad", "trivia_qa"), "Retrieve Wikipedia passages that answer the question"),
}


@dataclass(frozen=True)
class Recognised:
    """What a table was taken for."""

    format: str
    roles: dict[str, tuple[str, ...]]
    """Columns by role: query, positive, and negatives and instruction where the table has them."""
    notes: tuple[str, ...] = ()
    """What else was decided: columns left out, where an instruction comes from."""
    instruction: str = ""
    """Instruction that the format itself gives; that of a row or of the recipe goes before it."""

    @property
    def columns(self) -> list[str]:
        """The columns that are read, each once."""
        return list(dict.fromkeys(name for names in self.roles.values() for name in names))

    def __str__(self) -> str:
        roles = ", ".join(f"{role} = {' + '.join(names)}" for role, names in self.roles.items())
        return "; ".join([f"{self.format} ({roles})", *self.notes])


@dataclass(frozen=True)
class Format:
    """One format: the names of its columns, what they hold, and how a cell reads."""

    names: tuple[dict[str, tuple[str, ...]], ...]
    """Role to accepted column names, one dict for each variant of the format."""
    query: Callable[[Any], Text]
    documents: Callable[[Any], list[Text]]
    holds: Callable[[str, pa.DataType], bool]
    """Whether a column of this type can play this role."""
    expected: str
    """What the columns hold, for messages."""


# ---------------------------------------------------------------------------------------------------------------- cells


def _plain(cell: str | None) -> Text:
    return "", cell or ""


def _plain_documents(cell: str | list[str | None] | None) -> list[Text]:
    return [_plain(text) for text in ([cell] if isinstance(cell, str) else cell or ())]


def _instructed(cell: str | list[str | None] | None) -> Text:
    if isinstance(cell, list):
        if len(cell) != 2:
            raise ValueError(f"{cell!r:.80} has {len(cell)} parts; expected [instruction, text]")
        return cell[0] or "", cell[1] or ""
    return _plain(cell)


def _instructed_documents(cell: list[Any] | str | None) -> list[Text]:
    return [_instructed(document) for document in ([cell] if isinstance(cell, str) else cell or ())]


def _passages(cell: list[dict[str, str | None]] | None) -> list[Text]:
    return [("", titled(passage.get("title"), passage.get("text"))) for passage in cell or ()]


def titled(title: str | None, text: str | None) -> str:
    """A passage as one text, the title before the body, as the evaluation joins them (evaluation/folders.py)."""
    return f"{title or ''} {text or ''}".strip()


def _message(cell: str | list[dict[str, str | None]] | None) -> Text:
    """The system message is the instruction, the others are the text."""
    if cell is None or isinstance(cell, str):
        return _plain(cell)
    said = [(message.get("role"), message.get("content") or "") for message in cell]
    return "\n".join(text for role, text in said if role == "system"), "\n".join(
        text for role, text in said if role != "system"
    )


def _messages(cell: Any) -> list[Text]:
    if isinstance(cell, list) and cell and isinstance(cell[0], dict):
        cell = [cell]  # one sequence, without the list around it
    return [_message(document) for document in ([cell] if isinstance(cell, str) else cell or ())]


# ---------------------------------------------------------------------------------------------------------------- types


def is_text(kind: pa.DataType) -> bool:
    """Whether the cells are texts, or all empty."""
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def is_list(kind: pa.DataType, of: Callable[[pa.DataType], bool] = lambda inner: True) -> bool:
    """Whether the cells are lists, and what is in them is `of`."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and (pa.types.is_null(kind.value_type) or of(kind.value_type))


def _is_texts(kind: pa.DataType) -> bool:
    return is_list(kind, is_text)


def _has_fields(*names: str) -> Callable[[pa.DataType], bool]:
    return lambda kind: pa.types.is_struct(kind) and all(kind.get_field_index(name) >= 0 for name in names)


def _is_message(kind: pa.DataType) -> bool:
    return is_list(kind, _has_fields("role", "content"))


def _holds_texts(role: str, kind: pa.DataType) -> bool:
    return is_text(kind) or (role in {"positive", "negatives"} and _is_texts(kind))


def _holds_instructed(role: str, kind: pa.DataType) -> bool:
    return is_text(kind) or _is_texts(kind) or (role != "query" and is_list(kind, _is_texts))


def _holds_passages(role: str, kind: pa.DataType) -> bool:
    return is_list(kind, _has_fields("text")) if role in {"positive", "negatives"} else is_text(kind)


def _holds_messages(role: str, kind: pa.DataType) -> bool:
    if role in {"positive", "negatives"}:
        return _holds_texts(role, kind) or _is_message(kind) or is_list(kind, _is_message)
    return is_text(kind) or _is_message(kind)


# ---------------------------------------------------------------------------------------------------------------- table

_NEGATIVES = ("negatives", "negative")
_INSTRUCTION = {"instruction": ("instruction",)}
_TEXTS = (_plain, _plain_documents, _holds_texts, "texts; lists of texts for positive and negatives")
_PAIRS = (  # sentence-transformers: first the query, then the document
    *(("anchor", "positive"), ("sentence1", "sentence2"), ("sentence_A", "sentence_B"), ("text1", "text2")),
    *(("question", "answer"), ("query", "answer"), ("query", "document"), ("query", "passage")),
)

FORMATS: dict[str, Format] = {
    "columns": Format(
        ({"query": ("query",), "positive": ("positive", "positives"), "negatives": _NEGATIVES, **_INSTRUCTION},),
        *_TEXTS,
    ),
    "sentence-transformers": Format(
        tuple(
            {"query": (query,), "positive": (document,), "negatives": _NEGATIVES, **_INSTRUCTION}
            for query, document in _PAIRS
        ),
        *_TEXTS,
    ),
    "flagembedding": Format(
        ({"query": ("query",), "positive": ("pos",), "negatives": ("neg",), "instruction": ("prompt",)},), *_TEXTS
    ),
    "gritlm": Format(
        ({"query": ("query",), "positive": ("pos",), "negatives": ("neg",)},),
        _instructed,
        _instructed_documents,
        _holds_instructed,
        "texts or [instruction, text], and lists of these for pos and neg",
    ),
    "e5": Format(({"query": ("query",), "positive": ("positive",), "negatives": ("negative",)},), *_TEXTS),
    "tevatron": Format(
        (
            {
                "query": ("query", "query_text"),
                "positive": ("positive_passages",),
                "negatives": ("negative_passages",),
            },
        ),
        _plain,
        _passages,
        _holds_passages,
        "a text for the query, lists of {docid, title, text} for the passages",
    ),
    "ms-swift": Format(
        (
            {"query": ("messages",), "positive": ("positive_messages",), "negatives": ("negative_messages",)},
            {"query": ("query",), "positive": ("response",), "negatives": ("rejected_response",)},
        ),
        _message,
        _messages,
        _holds_messages,
        "[{role, content}] for messages, lists of these for positive_messages and negative_messages",
    ),
}


# ---------------------------------------------------------------------------------------------------------- recognition


def recognise(
    schema: Schema, format: str = "auto", columns: Mapping[str, str] | None = None, name: str = ""
) -> Recognised:
    """The format of a table of pairs and the columns of each role.

    schema   column name to Arrow type, in the order of the table
    format   a name of `FORMATS`, or `auto`
    columns  role to column, as the recipe says it; goes before what is recognised
    name     the file's name without its ending; only `e5` looks at it
    raises   ValueError if no format fits, if several do, or if the rows carry labels: it says what to write in the recipe
    """
    columns = dict(columns or {})
    for role, column in columns.items():
        if column not in schema:
            raise _missing(role, column, schema)
    if format == "auto":
        format, roles = _only_fit(schema, columns, name)
    elif format == "sentence-transformers":
        roles = _by_order(schema, columns)
    else:
        roles = _named(format, schema, columns)
    _check(format, roles, schema, columns)
    return Recognised(format, roles, *_remarks(format, roles, schema, name))


def _only_fit(schema: Schema, columns: Mapping[str, str], name: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    if any(role in columns for role in _REQUIRED):
        return "columns", _named("columns", schema, columns)
    found = _fits(schema, columns)
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        readings = "; ".join(f"`format: {key}` (query = {r['query'][0]}, positive = {r['positive'][0]})"
                             for key, r in found.items())  # fmt: skip
        raise ValueError(f"the columns {', '.join(schema)} fit several formats; say which one you mean: {readings}")
    texts = [column for column, kind in schema.items() if is_text(kind) and column not in LABELS]
    if "positive_document_ids" in schema:
        raise ValueError(
            "these rows name their documents by id (positive_document_ids), and the texts are in a corpus elsewhere; "
            "write query, positive_passages and negative_passages with their texts, or a BEIR folder"
        )
    if len(texts) >= 2:
        order = f", or `format: sentence-transformers` to go by order (query = {texts[0]}, positive = {texts[1]})"
        raise ValueError(
            f"can't tell which columns are the query and the positive: the columns are {', '.join(schema)}. "
            f"Write `columns: {{query: ..., positive: ...}}`{order}"
        )
    raise _missing("positive" if "query" in schema else "query", None, schema)


def _fits(schema: Schema, columns: Mapping[str, str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Every format that the names and types fit, with its columns by role."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for key, form in FORMATS.items():
        for names in form.names:
            roles = _lookup(names, schema, columns)
            if all(role in roles and form.holds(role, schema[roles[role][0]]) for role in _REQUIRED):
                found.setdefault(key, roles)
    found.pop("e5", None)  # the same columns as `columns`; a file's name alone is too little to go by
    if "flagembedding" in found:
        found.pop("gritlm", None)  # plain texts: both read them alike
    return found


def _named(format: str, schema: Schema, columns: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Columns by role of a format that the recipe names."""
    best: dict[str, tuple[str, ...]] = {}
    for names in FORMATS[format].names:
        best = max(best, _lookup(names, schema, columns), key=len)
    for role in _REQUIRED:
        if role not in best:
            raise _missing(role, None, schema, FORMATS[format].names[0][role][0])
    return best


def _by_order(schema: Schema, columns: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """sentence-transformers: the first column is the query, the second the positive, the others are negatives."""
    left = [name for name in schema if name not in (*LABELS, "dataset_name", *columns.values())]
    roles = {role: (column,) for role, column in columns.items()}
    for role in _REQUIRED:
        if role not in roles:
            if not left:
                raise _missing(role, None, schema)
            roles[role] = (left.pop(0),)
    if left and "negatives" not in roles:
        roles["negatives"] = tuple(left)
    return {role: roles[role] for role in ("query", "positive", "negatives", "instruction") if role in roles}


def _lookup(
    names: Mapping[str, tuple[str, ...]], schema: Schema, columns: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Columns by role: the recipe's, else the first of the names that the table has, in any case of letters."""
    folded = {name.lower(): name for name in reversed(schema)}
    found: dict[str, tuple[str, ...]] = {}
    for role in (*names, *(role for role in columns if role not in names)):
        known = [folded[name.lower()] for name in names.get(role, ()) if name.lower() in folded]
        exact = [name for name in names.get(role, ()) if name in schema]
        if role in columns:
            found[role] = (columns[role],)
        elif exact or known:
            found[role] = ((exact or known)[0],)
        elif role == "negatives" and "negative" in names[role] and (numbered := _numbered(schema)):
            found[role] = numbered
    return found


def _numbered(schema: Schema) -> tuple[str, ...]:
    """negative_1, negative_2, ..., in the order of their numbers."""
    numbers = {name: match for name in schema if (match := re.fullmatch(r"negative_?(\d+)", name, re.IGNORECASE))}
    return tuple(sorted(numbers, key=lambda name: int(numbers[name][1])))


# --------------------------------------------------------------------------------------------------------------- checks


def _check(format: str, roles: Mapping[str, tuple[str, ...]], schema: Schema, columns: Mapping[str, str]) -> None:
    """Raises unless the columns can play their roles, and the pairs are pairs of texts that belong together."""
    form = FORMATS[format]
    for role, names in roles.items():
        for name in names:
            if not form.holds(role, schema[name]):
                lists = "text or a list of texts" if role in {"positive", "negatives"} else "text"
                expected = lists if form.expected == _TEXTS[-1] else form.expected
                raise ValueError(f"column {name!r} ({role}) holds {schema[name]}, expected {expected}")
    media = [name for name in schema if format == "ms-swift" and name in _MEDIA]
    if media:
        raise ValueError(f"the rows have {', '.join(media)}; only texts can be trained on, so keep those rows apart")
    label = next((name for name in schema if name.lower() in LABELS), None)
    chosen = all(role in columns for role in _REQUIRED)
    if label and not chosen:
        raise ValueError(
            f"column {label!r} says how well the texts of a row match, and contrastive training would take every row for "
            f"a match. Keep the rows that do match and leave {label!r} out; or, if all of them match, name the columns: "
            f"`columns: {{query: {roles['query'][0]}, positive: {roles['positive'][0]}}}`"
        )
    order = list(schema)
    first, second = (order.index(roles[role][0]) for role in _REQUIRED)
    if format == "sentence-transformers" and first > second and not columns:
        raise ValueError(
            f"by their names {order[first]!r} is the query and {order[second]!r} the positive, but sentence-transformers "
            f"goes by the order of the columns, which is {', '.join(order)}. Say which it is: "
            f"`columns: {{query: {order[first]}, positive: {order[second]}}}`, or the other way round"
        )


def _remarks(
    format: str, roles: Mapping[str, tuple[str, ...]], schema: Schema, name: str
) -> tuple[tuple[str, ...], str]:
    """Notes, and the instruction that the format gives."""
    used = {column for names in roles.values() for column in names}
    unused = [column for column in schema if column not in used]
    notes = [f"not read: {', '.join(unused)}"] if unused else []
    usual = E5_INSTRUCTIONS.get(name.split(".")[0], "")
    if format == "e5" and usual:
        notes.append(f"instruction by the file's name: {usual!r}")
        return tuple(notes), usual
    if format == "columns" and usual and set(schema) == {"query", "positive", "negative"}:
        notes.append(f"LLM2Vec trains {name!r} with the instruction {usual!r}; `format: e5` takes it")
    if format == "flagembedding" and "type" in schema:
        notes.append("type is not read: for symmetric tasks set `symmetric: true` and an instruction")
    if format == "gritlm":
        notes.append("instructions are those of the rows")
    if format == "ms-swift" and not is_text(schema[roles["query"][0]]):
        notes.append("system messages are the instructions")
    return tuple(notes), ""


def _missing(role: str, wanted: str | None, schema: Schema, usual: str = "") -> ValueError:
    return ValueError(
        f"no column {wanted or usual or role!r} for the {role}; its columns are {', '.join(schema)}. "
        f"Say which one it is: `columns: {{{role}: ...}}`"
    )


# ----------------------------------------------------------------------------------------------------------------- rows


def to_pair(
    recognised: Recognised, record: Mapping[str, Any], instruction: str = "", symmetric: bool = False
) -> Pair | None:
    """The pair of a record (column to cell); None if it has no query or no right document.

    instruction  for rows that carry none of their own
    symmetric    documents carry the instruction of the query
    raises       ValueError if a cell is not of the format, or if a row gives its documents different instructions
    """
    form = FORMATS[recognised.format]
    own, query = _read(recognised, "query", form.query, record)[0]
    right = [text for text in _documents(recognised, "positive", form, record) if text[1].strip()]
    wrong = [text for text in _documents(recognised, "negatives", form, record) if text[1].strip()]
    if not query.strip() or not right:
        return None
    for name in recognised.roles.get("instruction", ()):
        cell = record[name]
        own = cell if isinstance(cell, str) and cell.strip() else own
    asked = own if own.strip() else instruction or recognised.instruction
    told = {text[0] for text in (*right, *wrong)}
    if len(told) > 1:
        raise ValueError(f"one row gives its documents different instructions: {sorted(told)!r:.200}")
    return Pair(
        query=query,
        positive=right[0][1],
        negatives=tuple(text for _, text in wrong),
        instruction=asked,
        document_instruction=told.pop() or (asked if symmetric else ""),
        others=tuple(dict.fromkeys(text for _, text in right if text != right[0][1])),
    )


def _documents(recognised: Recognised, role: str, form: Format, record: Mapping[str, Any]) -> list[Text]:
    return [text for cell in _read(recognised, role, form.documents, record) for text in cell]


def _read(recognised: Recognised, role: str, read: Callable[[Any], Any], record: Mapping[str, Any]) -> Sequence[Any]:
    """The cells of a role, read by the format."""
    found = []
    for name in recognised.roles.get(role, ()):
        try:
            cells = read(record[name])
            texts = [cells] if role == "query" else cells
            if not all(isinstance(part, str) for text in texts for part in text):
                raise TypeError
        except (TypeError, AttributeError):
            raise ValueError(
                f"column {name!r} ({role}) holds {record[name]!r:.80}, expected {FORMATS[recognised.format].expected}"
            ) from None
        found.append(cells)
    return found
