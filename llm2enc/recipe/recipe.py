"""Recipes: one YAML file says everything a run does, and is refused before torch is imported if it is wrong.

A recipe is strict (no unknown keys, no silent conversions), frozen (nothing writes to it) and discriminated: a stage
has the fields of its own objective only, a data source those of its own kind. `load_recipe` reads a shipped name, a path
or a dict, applies dotted overrides through the same validation, and reports every fault at once with its path.

This module imports no other room than `secrets`, and never torch: `llm2enc recipes` and `--help` must answer at once.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm2enc.storage import found, redacted

Attention = Literal["bidirectional", "causal"]
Pooling = Literal["mean", "weighted_mean", "last", "first"]
Role = Literal["query", "document"]
DataFormat = Literal[
    "auto", "columns", "sentence-transformers", "flagembedding", "gritlm", "e5", "tevatron", "ms-swift", "beir"
]

_POSITIVE_INT = Annotated[int, Field(gt=0)]
_RATE = Annotated[float, Field(ge=0, lt=1)]


class RecipeError(ValueError):
    """A recipe, override or recipe name that can't be used; the message lists every fault with its path, no secret."""

    def __init__(self, message: str):
        super().__init__(redacted(message))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        """A recipe is written into runs, exports, model cards and trackers: what is not in it can't get there."""
        for name, value in self:
            texts = [value] if isinstance(value, str) else value if isinstance(value, tuple) else ()
            texts = [*value.keys(), *value.values()] if isinstance(value, dict) else texts
            kinds = [kind for text in texts if isinstance(text, str) for kind in found(text)]
            if kinds:
                raise ValueError(
                    f"`{name}` holds what looks like {kinds[0]}; a recipe is copied into everything that is made with it, "
                    "so leave secrets to the environment (HF_TOKEN, WANDB_API_KEY, .netrc)"
                )
        return self


# --------------------------------------------------------------------------------------------------------------- model


class ModelSpec(_Strict):
    """The causal language model a run starts from."""

    name: str
    """Hub id, directory, or `pocket` for the model inside this package."""
    revision: str | None = None
    """Branch, tag or commit on the hub; a commit makes the run reproducible."""
    attention: Attention = "bidirectional"
    """`bidirectional` converts the model; `causal` leaves it one-sided (Echo, last-token models)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Storage type of the frozen weights. Adapters are float32 whatever this says."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """`random` builds the model from its config.json and the recipe's seed (pre-training, tests)."""
    trust_remote_code: bool = False
    """Run Python that comes with the model. Off unless the user says so."""


# --------------------------------------------------------------------------------------------------------------- input


class Part(_Strict):
    """One piece of an input template: exactly one of `literal`, `slot`, `special`, `token`."""

    literal: str | None = None
    """Text that goes to the tokenizer as it stands."""
    slot: Literal["instruction", "text"] | None = None
    """Where the caller's instruction or text goes."""
    special: Literal["bos", "eos", "cls", "sep"] | None = None
    """The tokenizer's own special token, by role; never removed by truncation."""
    token: str | None = None
    """One vocabulary entry by its exact name, e.g. `[`; an error if the tokenizer has no such single token."""
    pool: bool = False
    """Whether the tokens of this part enter the vector."""
    when: Literal["instruction"] | None = None
    """`instruction`: the part appears only if the instruction is not empty."""
    join: bool = False
    """With `tokenize: pieces`: one piece together with the part before it."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "Part":
        given = [name for name in ("literal", "slot", "special", "token") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a part needs exactly one of literal, slot, special, token; got {given or 'none'}")
        if self.literal == "" or self.token == "":
            raise ValueError("a literal or token must not be empty; leave the part out instead")
        return self


Template = Annotated[tuple[Part, ...], Field(min_length=1)]


class InputSpec(_Strict):
    """How a text becomes tokens, and which of them are pooled. The same rule trains, encodes and is exported."""

    query: Template
    """Template of a text that carries an instruction. If it has an instruction slot and the instruction is empty,
    the `document` template is used, so that no dangling prefix is ever embedded."""
    document: Template
    """Template of a text without instruction."""
    max_tokens: Annotated[int, Field(gt=1)] = 512
    """Longest input in tokens, template included. Only the text is cut, so instruction and EOS survive."""
    max_text_tokens: _POSITIVE_INT | None = None
    """Longest text in tokens, for each occurrence of the text slot; none by default."""
    tokenize: Literal["whole", "pieces"] = "whole"
    """`whole`: neighbouring literals and slots are one string to the tokenizer. `pieces`: each part is tokenized on
    its own, as the released Echo checkpoints were trained."""
    strip: Literal["none", "outer"] = "none"
    """`outer`: whitespace is removed at both ends of instruction + text, as LLM2Vec's chat wraps do."""
    strip_instruction: str = ""
    """Characters removed from both ends of the instruction (GritLM: tab, newline, space, colon)."""
    prompts: dict[str, str] = {}
    """Instructions by name, for `encode(prompt_name=...)` and the exported directory."""

    @model_validator(mode="after")
    def _slots(self) -> "InputSpec":
        for role in ("query", "document"):
            slots = [part.slot for part in getattr(self, role)]
            if "text" not in slots:
                raise ValueError(f"the {role} template has no {{slot: text}} part, so every text would get one vector")
            if not any(part.pool for part in getattr(self, role)):
                raise ValueError(f"the {role} template pools nothing; set `pool: true` on a part")
        if any(part.slot == "instruction" for part in self.document):
            raise ValueError("the document template can't have an instruction slot; put it in the query template")
        return self


# ---------------------------------------------------------------------------------------------------------------- data


class _Data(_Strict):
    name: str | None = None
    """Label in logs and tables; the path or hub id by default."""
    columns: dict[Literal["text", "query", "positive", "negatives", "instruction"], str] = {}
    """Which column of the source plays which role; a role not named here is looked up under its own name."""
    instruction: str = ""
    """Instruction of the queries, for rows that carry none of their own."""
    symmetric: bool = False
    """Both sides are of the same kind (paraphrases): documents carry the instruction too."""
    in_batch_negatives: bool = True
    """False for class labels, where another row's positive may be right too: only own hard negatives count."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of this source: rows per epoch are size x weight."""
    limit: _POSITIVE_INT | None = None
    """Use the first so many rows only."""


class FilesData(_Data):
    """Local .jsonl, .json, .csv, .tsv, .txt (each also .gz, .bz2 or .zst) or .parquet files, or a BEIR folder."""

    kind: Literal["files"]
    path: str | tuple[str, ...]
    """File, glob or list of them, or one BEIR folder; a relative path is taken from the working directory."""
    format: DataFormat = "auto"
    """Which columns of a table of pairs are what (data/formats.py); `auto` goes by their names and types, `columns`
    goes before it."""
    split: str | None = None
    """Judgements of a BEIR folder to train on, a file of its qrels/; by default `train`, or qrels.tsv."""
    streaming: bool = False
    """Read on the fly instead of writing an Arrow copy first; rows then come in the order of the files, shuffled in a
    window of 10,000. A .json file that is one array is read whole all the same."""


class HubData(_Data):
    """A parquet-backed data set of the Hugging Face hub."""

    kind: Literal["hub"]
    path: str
    """Repository id, e.g. `Salesforce/wikitext`."""
    format: DataFormat = "auto"
    """As for files."""
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | tuple[str, ...] | None = None
    """Files of the repository, for repositories that hold more than one table."""
    streaming: bool = False
    """Read on the fly instead of downloading first; rows then come in the order of the source, shuffled in a window."""


class DocstringsData(_Data):
    """Docstrings of the installed packages: prose that every machine has."""

    kind: Literal["docstrings"]
    view: Literal["paragraphs", "sentences", "pairs"] = "paragraphs"
    """`pairs`: the first sentence is the query, the rest of the docstring the document."""
    split: Literal["train", "heldout"] = "train"
    """Held-out modules are chosen by a hash of the module's top two names and never trained on."""
    packages: tuple[str, ...] | None = None
    """Import names; by default the standard library and what llm2enc depends on."""


DataSpec = Annotated[FilesData | HubData | DocstringsData, Field(discriminator="kind")]


# -------------------------------------------------------------------------------------------------------------- stages


class LoraSpec(_Strict):
    """LoRA (arXiv 2106.09685), by PEFT. A fresh adapter per stage, merged in float32 when the stage is done."""

    r: _POSITIVE_INT = 16
    alpha: Annotated[float, Field(gt=0)] = 32
    dropout: _RATE = 0.05
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear` or module names such as `q_proj`; a name that matches nothing is an error."""


class _Stage(_Strict):
    data: Annotated[tuple[DataSpec, ...], Field(min_length=1)]
    mixture_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """Rows of a source per epoch in proportion to weight x size^alpha (0: all sources alike, 1: by size); no row less than
    once an epoch. None: size x weight rows each."""
    steps: _POSITIVE_INT
    """Optimizer steps after which the stage stops."""
    schedule_steps: _POSITIVE_INT | None = None
    """Length of the learning-rate schedule; `steps` by default. Published 1000-step runs stop early on a longer one."""
    batch_size: _POSITIVE_INT
    """What the loss sees per step over all processes: sequences, or query-document pairs."""
    lr: Annotated[float, Field(gt=0)]
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_betas: tuple[_RATE, _RATE] = (0.9, 0.999)
    adam_eps: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    trainable: Literal["lora", "full"] = "lora"
    lora: LoraSpec | None = None
    """The adapter's shape if `trainable: lora`; PEFT's usual r 16, alpha 32 by default."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the matrix products in forward and backward; weights that train and the loss stay float32."""
    mini_batch_tokens: _POSITIVE_INT = 16384
    """Tokens that go through the model at once, per process: this is gradient accumulation. Memory and speed only: a
    step is made of all of `batch_size`, and its gradient does not change."""
    shards: _POSITIVE_INT = 8
    """Pieces that a batch is cut into. Each is computed by one process, with dropout of its own: a step is the same on
    any number of processes up to this one. More processes need more shards."""
    graph_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens per step and process whose activations are kept instead of being computed again (contrastive, SimCSE)."""
    strategy: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    """What several processes share while this stage trains. `ddp`: nothing, each has all. `fsdp`: each has a part of each
    layer, of its gradient and of its moments (FSDP2). `deepspeed`: each has a part of the moments, and updates a part of
    the weights (ZeRO-1 and 2, with the launcher's settings). Memory and speed only: the gradient does not change."""
    gradient_checkpointing: bool = False
    attention_dropout: _RATE = 0.0
    """Dropout on attention weights while this stage trains."""
    max_tokens: _POSITIVE_INT | None = None
    """Longest input of this stage, where it differs from `input.max_tokens`."""
    save_every: _POSITIVE_INT = 200
    log_every: _POSITIVE_INT = 10

    @model_validator(mode="after")
    def _consistent(self) -> "_Stage":
        if self.schedule_steps is not None and self.schedule_steps < self.steps:
            raise ValueError(f"schedule_steps ({self.schedule_steps}) is shorter than steps ({self.steps})")
        if self.warmup_steps > (self.schedule_steps or self.steps):
            raise ValueError(f"warmup_steps ({self.warmup_steps}) is longer than the schedule")
        if self.trainable == "full" and self.lora is not None:
            raise ValueError("`lora` is set but `trainable` is full; remove one of them")
        return self


class ClmStage(_Stage):
    """Next-token prediction with causal attention: pre-training, or continued on one's own text."""

    objective: Literal["clm"]
    block_tokens: _POSITIVE_INT = 512
    """Texts are joined and cut into sequences of this many tokens."""
    logit_rows: _POSITIVE_INT = 1024
    """Rows of the vocabulary-wide logits that exist at a time."""


class MntpStage(_Stage):
    """Masked next-token prediction (LLM2Vec, arXiv 2404.05961): a masked token is predicted one position earlier."""

    objective: Literal["mntp"]
    block_tokens: _POSITIVE_INT = 512
    """Texts are joined and cut into sequences of this many tokens."""
    mask_rate: Annotated[float, Field(gt=0, lt=1)]
    """Probability that a token is chosen; special tokens never are."""
    mask_policy: Literal["bert", "all"]
    """`bert`: of the chosen 80 % are masked, 10 % replaced at random, 10 % kept. `all`: every chosen one is masked."""
    mask_token: Literal["blank", "eos", "mask"] = "blank"
    """`blank`: the token `_`; `eos`: the EOS token; `mask`: the tokenizer's own mask token."""
    logit_rows: _POSITIVE_INT = 1024
    """Rows of the vocabulary-wide logits that exist at a time."""


class SimcseStage(_Stage):
    """Unsupervised SimCSE (arXiv 2104.08821): two dropout passes of one text are each other's positive."""

    objective: Literal["simcse"]
    temperature: Annotated[float, Field(gt=0)] = 0.05


class ContrastiveStage(_Stage):
    """InfoNCE (arXiv 1807.03748) over in-batch and hard negatives, one data set per batch."""

    objective: Literal["contrastive"]
    temperature: Annotated[float, Field(gt=0)] = 0.02
    hard_negatives: Annotated[int, Field(ge=0)] = 1
    """Hard negatives per query, taken from those of the row by the recipe's seed; rows with fewer use what they have."""
    mask_duplicates: bool = False
    """Leave a document out of a query's negatives if its text is that query's positive, or if that query occurs
    elsewhere in the batch with this document as its positive."""


Stage = Annotated[ClmStage | MntpStage | SimcseStage | ContrastiveStage, Field(discriminator="objective")]


# ---------------------------------------------------------------------------------------------------------- evaluation


class DocstringEval(_Strict):
    """Retrieval and graded similarity on held-out docstrings."""

    kind: Literal["docstrings"]
    documents: _POSITIVE_INT = 1000


class FolderEval(_Strict):
    """Task folders of the eight MTEB types, and BEIR data sets (evaluation/folders.py)."""

    kind: Literal["folder"]
    path: str
    tasks: tuple[str, ...] | None = None
    """Folder names; all tasks by default."""


EvalSpec = Annotated[DocstringEval | FolderEval, Field(discriminator="kind")]


class Tracking(_Strict):
    """Where metrics go besides metrics.jsonl, which is always written."""

    wandb: bool = False
    tensorboard: bool = False
    project: str = "llm2enc"


class Recipe(_Strict):
    """A whole run: model, input format, stages, evaluation."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Names the run's folder, so it holds letters, digits, `.`, `_` and `-` alone."""
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    model: ModelSpec
    input: InputSpec
    pooling: Pooling
    normalize: bool = True
    """Whether `encode` returns unit vectors and the exported directory ends in a Normalize module."""
    stages: tuple[Stage, ...] = ()
    """Empty: the model is converted and exported without training."""
    evaluation: tuple[EvalSpec, ...] = ()
    """Measured before training and after every stage."""
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        for stage in self.stages:
            if stage.objective == "mntp" and self.model.attention == "causal":
                raise ValueError("an mntp stage needs `model.attention: bidirectional`: masked prediction looks ahead")
        return self

    def to_yaml(self) -> str:
        """The resolved recipe; `load_recipe` of this text gives an equal recipe."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


# ------------------------------------------------------------------------------------------------------------- loading


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars. YAML 1.1, PyYAML's own, reads `5e-5` as a string, `010` as 8, `1:30` as 90 and `no` as False."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[str, Any]:
        """A mapping whose keys are text as it is written (a prompt may be called `1e5`), each there once."""
        if not isinstance(node, yaml.MappingNode):
            return super().construct_mapping(node, deep)  # raises
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key.start_mark)
            if key.value in found:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value[:100]!r} is there twice; keep one of them", key.start_mark
                )
            found[key.value] = self.construct_object(value, deep)
        return found


class _Dumper(yaml.SafeDumper):
    """Puts quotes around texts that either version reads as something else: `no`, and `1e5` or `08` (a revision)."""

    def represent_text(self, text: str) -> yaml.Node:
        # PyYAML takes U+0085 for a line break, and writes it as it stands unless the style is one with escapes.
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)

_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)

_MAX_NODES = 100_000  # a recipe has hundreds; more is an alias that multiplies itself
_MAX_CHARACTERS = 250_000  # a recipe has thousands; a minute of reading would only say that a file is none


def _parse(text: str, what: str) -> Any:
    """The plain data of a YAML text. RecipeError for anything that is not."""
    if len(text) > _MAX_CHARACTERS:
        raise RecipeError(f"{what} has more than {_MAX_CHARACTERS:,} characters; that is no recipe")
    try:
        data = yaml.load(text, _Loader)
        _count(data, {})
    except RecipeError:
        raise
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise RecipeError(f"{what} is not valid YAML: {type(error).__name__}: {str(error)[:300]}") from None
    return data


def _count(node: Any, known: dict[int, int]) -> int:
    """Nodes of the data with every alias written out, found without writing them out."""
    if id(node) not in known:
        children = [*node.keys(), *node.values()] if isinstance(node, dict) else node if isinstance(node, list) else []
        known[id(node)] = 1 + sum(_count(child, known) for child in children)
        if known[id(node)] > _MAX_NODES:
            raise RecipeError(f"the YAML stands for more than {_MAX_NODES:,} values; that is no recipe")
    return known[id(node)]


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in _recipe_dir().glob("*.yaml"))


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """The validated recipe of a shipped name, a YAML path or a dict.

    overrides  `dotted.path=value` strings; the value is YAML, a list index is a number and a stage may be named by its
               objective: `stages.0.steps=10`, `stages.mntp.lr=1e-4`, `model.name=./my-model`.
    raises     RecipeError, with every fault and its path.
    """
    data = dict(source) if isinstance(source, Mapping) else _read(str(source))
    data = json.loads(_to_json(data))  # a deep copy, so that overrides never reach the caller's dict
    for override in overrides:
        _apply(data, override)
    try:
        # The JSON route is pydantic's strict mode for data that came from text: lists become tuples, 1 may be a float,
        # but "1" is not a number and 1 is not a bool.
        return Recipe.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise RecipeError(_report(error)) from None


def _recipe_dir() -> Path:
    package = Path(__file__).parent.parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"}:
        path = _recipe_dir() / f"{source}.yaml"
    if not _is_file(path):
        raise RecipeError(
            f"no recipe {source[:200]!r}: give a .yaml file or one of the shipped names: {', '.join(recipe_names())}"
        )
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} can't be read as UTF-8 text: {error}") from None
    data = _parse(text, str(path))
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds {type(data).__name__}, a recipe is a mapping with model, input, pooling, ...")
    return data


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the file system, or with a NUL in it
        return False


def _to_json(data: Any) -> str:
    try:
        return json.dumps(data, allow_nan=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"the recipe holds a value that is not plain data: {error}") from None


def _apply(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"override {override!r} is not of the form dotted.path=value")
    value = json.loads(_to_json(_parse(text, f"the value of override {override[:200]!r}")))
    node: Any = data
    *parents, last = path.split(".")
    if len(parents) > 20:
        raise RecipeError(f"override {override[:200]!r}: no recipe is {len(parents)} levels deep")
    for depth, key in enumerate(parents):
        node = _child(node, key, ".".join(parents[: depth + 1]), create=True)
    if isinstance(node, list):
        node[_index(node, last, path)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise RecipeError(f"override {override!r}: {'.'.join(parents)} is a value, it has no fields")


def _child(node: Any, key: str, path: str, create: bool) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, path)]
    if isinstance(node, dict):
        return node.setdefault(key, {}) if create else node[key]
    raise RecipeError(f"override {path}: {node!r} is a value, it has no fields")


def _index(items: list[Any], key: str, path: str) -> int:
    named = [i for i, item in enumerate(items) if isinstance(item, dict) and item.get("objective") == key]
    if len(named) == 1:
        return named[0]
    if key.isdecimal() and len(key) <= len(str(len(items))) and int(key) < len(items):
        return int(key)
    reason = "several entries have that objective; use a number" if named else f"the list has {len(items)} entries"
    raise RecipeError(f"override {path[:200]}: no entry {key[:50]!r}: {reason}")


def _report(error: ValidationError) -> str:
    faults = error.errors()
    paths = [_path(fault["loc"]) for fault in faults]
    lines = []
    for fault, path in zip(faults, paths, strict=True):
        # A list whose only entry is wrong also counts as too short to pydantic; the entry's own fault says it all.
        if fault["type"] == "too_short" and any(other.startswith(f"{path}.") for other in paths):
            continue
        given = "" if fault["type"] in {"missing", "value_error"} else f" (given: {fault['input']!r:.80})"
        lines.append(f"  {path or 'recipe'}: {fault['msg'].removeprefix('Value error, ')}{given}")
    return "\n".join([f"the recipe has {len(lines)} fault(s):", *lines])


def _path(location: tuple[int | str, ...]) -> str:
    """The dotted path an override would use: pydantic also names the kind of a stage or source, behind its number."""
    kept = [
        str(part)
        for place, part in enumerate(location)
        if not (place >= 2 and location[place - 2] in {"stages", "data", "evaluation"} and isinstance(part, str)
                and isinstance(location[place - 1], int))
    ]  # fmt: skip
    return ".".join(kept)
