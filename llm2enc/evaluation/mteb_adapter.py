"""mteb's tasks for our encoders. Needs `pip install 'llm2enc[mteb]'`.

    tasks = mteb_tasks(["STS12", "NanoBEIR"])                tasks and benchmarks of mteb by name
    model = MtebEncoder(encoder, "me/my-encoder", revision)  an encoder of ours, for mteb
    for result in run_mteb(model, tasks, folder): ...        a TaskResult or a Failure of each task

Scores, metric names and result files are mteb's own; nothing of them is computed here.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2enc.errors import InputError, require
from llm2enc.evaluation.scoring import Instructions
from llm2enc.evaluation.tasks import TaskResult, TaskType, TextEncoder
from llm2enc.text import Passage

if TYPE_CHECKING:
    from mteb import AbsTask, ResultCache, TaskMetadata
    from mteb import TaskResult as MtebResult
    from mteb.types import PromptType

TYPES: dict[str, TaskType] = {
    "STS": "sts",
    "Classification": "classification",
    "MultilabelClassification": "classification",
    "Clustering": "clustering",
    "PairClassification": "pair_classification",
    "Reranking": "reranking",
    "InstructionReranking": "reranking",
    "Retrieval": "retrieval",
    "InstructionRetrieval": "retrieval",
    "Summarization": "summarization",
    "BitextMining": "bitext",
}
_BATCH = 512  # texts that mteb hands over at a time; the encoder makes its own batches of all of them


def mteb_library() -> Any:
    """The module mteb.

    raises  ValueError with the remedy where it is not installed
    """
    require("mteb", extra="mteb")
    import mteb

    return mteb


# -------------------------------------------------------------------------------------------------------------- encoder


class MtebEncoder:
    """An encoder as mteb calls it (mteb's `EncoderProtocol`)."""

    def __init__(
        self,
        encoder: TextEncoder,
        name: str,
        revision: str,
        instructions: Instructions = "own",
        prompts: Mapping[str, str] = MappingProxyType({}),
        max_tokens: int | None = None,
        dimensions: int | None = None,
    ):
        """An encoder and what mteb files its results under.

        name          `organization/model`; `llm2enc/` is put before a name without a slash
        revision      what the vectors depend on, e.g. a fingerprint: results of another revision are not reused
        instructions  see `scoring.Instructions`; another choice than `own` gets a results folder of its own
        prompts       the encoder's instructions by name. With `own` they are chosen as mteb documents: `TASK-query`,
                      `TASK`, `TYPE-query`, `TYPE`, `query`, the first that is there
        max_tokens, dimensions  facts for mteb's model_meta.json
        """
        mteb_library()
        self.encoder, self.instructions, self.prompts = encoder, instructions, dict(prompts)
        self.mteb_model_meta = _model_meta(name, revision, instructions, max_tokens, dimensions)

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, task_metadata: "TaskMetadata",
        prompt_type: "PromptType | None" = None, **_: Any,
    ) -> np.ndarray:  # fmt: skip
        """Vectors (B, D) of the `text` of all batches, each distinct text encoded once.

        text    of a document with a title it is both, of a query with an instruction of its own too: mteb joins them
        raises  ValueError if a vector is not finite
        """
        texts = [text for batch in inputs for text in _texts(batch)]
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        vectors = self.encoder.encode(list(place), **self._prompt_kwargs(task_metadata, prompt_type))
        if not np.isfinite(vectors).all():
            raise InputError("the encoder gives vectors with nan or infinity; no score means anything for it")
        return vectors if len(place) == len(texts) else vectors[[place[text] for text in texts]]

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine similarity (N, M) of every row with every row."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine similarity (N,) row by row."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    def _prompt_kwargs(self, metadata: "TaskMetadata", prompt_type: "PromptType | None") -> dict[str, str]:
        """The keywords of `encode` for one side of a task."""
        side = "query" if prompt_type is not None and prompt_type.value == "query" else "document"
        if self.instructions == "own":
            from mteb.models.abs_encoder import get_prompt_name

            return {"prompt_name": get_prompt_name(self.prompts, metadata, prompt_type) or side}
        # Texts of a symmetric task come without a type; what comes as a document belongs to a task with two sides.
        if self.instructions == "task" and (side == "query" or prompt_type is None):
            instruction = _instruction(metadata)
            return {"instruction": instruction} if instruction else {"prompt_name": side}
        return {"prompt_name": "document"}


def _instruction(metadata: "TaskMetadata") -> str:
    """What the queries of a task ask for: the task's own words, else those that mteb has for its type."""
    if metadata.prompt is None:
        from mteb.abstasks.abstask import get_abstask_prompt

        return get_abstask_prompt(metadata.name)
    return metadata.prompt if isinstance(metadata.prompt, str) else metadata.prompt.get("query", "")


def _texts(batch: Mapping[str, Any]) -> list[str]:
    """The texts of a batch; those of mteb's corpora know their title, where they have one."""
    texts = batch["text"]
    titles, bodies = batch.get("title") or [None] * len(texts), batch.get("body") or texts
    return [Passage(title, body) if title else text for text, title, body in zip(texts, titles, bodies, strict=True)]


def _model_meta(name: str, revision: str, instructions: Instructions, max_tokens: int | None, dimensions: int | None):
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    return ModelMeta(
        name=name if "/" in name else f"llm2enc/{name}",
        revision=revision,
        experiment_kwargs=None if instructions == "own" else {"instructions": instructions},
        max_tokens=max_tokens,
        embed_dim=dimensions,
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=instructions != "none",
        framework=["PyTorch"],
        # What follows is asked for, and not known of an encoder on disk.
        loader=None,
        release_date=None,
        languages=None,
        n_parameters=None,
        memory_usage_mb=None,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        training_datasets=None,
    )


# -------------------------------------------------------------------------------------------------------- tasks by name


def mteb_tasks(names: Sequence[str]) -> list["AbsTask"]:
    """The tasks of mteb by name; a benchmark's name stands for its tasks. Each once.

    raises  ValueError for a name that mteb does not know, with similar ones
    """
    mteb = mteb_library()
    found: dict[tuple, AbsTask] = {}
    for name in names:
        for task in _named(mteb, name):
            found.setdefault((task.metadata.name, tuple(task.eval_splits), tuple(task.hf_subsets)), task)
    return list(found.values())


def _named(mteb: Any, name: str) -> Sequence["AbsTask"]:
    benchmarks = {known: b for b in mteb.get_benchmarks() for known in (b.name, *(b.aliases or ()))}
    if name in benchmarks:
        return list(benchmarks[name].tasks)
    try:
        return [mteb.get_task(name)]
    except KeyError:
        known = [*benchmarks, *(task.metadata.name for task in mteb.get_tasks(exclude_superseded=False))]
    by_lower = {other.lower(): other for other in known}
    close = [by_lower[other] for other in get_close_matches(name.lower(), by_lower)]
    raise InputError(
        f"mteb has no task or benchmark {name!r}"
        + (f"; similar names: {', '.join(close)}" if close else "")
        + ". `mteb available-tasks` and `mteb available-benchmarks` list them all"
    )


# -------------------------------------------------------------------------------------------------------------- running


@dataclass(frozen=True)
class Failure:
    """A task without a score."""

    task: str
    reason: str


class _NoData(Exception):
    """The data set of a task cannot be loaded."""


def run_mteb(model: MtebEncoder, tasks: Iterable["AbsTask"], folder: Path) -> Iterator[TaskResult | Failure]:
    """What mteb scores, task by task as they are done; one that fails does not stop the others.

    Results are written by mteb below `folder`/results, and read back there by a later run of the same revision. An
    A TaskResult has mteb's main score, the mean over splits and subsets, as its only example: mteb keeps no scores of rows,
    so its interval has no width and says nothing. Its language is mteb's (`eng`; `mul` for more than two).
    """
    cache = mteb_library().ResultCache(folder)
    _remove_torn(folder / "results")
    for task in tasks:
        yield _result_or_failure(model, task, cache)


def _remove_torn(folder: Path) -> None:
    """Remove what a killed process wrote half of: mteb writes its files in their place."""
    for path in folder.rglob("*.json"):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            path.unlink()


def _result_or_failure(model: MtebEncoder, task: "AbsTask", cache: "ResultCache") -> TaskResult | Failure:
    name = task.metadata.name
    if task.metadata.type not in TYPES:
        return Failure(name, f"{task.metadata.type} is none of the types that a text encoder is scored on here")
    try:
        return _task_result(task, _result(model, task, cache))
    except _NoData as error:
        return Failure(name, str(error))
    except Exception as error:  # whatever it is, hours of other tasks must not be lost to it
        return Failure(name, f"{type(error).__name__}: {error}")


def _result(model: MtebEncoder, task: "AbsTask", cache: "ResultCache") -> "MtebResult":
    """mteb's result of a task, from `cache` if it is complete there and of the same data."""
    stored = cache.load_task_result(task.metadata.name, model.mteb_model_meta)
    same = stored is not None and stored.dataset_revision == task.metadata.revision
    if stored is None or not same or stored.get_missing_evaluations(task):
        for part in getattr(task, "tasks", ()) if task.is_aggregate else ():
            _result(model, part, cache)
        if not task.is_aggregate:
            _load(task)
    try:
        mteb_library().evaluate(
            model, task, cache=cache, co2_tracker=False, show_progress_bar=False,
            encode_kwargs={"batch_size": _BATCH, "show_progress_bar": False},
            overwrite_strategy="only-missing" if same else "always",
        )  # fmt: skip
    finally:
        if task.data_loaded:
            task.unload_data()
    # Rounded: as a later run will find it.
    return cache.load_task_result(task.metadata.name, model.mteb_model_meta)  # pyright: ignore[reportReturnType]


def _load(task: "AbsTask") -> None:
    try:
        task.load_data()
    except Exception as error:  # the hub's, its client's and the reader's own kinds
        raise _NoData(
            f"data set {task.metadata.dataset['path']!r} cannot be loaded ({error}). Run where the Hugging Face hub can be "
            "reached, or set HF_HOME to a folder that holds the data set; with HF_HUB_OFFLINE=1 what is missing is told "
            "without waiting for the network"
        ) from error


def _task_result(task: "AbsTask", result: "MtebResult") -> TaskResult:
    metadata = task.metadata
    subsets = {*task.hf_subsets, "default"}  # an aggregate's only entry is `default`, whatever its subsets
    entries = [
        entry for split in task.eval_splits for entry in result.scores[split] if entry["hf_subset"] in subsets
    ]  # fmt: skip
    score = float(np.mean([entry["main_score"] for entry in entries]))
    names = [name for name, value in entries[0].items() if type(value) in (int, float) and name != "main_score"]
    metrics = {name: float(np.mean([entry[name] for entry in entries])) for name in names}
    metrics = {name: value for name, value in metrics.items() if np.isfinite(value)}  # abstention has none on few rows
    language = "-".join(task.languages) if len(task.languages) <= 2 else "mul"
    return TaskResult(
        task=metadata.name,
        type=TYPES[metadata.type],
        language=language,
        metric=metadata.main_score,
        score=score,
        metrics={**metrics, metadata.main_score: score},
        statistic="mean",
        per_example=np.array([score]),
    )
