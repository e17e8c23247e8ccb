"""What a user names becomes sources to read: a path, a hub id, or all data of a recipe."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from llm2enc import data
from llm2enc.audit.checks.duplicates import Batching
from llm2enc.audit.checks.lengths import InputView
from llm2enc.data import Dialogue, Pair, RowKind, Rows, ScoredPair, Stream, open_table, schema_of, source_name
from llm2enc.errors import DataError
from llm2enc.evaluation import Task, docstring_tasks, find_tasks, read_task
from llm2enc.model import load_tokenizer
from llm2enc.recipe import (
    DataSpec,
    DialogueFormat,
    DocstringEval,
    DocstringsData,
    InputSpec,
    ModelSpec,
    Part,
    Recipe,
    Stage,
    sources_of,
    to_yaml,
)
from llm2enc.text import InputFormat, surrounding
from llm2enc.training import OBJECTIVES

BATCH_SIZE = 64  # of a path without a recipe
MAX_TOKENS = 512


@dataclass(frozen=True)
class DataSource:
    """One source as one stage reads it."""

    spec: DataSpec
    stage: str
    batching: Batching
    view: InputView
    place: tuple[int, int] = (0, 0)
    """Number of the stage in the recipe, and of the part of the stage."""
    part: Stage | None = None
    """What reads it; None where only the data can tell."""


@dataclass(frozen=True)
class OpenedSource:
    """A source that can be read."""

    rows: Rows[Any] | Stream[Any]
    recognised: dict[str, str]
    dropped: int
    """Rows without a query, a positive or a text, which training leaves out; of a stream they are not counted."""


def of_recipe(recipe: Recipe) -> list[DataSource]:
    """Every source of every stage, with the recipe's own template, tokenizer and limits. No weights are read."""
    input_format = InputFormat(recipe.input, load_tokenizer(recipe.model))
    return [
        DataSource(spec, stage.objective, *_of_stage(part, input_format, recipe.name), (number, place), part)
        for number, stage in recipe.training.items()
        for place, part in enumerate(stage.parts)
        for spec in part.data
    ]


def of_path(path: str, recipe: Recipe | None = None, model: str = "pocket") -> list[DataSource]:
    """The files that a path names: one source, or one per file of a folder that is no BEIR data set.

    recipe  its template and tokenizer are used; pairs are read as its contrastive stage would, texts as its first stage
    """
    specs = _specs(path)
    if recipe is None:
        view = _plain_view(model)
        return [DataSource(spec, "", Batching(BATCH_SIZE), view) for spec in specs]
    input_format = InputFormat(recipe.input, load_tokenizer(recipe.model))
    stage = next(filter(_reads_pairs, (part for stage in recipe.training.values() for part in stage.parts)), None)
    if stage is None:
        view = InputView(input_format, described=f"template and tokenizer of recipe {recipe.name}")
        return [DataSource(spec, "", Batching(BATCH_SIZE), view) for spec in specs]
    return [DataSource(spec, "", *_of_stage(stage, input_format, recipe.name)) for spec in specs]


def open_source(source: DataSource) -> tuple[DataSource, OpenedSource]:
    """The rows of a source; its stage is `contrastive`, `scored pairs`, `dialogues` or `texts` where only the data can tell.
    Dialogues are read as texts, with their marks.

    raises  ValueError if the source cannot be read
    """
    if source.part is None:
        return _detected(source)
    if isinstance(source.part, DialogueFormat):
        rows = _written(data.read_dialogues(source.spec), source.part)
        return source, OpenedSource(rows, {"format": "dialogues"}, _dropped(rows))
    row, scores = _rows_of(source.part)
    if row is str:
        rows = data.read_texts(source.spec)
        return source, OpenedSource(rows, {"format": "texts"}, _dropped(rows))
    recognised, rows = data.examine(source.spec, cast("type[Pair] | type[ScoredPair]", row), scores)
    return source, OpenedSource(rows, {"format": recognised.format, "why": str(recognised)}, _dropped(rows))


def _detected(source: DataSource) -> tuple[DataSource, OpenedSource]:
    """Pairs with the scores that they have, else scored pairs, else dialogues, else texts."""
    refusals: list[ValueError] = []
    for stage, row in (("contrastive", Pair), ("scored pairs", ScoredPair)):
        try:
            recognised, rows = data.examine(source.spec, row, scores=True)
        except ValueError as error:
            refusals.append(error)
            continue
        why = "; ".join([str(recognised), *(f"as pairs refused: {error}" for error in refusals)])
        given = {"format": recognised.format, "why": why, "block": block(source.spec)}
        return replace(source, stage=stage), OpenedSource(rows, given, _dropped(rows))
    with suppress(ValueError):
        rows = _written(data.read_dialogues(source.spec), DialogueFormat())
        given = {"format": "dialogues", "why": "messages, or a prompt and a response", "block": block(source.spec)}
        return replace(source, stage="dialogues"), OpenedSource(rows, given, _dropped(rows))
    if not _is_one_column(source.spec):
        raise refusals[0]
    texts = data.read_texts(source.spec)
    given = {"format": "texts", "why": "one column of text", "block": block(source.spec)}
    return replace(source, stage="texts"), OpenedSource(texts, given, _dropped(texts))


def _written(rows: Rows[Dialogue] | Stream[Dialogue], form: DialogueFormat) -> Rows[str] | Stream[str]:
    """Each dialogue as one text, with its marks."""

    def text(dialogue: Dialogue) -> str:
        return form.between.join(f"{form.user}{asked}{form.assistant}{answer}" for asked, answer in dialogue.turns)

    if isinstance(rows, Stream):
        return Stream(rows.name, lambda: (_written(block, form) for block in rows.blocks()))  # pyright: ignore[reportArgumentType]: of rows come rows
    return Rows(rows.name, len(rows), lambda places: [text(dialogue) for dialogue in rows.take(places)], rows.dropped)


def block(spec: DataSpec) -> str:
    """The source as YAML, to paste into a stage of a recipe."""
    fields = {key: value for key, value in spec.model_dump(mode="json").items() if value != _default(spec, key)}
    return to_yaml({"data": [fields]})


def tasks_of(recipe: Recipe | None, folders: Iterable[str]) -> Iterator[Task]:
    """The evaluation tasks of a recipe and of further folders, each name once."""
    seen: set[str] = set()
    given = [*(recipe.evaluation if recipe else ()), *folders]
    for spec in given:
        if isinstance(spec, DocstringEval):
            tasks: Iterable[Task] = docstring_tasks(spec)  # pyright: ignore[reportArgumentType]: frozen, so it has a hash
        else:
            path, names = (spec, None) if isinstance(spec, str) else (spec.path, spec.tasks)
            if not Path(path).is_dir():
                raise DataError(f"{path}: no such folder of evaluation tasks")
            tasks = (read_task(folder) for folder in find_tasks(Path(path), names).values())
        for task in tasks:
            if task.name not in seen:
                seen.add(task.name)
                yield task


def _of_stage(stage: Any, input_format: InputFormat, recipe: str) -> tuple[Batching, InputView]:
    """What a stage asks of its rows, by the fields that its objective has."""
    described = f"template and tokenizer of recipe {recipe}"
    if OBJECTIVES[stage.objective].row == "block":
        words = f"tokenizer of recipe {recipe}; texts are joined and cut into blocks of {stage.block_tokens} tokens"
        return Batching(1), InputView(input_format, block_tokens=stage.block_tokens, described=words)
    if OBJECTIVES[stage.objective].row == "dialogue":
        limit = stage.max_tokens or input_format.spec.max_tokens
        parts = (Part(special="bos", when="tokenizer"), Part(slot="text", pool=True))
        view = input_format.with_spec(InputSpec(query=parts, document=parts, max_tokens=limit))
        words = f"marks of the stage and tokenizer of recipe {recipe}; of a dialogue only the responses are predicted"
        return Batching(stage.batch_size), InputView(view, described=words)
    view = InputView(input_format, stage.max_tokens, described=described)
    if not _reads_pairs(stage):
        return Batching(stage.batch_size), view
    return Batching(stage.batch_size, stage.loss.in_batch, stage.loss.masks.duplicates), view


def _rows_of(stage: Any) -> tuple[RowKind, bool]:
    """What a stage reads its rows as, and whether with scores of their documents."""
    kinds: dict[str, RowKind] = {"pair": Pair, "scored pair": ScoredPair}
    return kinds.get(OBJECTIVES[stage.objective].row, str), _reads_pairs(stage) and stage.reads_scores


def _reads_pairs(stage: Stage) -> bool:
    return OBJECTIVES[stage.objective].row == "pair"


def _plain_view(model: str) -> InputView:
    """The texts themselves, between the special tokens that the tokenizer puts around them."""
    tokenizer = load_tokenizer(ModelSpec.named(model))
    begins, ends = surrounding(tokenizer)
    parts = (
        *([Part(special="bos", pool=True)] if begins else []),
        Part(slot="text", pool=True),
        *([Part(special="eos", pool=True)] if ends else []),
    )
    spec = InputSpec(query=parts, document=parts, max_tokens=MAX_TOKENS)
    described = f"tokenizer of {model}, no template, {MAX_TOKENS} tokens at most; --recipe or --model for another"
    return InputView(InputFormat(spec, tokenizer), plain=True, described=described)


def _specs(path: str) -> list[DataSpec]:
    """The sources of a path; of the hub no more is read than is looked at."""
    return [spec.model_copy(update={"streaming": spec.kind == "hub"}) for spec in sources_of(path)]


def _is_one_column(spec: DataSpec) -> bool:
    """Whether the source is a table of texts: it has a column `text`, or no other than one."""
    if isinstance(spec, DocstringsData):
        return False
    try:
        names = schema_of(open_table(spec))
    except ValueError:  # no table, such as a BEIR folder: what was wrong with its pairs is the reason
        return False
    return "text" in names or len(names) == 1


def _dropped(rows: Rows[Any] | Stream[Any]) -> int:
    return 0 if isinstance(rows, Stream) else rows.dropped


def _default(spec: DataSpec, key: str) -> object:
    field = type(spec).model_fields[key]
    return None if field.is_required() else field.get_default(call_default_factory=True)


def name_of(source: DataSource) -> str:
    return source_name(source.spec)
