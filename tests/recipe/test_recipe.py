"""Recipes: what is shipped equals what was published, and what is wrong is refused with its path."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llm2enc.errors import RecipeError
from llm2enc.recipe import Part, load_recipe, recipe_names

SMALL = ["demo", "gemma-3-270m", "pocket", "smollm2-135m"]  # values for minutes on a CPU, ours
LLM2VEC = [
    *("gemma-2-9b", "llama-2-7b", "llama-3-8b", "llm2vec", "mistral-7b"),
    *("qwen2.5-7b", "qwen3-0.6b", "qwen3-8b", "sheared-llama-1.3b"),
]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# File of the Echo release -> instruction of its queries, as in LLM2Vec's code (llm2vec/dataset/E5Data.py).
WIKIPEDIA = "Given a question, retrieve Wikipedia passages that answer the question"
CHINESE = "Given a Chinese search query, retrieve web passages that answer the question"
READING = "Retrieve Wikipedia passages that answer the question"
INSTRUCTIONS = {
    "allnli": "Given a premise, retrieve a hypothesis that is entailed by the premise",
    "dureader": CHINESE,
    "eli5_question_answer": "Provided a user question, retrieve the highest voted answers on Reddit ELI5 forum",
    "fever": "Given a claim, retrieve documents that support or refute the claim",
    "hotpot_qa": "Given a multi-hop question, retrieve documents that can help answer the question",
    "miracl": WIKIPEDIA,
    "mrtydi": WIKIPEDIA,
    "msmarco_passage": "Given a web search query, retrieve relevant passages that answer the query",
    "msmarco_document": "Given a web search query, retrieve relevant documents that answer the query",
    "nq": WIKIPEDIA,
    "quora_duplicates": ("Given a question, retrieve questions that are semantically equivalent to the given question"),
    "squad": READING,
    "t2ranking": CHINESE,
    "trivia_qa": READING,
}
# What the model reads for instruction I and text T, pooled parts in braces: (query, document). <bos?>: `when: tokenizer`.
INST = ("<bos>[INST] I;{ }{T}{ [/INST]}", "<bos>[INST]{ }{T}{ [/INST]}")
QWEN = ("<|im_start|>user\nI;{ }{T}{<|im_end|>}", "<|im_start|>user\n{T}{<|im_end|>}")
GEMMA = ("<bos><start_of_turn>user\nI;{ }{T}{<end_of_turn>}", "<bos><start_of_turn>user\n{T}{<end_of_turn>}")
HEADER = "<bos><|start_header_id|>user<|end_header_id|>\n\n"
ECHO = ("<bos>Instruct:I,\nQuery:T\nQuery again:{T}{<eos>}", "<bos>Document:T\nDocument again:{T}{<eos>}")
E5_MISTRAL = ("<bos?>Instruct: I\nQuery: T{<eos>}", "<bos?>T{<eos>}")
OPEN = ("<bos?>I;{ }{T}{<eos?>}", "<bos?>{T}{<eos?>}")
BARE = ("{<bos?>}{T}{<eos?>}", "{<bos?>}{T}{<eos?>}")
CLS = ("{<eos>}T", "{<eos>}T")
TEMPLATES = {
    "2dmse": BARE,
    "angle": CLS,
    "angle-llama": ('<bos?>Summarize sentence "T{" in one word:"}', '<bos?>Summarize sentence "T{" in one word:"}'),
    "bge": ("{<eos>}Represent this sentence for searching relevant passages: T", "{<eos>}T"),
    "bge-en-icl": ("<bos?>EXAMPLES<instruct>I\n<query>T\n<response>{<eos>}", "<bos?>T{<eos>}"),
    "cpt-text": ("[T]{<eos>}", "{T}{<eos>}"),
    "demo": ("{T}", "{T}"),
    "dpr": ("{<eos>}T", "{<eos>}TITLE<eos?>T"),
    "e5": ("{<bos?>}{query: }{T}{<eos?>}", "{<bos?>}{passage: }{T}{<eos?>}"),
    "e5-mistral": E5_MISTRAL,
    "echo-mean-mistral-7b": (
        "<bos>Instruct:I,\nQuery:T\nQuery again:{T}{<eos>}",
        "<bos>Document:T\nDocument again:{T}{<eos>}",
    ),
    "echo-mistral-7b": ECHO,
    "embeddinggemma": ("{<bos?>}{task: }{I}{ | query: }{T}{<eos?>}", "{<bos?>}{title: }{TITLE}{ | text: }{T}{<eos?>}"),
    "ese": CLS,
    "gecko": ("{<bos?>}{task: }{I}{ | query: }{T}{<eos?>}", "{<bos?>}{title: }{TITLE}{ | text: }{T}{<eos?>}"),
    "gemini-embedding": ("{<bos?>}{task: }{I}{ | query: }{T}{<eos?>}", "{<bos?>}{T}{<eos?>}"),
    "gemma-2-9b": GEMMA,
    "gemma-3-270m": ("{<bos>}{I}{: }{T}", "{<bos>}{T}"),
    "gistembed": CLS,
    "grit": ("<bos?><|user|>\nI\n<|embed|>\n{T}", "<bos?><|embed|>\n{T}"),
    "gte": BARE,
    "gte-qwen2": E5_MISTRAL,
    "jina-v3": (
        "{<bos?>}{Represent the query for retrieving evidence documents: }{T}{<eos?>}",
        "{<bos?>}{Represent the document for retrieval: }{T}{<eos?>}",
    ),
    "kalm-v2": ("{<bos?>}{Instruct: }{I}{ \n Query: }{T}", "{<bos?>}{T}"),
    "llama-2-7b": INST,
    "llama-3-8b": (HEADER + "I;{ }{T}{<|eot_id|>}", HEADER + "{T}{<|eot_id|>}"),
    "llama-embed-nemotron": ("{<bos?>}{Instruct: }{I}{\nQuery: }{T}", "{<bos?>}{T}"),
    "llm2vec": OPEN,
    "llm2vec-simcse": OPEN,
    "llm2vec-supervised": OPEN,
    "llm2vec-unsupervised": OPEN,
    "matryoshka": BARE,
    "mistral-7b": INST,
    "multilingual-e5-instruct": ("{<bos?>}{Instruct: }{I}{\nQuery: }{T}{<eos?>}", "{<bos?>}{T}{<eos?>}"),
    "nv-embed": ("<bos?>Instruct: I\nQuery: {T}{<eos>}", "{<bos?>}{T}{<eos>}"),
    "nv-retriever": ("<bos?>I: {T}{<eos?>}", "{<bos?>}{T}{<eos?>}"),
    "pocket": ("{<bos>}{I}{: }{T}{<eos>}", "{<bos>}{T}{<eos>}"),
    "pocket-echo": ECHO,
    "promptagator": BARE,
    "qwen2.5-7b": QWEN,
    "qwen3-0.6b": QWEN,
    "qwen3-8b": QWEN,
    "qwen3-embedding": ("<bos?>Instruct: I\nQuery:T{<eos>}", "<bos?>T{<eos>}"),
    "repllama": ("<bos?>Query: T{<eos>}", "<bos?>Passage: T{<eos>}"),
    "sbert-contrastive": BARE,
    "sbert-nli": BARE,
    "sbert-sts": BARE,
    "sbert-triplet": BARE,
    "sfr-mistral": E5_MISTRAL,
    "sgpt": ("{[}{T}{]}", "{{}{T}{}}"),
    "sgpt-nli": ("{T}", "{T}"),
    "sheared-llama-1.3b": ("<bos>I;{ }{T}", "<bos>{T}"),
    "simcse": CLS,
    "simcse-supervised": CLS,
    "smollm2-135m": ("{I}{: }{T}", "{T}"),
}
NAMES = list(TEMPLATES)


def small() -> dict[str, Any]:
    """The plainest valid recipe with two stages."""
    stage = {"steps": 2, "batch_size": 4, "lr": 1e-4}
    return {
        "name": "small",
        "model": {"name": "pocket"},
        "input": {"query": [{"slot": "text", "pool": True}], "document": [{"slot": "text", "pool": True}]},
        "pooling": "mean",
        "stages": [
            {"objective": "mntp", "data": [{"kind": "docstrings"}], "mask_rate": 0.2, "mask_policy": "bert", **stage},
            {"objective": "contrastive", "data": [{"kind": "docstrings"}], **stage},
        ],
    }


def fault(source: Any, *overrides: str) -> str:
    """The message with which `source` is refused."""
    with pytest.raises(RecipeError) as error:
        load_recipe(source, overrides)
    return str(error.value)


def written(template: tuple[Part, ...]) -> str:
    """A template in the notation of TEMPLATES."""
    text = ""
    for part in template:
        slot = {"instruction": "I", "text": "T", "title": "TITLE", "examples": "EXAMPLES"}.get(part.slot or "")
        piece = slot or part.literal or part.token or f"<{part.special}{'?' if part.when else ''}>"
        text += f"{{{piece}}}" if part.pool else piece
    return text


# ------------------------------------------------------------------------------------------------------------- shipped


def test_shipped_names() -> None:
    assert recipe_names() == NAMES
    assert [load_recipe(name).name for name in NAMES] == NAMES


def test_every_shipped_recipe_has_a_family_and_published_scores_have_their_source() -> None:
    for name in NAMES:
        recipe = load_recipe(name)
        assert recipe.family, name
        lines = (Path(__file__).parents[2] / "recipes" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        written = [line for line in lines if line.startswith("published:")]
        assert len(written) == bool(recipe.published) and all("  # [" in line for line in written), name


def test_a_published_score_is_in_points_and_belongs_to_the_recipes_own_model() -> None:
    assert load_recipe("mistral-7b").published == {"MTEB": 64.80}
    assert load_recipe("mistral-7b", model="other/model").published == {}
    assert load_recipe("mistral-7b", data="mine.jsonl").published == {}
    assert "published.MTEB" in fault("mistral-7b", "published.MTEB=0.648")
    assert "family" in fault("mistral-7b", f"family={'long ' * 6}")


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "resolved.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(path) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_templates_are_byte_exact(name: str) -> None:
    spec = load_recipe(name).input
    assert (written(spec.query), written(spec.document)) == TEMPLATES[name]


@pytest.mark.parametrize("name", LLM2VEC)
def test_llm2vec_values(name: str) -> None:
    recipe = load_recipe(name)
    columns = ("objective", "lr", "batch_size", "steps", "schedule_steps", "warmup_steps", "attention_dropout")
    assert [tuple(getattr(stage, column) for column in columns) for stage in recipe.stages] == [
        ("mntp", 5e-5, 32, 1000, 21600, 0, 0.0),
        ("simcse", 3e-5, 128, 1000, 23438, 0, 0.3),
        ("contrastive", 2e-4, 512, 1000, 8800, 300, 0.0),
    ]
    for stage in recipe.stages:
        assert stage.lora is not None
        assert (stage.lora.r, stage.lora.alpha, stage.lora.dropout) == (16, 32, 0.05)
        assert stage.lora.targets == ("all-linear" if name == "llm2vec" else PROJECTIONS)
        assert (stage.trainable, stage.schedule, stage.precision) == ("lora", "linear", "bfloat16")
        assert (stage.weight_decay, stage.adam_betas, stage.max_grad_norm) == (0.0, (0.9, 0.999), 1.0)
        assert stage.gradient_checkpointing
    mntp, simcse, contrastive = recipe.stages
    mistral = name == "mistral-7b"
    assert (mntp.mask_rate, mntp.mask_policy) == ((0.8, "all") if mistral else (0.2, "bert"))
    assert (mntp.mask_token, mntp.block_tokens) == ("blank", 512)
    assert (simcse.loss.temperature, simcse.max_tokens) == (0.05, 128)
    assert (contrastive.loss.temperature, contrastive.hard_negatives) == (0.02, 1)
    assert (recipe.model.attention, recipe.pooling, recipe.input.max_tokens) == ("bidirectional", "mean", 512)
    assert recipe.input.strip == ("none" if name in ("llm2vec", "sheared-llama-1.3b") else "outer")


def test_schedule_lengths_follow_from_the_data() -> None:
    mntp, simcse, contrastive = load_recipe("mistral-7b").stages
    # Three epochs, of which the published runs see 1000 steps: the rate stops high, it never decays to zero.
    assert simcse.schedule_steps == round(3 * 1_000_000 / 128)
    assert contrastive.schedule_steps == pytest.approx(3 * 1_500_000 / 512, rel=2e-3)
    stop = [(s.schedule_steps - s.steps) / (s.schedule_steps - s.warmup_steps) for s in (mntp, simcse, contrastive)]
    assert stop == pytest.approx([0.954, 0.957, 0.918], abs=5e-4)


def test_echo_values() -> None:
    recipe = load_recipe("echo-mistral-7b")
    (stage,) = recipe.stages
    assert (stage.objective, stage.lr, stage.batch_size, stage.steps) == ("contrastive", 8e-4, 2048, 720)
    assert stage.lora is not None
    assert (stage.lora.r, stage.lora.alpha, stage.loss.temperature) == (16, 16, 0.02)
    assert (recipe.model.name, recipe.model.attention) == ("mistralai/Mistral-7B-Instruct-v0.1", "causal")
    assert (recipe.pooling, recipe.input.tokenize, recipe.input.max_text_tokens) == ("last", "pieces", 300)
    # Two copies and an instruction of the full 300 tokens still fit, so that the limit per piece is the one that cuts.
    assert recipe.input.max_tokens >= 3 * 300 + 50


@pytest.mark.parametrize("name", [*LLM2VEC, "echo-mistral-7b"])
def test_supervised_data(name: str) -> None:
    sources = load_recipe(name).stages[-1].data
    assert {Path(source.path).stem: source.instruction for source in sources} == INSTRUCTIONS
    assert len(sources) == 14
    for source in sources:
        assert source.path == f"echo-data/{Path(source.path).stem}.jsonl"
        assert source.columns == {"query": "query", "positive": "positive", "negatives": "negative"}
        assert source.weight == 1.0
        assert not source.symmetric  # documents never carry an instruction, as in the reference


# --------------------------------------------------------------------------------------------------------- collections

SOURCES = [{"kind": "files", "path": "a.jsonl", "weight": 2.0}, {"kind": "files", "path": "b.jsonl"}]


def with_data(*data: Any) -> dict[str, Any]:
    recipe = yaml.safe_load(load_recipe("pocket-echo").to_yaml())
    recipe["stages"][0]["data"] = list(data)
    return recipe


def test_a_collection_stands_for_its_sources(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"data": SOURCES}))
    other = {"kind": "files", "path": "c.jsonl"}
    expected = load_recipe(with_data(*SOURCES, other))
    assert load_recipe(with_data({"collection": str(path)}, other)) == expected
    assert (
        load_recipe(with_data(other), [f"stages.0.data=[{{collection: {path}}}, {{kind: files, path: c.jsonl}}]"])
        == expected
    )
    changed = load_recipe(with_data({"collection": str(path)}, other), ["stages.0.data.1.weight=3.0"])
    assert [source.weight for source in changed.stages[0].data] == [2.0, 3.0, 1.0]
    assert "collection" not in expected.to_yaml()


def test_a_shipped_collection_is_known_by_its_name() -> None:
    assert (
        load_recipe(with_data({"collection": "e5-public"})).stages[0].data == load_recipe("mistral-7b").stages[-1].data
    )


def test_no_shipped_recipe_repeats_a_collection() -> None:
    folder = Path(__file__).parents[2] / "recipes"
    collections = [yaml.safe_load(path.read_text())["data"] for path in (folder / "data").glob("*.yaml")]
    long = [source["path"] for sources in collections for source in sources if len(sources) > 1]
    assert len(long) == 14 + 12 + 6
    for path in folder.glob("*.yaml"):
        assert not [source for source in long if source in path.read_text()], path.name


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        (
            "data: []",
            {"collection": "no-such"},
            "no data collection 'no-such': .* shipped names: bge-classes, e5-public",
        ),
        ("data: []", {"weight": 2}, "nothing besides .* copy its file, or set the field by its place"),
        ("data: []\nname: x", {}, "is no data collection: it must hold `data:`, a list of sources"),
        ("- kind: files", {}, "is no data collection"),
        ("data: [{collection: e5-public}]", {}, "is no data collection"),
        ("data: [{kind: files, path: a, wait: 1}]", {}, r"stages\.0\.data\.0\.wait"),
        ("data: []", {}, r"stages\.0\.data"),
    ],
)
def test_what_is_no_collection_is_refused(text: str, given: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_recipe(with_data({"collection": str(path), **given}))


@pytest.mark.parametrize("name", ["pocket", "pocket-echo"])
def test_pocket_needs_no_network(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.model.name, recipe.model.dtype) == ("pocket", "float32")
    sources = [*recipe.evaluation, *(source for stage in recipe.stages for source in stage.data)]
    assert {source.kind for source in sources} == {"docstrings"}


def test_loading_a_recipe_does_not_import_torch() -> None:
    code = (
        'import sys; from llm2enc.recipe import load_recipe; load_recipe("mistral-7b"); print("torch" in sys.modules)'
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ------------------------------------------------------------------------------------------------------------- loading


def test_unknown_name_lists_the_shipped_ones() -> None:
    message = fault("mistral-8b")
    assert "'mistral-8b'" in message
    assert all(name in message for name in NAMES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [unclosed", "not valid YAML"),
        ("- a\n- b\n", "holds list"),
        ("", "holds NoneType"),
        ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("name: &a [*a]\n", "not valid YAML"),  # contains itself
        ("name: !!timestamp 2020-01-01\n", "not plain data"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("name: a\nseed: 1\nname: b\n", "line 3, column 1: found duplicate key"),
        ("name: a\nseed: [1\n", "line 3, column 1: "),
    ],
)
def test_files_that_are_no_recipe(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    assert said in fault(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(b"name: \xff\xfe\xfa")
    assert "UTF-8" in fault(path)


@pytest.mark.parametrize("written_as", ["5e-5", "5E-5", "5.e-5", ".00005", "0.00005", "+5e-5"])
def test_yaml_floats(written_as: str, tmp_path: Path) -> None:
    assert load_recipe(small(), [f"stages.mntp.lr={written_as}"]).stages[0].lr == 5e-5
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small()).replace("lr: 0.0001", f"lr: {written_as}"), encoding="utf-8")
    assert [stage.lr for stage in load_recipe(path).stages] == [5e-5, 5e-5]


def test_all_faults_at_once_with_their_paths() -> None:
    data = small()
    data["surplus"] = 1
    data["pooling"] = "median"
    del data["model"]["name"]
    data["stages"][0]["lr"] = "high"
    data["stages"][1]["temprature"] = 0.1
    data["input"]["max_tokens"] = 1
    lines = fault(data).splitlines()
    assert lines[0] == "the recipe has 6 fault(s):"
    paths = [line.split(": ")[0].strip() for line in lines[1:]]
    ends = [("surplus", ""), ("pooling", ""), ("model", "name"), ("stages.0", "lr"), ("stages.1", "temprature")]
    for start, end in [*ends, ("input", "max_tokens")]:
        assert [path for path in paths if path.startswith(start) and path.endswith(end)], (start, end, paths)


@pytest.mark.parametrize("objective", ["simcse", "contrastive"])
def test_a_scale_is_no_temperature(objective: str) -> None:
    """At 20 all cosines are alike, and the loss stays at ln(batch)."""
    line = fault("pocket", f"stages.{objective}.loss.temperature=20").splitlines()[1]
    assert (
        f"stages.{1 + (objective == 'contrastive')}.loss.temperature: " in line
        and "write its inverse, `temperature: 0.05`" in line
    )
    assert load_recipe("pocket", [f"stages.{objective}.loss.temperature=1"])
    assert load_recipe("pocket", [f"stages.{objective}.loss={{similarity: dot, temperature: 20}}"])


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ('seed="1"', "seed"),
        ("seed=1.5", "seed"),
        ("seed=true", "seed"),
        ("seed=null", "seed"),
        ("name=1", "name"),
        ("normalize=1", "normalize"),
        ('normalize="true"', "normalize"),
        ("stages.0.lr=.inf", "lr"),
        ("stages.0.lr=.nan", "lr"),
        ("stages.0.lr=1e999", "lr"),
        ("stages.0.lr=-1", "lr"),
        ('stages.0.lr="1e-4"', "lr"),
        ("stages.0.mask_rate=1", "mask_rate"),
        ("stages.0.mask_policy=BERT", "mask_policy"),
        ("stages.0.temperature=0.1", "loss"),  # belongs to another objective
        ("stages.0.objective=mlm", "stages.0"),
        ("stages.0.lora.rank=4", "rank"),
        ("stages.0.data=[]", "data"),
        ("stages.0.data.0.kind=web", "data.0"),
        ("stages.0.data.0.path=x", "path"),  # docstrings have no path
        ("stages.0.data.0.columns.label=x", "columns"),
        ("stages.0.trainable=norms", "trainable"),
        ("stages.0.trainable.layers=0", "trainable.layers"),
        ("model=pocket", "model"),
        ("stages=1", "stages"),
    ],
)
def test_strictness(override: str, where: str) -> None:
    assert where in fault(small(), override).splitlines()[1].split(": ")[0]


CONTRASTIVE = (
    "[{objective: contrastive, in_context_examples: 5, steps: 1, batch_size: 2, lr: 1.0, data: [{kind: docstrings}]}]"
)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages.0.schedule_steps=1"], "schedule_steps (1) is shorter than steps (2)"),
        (["stages.0.warmup_steps=3"], "warmup_steps (3) is longer than the schedule"),
        (["stages.0.trainable=full", "stages.0.lora.r=4"], "`lora` is set but `trainable` is full"),
        (["stages.0.trainable=full", "stages.0.lora=continue"], "`lora` is set but `trainable` is full"),
        (["stages.0.trainable.layers=2", "stages.0.lora.r=4"], "`lora` is set but `trainable` is layers: 2"),
        (
            ["stages.0.lora=continue"],
            "(mntp) has `lora: continue`, but no adapter to go on with: it is the first stage",
        ),
        (["model.attention=causal"], "an mntp stage needs `model.attention: bidirectional`"),
        (["stages.0.data.0.unique_ids=true"], "`unique_ids` tells pairs apart, and this stage reads none"),
        (
            ["stages.0.data.0.unique_ids=true", "stages.0.data.0.in_batch_negatives=false"],
            "with `in_batch_negatives: false` they do not meet",
        ),
        (["stages=" + CONTRASTIVE], "stage 0 has in_context_examples, but the query template has no place for them"),
    ],
)
def test_fields_that_contradict_each_other(overrides: list[str], said: str) -> None:
    assert said in fault(small(), *overrides)


def test_an_adapter_goes_on_through_the_stages_that_say_so() -> None:
    def of(*kinds: Any) -> dict[str, Any]:
        recipe = small()
        recipe["stages"] = [{**recipe["stages"][0], **kind} for kind in kinds]
        return recipe

    on = {"lora": "continue"}
    recipe = load_recipe(of({"lora": {"r": 4}}, on, on, {"lora": None}, on))
    assert [recipe.adapter_goes_on(index) for index in range(5)] == [True, True, False, True, False]
    assert [recipe.adapter_of(index).r for index in range(5)] == [4, 4, 4, 16, 16]
    assert load_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    full = {"trainable": "full", "lora": None}
    assert "stage 1 (mntp) has `lora: continue`, but no adapter to go on with: the stage before it trains all" in fault(
        of(full, on)
    )
    assert "stages.0.lora: Input should be 'continue'" in fault(of({"lora": "go on"}))
    assert "stages.0.lora.r: " in fault(of({"lora": {"r": -1}}))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({}, "exactly one of literal, slot, special, token; got none"),
        ({"literal": "a", "slot": "text"}, "got ['literal', 'slot']"),
        ({"special": "bos", "token": "["}, "got ['special', 'token']"),
        ({"literal": ""}, "must not be empty"),
        ({"token": ""}, "must not be empty"),
        ({"slot": "subject"}, "'instruction', 'text'"),
        ({"slot": "text", "empty": "none"}, "`empty` is for {slot: title} without `when`"),
        ({"slot": "title", "when": "title", "empty": "none"}, "`empty` is for {slot: title} without `when`"),
        ({"slot": "text", "when": "title"}, "a text without title would not be read"),
        ({"literal": "a", "when": "text"}, "when"),
        ({"special": "cls", "when": "tokenizer"}, "is for {special: bos} and {special: eos}"),
    ],
)
def test_parts_that_mean_nothing(part: dict[str, Any], said: str) -> None:
    data = small()
    data["input"]["query"].append(part)
    message = fault(data)
    assert said in message
    assert "input.query.1" in message


@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize(
    ("template", "said"),
    [
        ([], "at least 1 item"),
        ([{"literal": "a", "pool": True}], "no {slot: text} part"),
        ([{"slot": "text"}, {"special": "eos"}], "pools nothing"),
    ],
)
def test_templates_without_text_or_vector(role: str, template: list[dict[str, Any]], said: str) -> None:
    data = small()
    data["input"][role] = template
    message = fault(data)
    assert said in message
    assert role in message


def test_documents_have_no_instruction() -> None:
    data = small()
    parts = [{"slot": "instruction"}, {"slot": "text", "pool": True}]
    data["input"]["query"] = parts
    load_recipe(data)
    data["input"]["document"] = parts
    assert "document template cannot have an instruction or examples slot" in fault(data)


# ----------------------------------------------------------------------------------------------------------- overrides


def test_overrides_reach_every_kind_of_place() -> None:
    recipe = load_recipe(
        "mistral-7b",
        [
            "seed=7",
            "model.name=./my=model",  # only the first = separates
            "stages.0.steps=10",
            "stages.contrastive.lr=1e-4",
            "stages.2.data.0.limit=5",
            "stages.simcse.lora={r: 4, alpha: 8}",
            "stages.simcse.lora.r=2",  # in order: on top of the one before
            "evaluation=[{kind: folder, path: tasks}]",
            "tracking.wandb=true",  # a mapping that the file does not have
            "input.prompts.sts=Retrieve semantically similar text",
            "stages.mntp.data.0.revision=",
        ],
    )
    mntp, simcse, contrastive = recipe.stages
    assert (recipe.seed, recipe.model.name, mntp.steps, contrastive.lr) == (7, "./my=model", 10, 1e-4)
    assert contrastive.data[0].limit == 5
    assert contrastive.data[1].limit is None
    assert (simcse.lora.r, simcse.lora.alpha) == (2, 8)
    assert recipe.evaluation[0].path == "tasks"
    assert recipe.tracking.wandb is True
    assert recipe.input.prompts["sts"] == "Retrieve semantically similar text"
    assert mntp.data[0].revision is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["keep_best=docstrings/ndcg@10"], "`keep_best` needs measurements to choose from; set `evaluate_every`"),
        (["evaluate_every=1", "patience=2"], "`patience` waits for a higher score, and none is named; set `keep_best`"),
        (["evaluate_every=3"], "evaluate_every (3) is longer than steps (2)"),
        (["keep_checkpoints=[1, 2]"], "must be different steps before the last one, 2"),
        (["keep_checkpoints=[1, 1]"], "must be different steps before the last one, 2"),
        (
            ["evaluate_every=1", "keep_best=x", "patience=1", "keep_checkpoints=[1]"],
            "`patience` may stop the stage before a step of `keep_checkpoints`",
        ),
        (["evaluate_every=1"], "has `evaluate_every`, but the recipe has no `evaluation` to measure"),
    ],
)
def test_measurements_within_a_stage_that_mean_nothing_are_refused(fields: list[str], said: str) -> None:
    data = small()
    for name, value in (field.split("=") for field in fields):
        data["stages"][1][name] = yaml.safe_load(value)
    assert said in fault(data)


def test_overriding_one_stage_leaves_the_others() -> None:
    # The shipped files share `lora` and `columns` by YAML anchors.
    recipe = load_recipe("mistral-7b", ["stages.mntp.lora.r=8", "stages.2.data.0.columns.query=question"])
    assert [stage.lora.r for stage in recipe.stages] == [8, 16, 16]
    assert [source.columns["query"] for source in recipe.stages[2].data] == ["question"] + ["query"] * 13


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "'seed' is not of the form dotted.path=value"),
        ("=1", "'=1' is not of the form dotted.path=value"),
        ("", "not of the form"),
        ("seed=[", "not valid YAML"),
        ("stages.2.steps=1", "no entry '2': the list has 2 entries"),
        ("stages.-1.steps=1", "no entry '-1'"),
        ("stages.2=1", "no entry '2'"),
        ("stages.simcse.steps=1", "no entry 'simcse'"),
        ("model.name.first=1", "model.name is a value, it has no fields"),
        ("stages.0.steps.now.later=1", "2 is a value, it has no fields"),
        ("sed=1", "sed: Extra inputs are not permitted"),
        ("a..b=1", "a: Extra inputs are not permitted"),
    ],
)
def test_overrides_that_lead_nowhere(override: str, said: str) -> None:
    assert said in fault(small(), override)


def test_an_objective_that_occurs_twice_needs_a_number() -> None:
    data = small()
    data["stages"].append(copy.deepcopy(data["stages"][1]))
    assert "several entries have that objective" in fault(data, "stages.contrastive.steps=5")
    assert [stage.steps for stage in load_recipe(data, ["stages.2.steps=5"]).stages] == [2, 2, 5]


@pytest.mark.parametrize("value", ["1", "true", "null", "'1'", "1.5", "[]", "{}", ".nan", "pocket"])
@pytest.mark.parametrize("key", ["seed", "pooling", "normalize", "model", "stages", "input", "evaluation", "surplus"])
def test_overrides_are_validated_as_files_are(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in small().items() if k != key}) + f"{key}: {value}\n")
    assert _outcome(small(), [f"{key}={value}"]) == _outcome(path, [])


def _outcome(source: Any, overrides: list[str]) -> Any:
    try:
        return load_recipe(source, overrides)
    except RecipeError as error:
        return str(error)


def test_the_callers_dict_is_untouched() -> None:
    data = small()
    before = copy.deepcopy(data)
    load_recipe(data, ["stages.mntp.steps=9", "model.name=other", "tracking.wandb=true", "stages.0.data.0.limit=3"])
    assert data == before


def test_a_recipe_is_frozen() -> None:
    recipe = load_recipe(small())
    for node, field in [(recipe, "seed"), (recipe.model, "name"), (recipe.stages[0], "lr"), (recipe.input, "query")]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(node, field, getattr(node, field))


PATHS = [
    "seed",
    "name",
    "model",
    "model.name",
    "input.query.0.slot",
    "stages",
    "stages.0",
    "stages.mntp.lr",
    "stages.9.x",
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
TREES = st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.text(max_size=40)
    | st.builds("{}={}".format, st.sampled_from(PATHS) | st.text(".ab01", max_size=8), st.text(max_size=20))
    | st.builds("{}={}".format, st.sampled_from(PATHS), TREES.map(lambda tree: yaml.safe_dump(tree, width=10**6)))
)
def test_no_override_raises_anything_but_a_recipe_error(override: str) -> None:
    try:
        recipe = load_recipe(small(), [override])
    except RecipeError:
        return
    assert load_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


# ----------------------------------------------------------------------------- faults of recipe.py that are still open


@pytest.mark.parametrize(
    "value",
    ["!!int x", "!!float x", "!!bool x", "!!timestamp x", "0x_", "2020-13-45", "1" * 5000, "[" * 3000],
    ids=lambda value: value[:10],
)
def test_values_that_yaml_cannot_build(value: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(f"seed: {value}\n", encoding="utf-8")
    assert "seed" in fault(small(), f"seed={value}")
    assert "seed" in (message := fault(path)) or "broken.yaml" in message


@pytest.mark.parametrize("overrides", [[], ["a." * 3000 + "b=1"]], ids=["name", "path"])
def test_absurd_lengths(overrides: list[str]) -> None:
    assert fault(small() if overrides else "a" * 5000, *overrides)


def test_a_file_that_grows_when_read(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (250 << 20, 250 << 20))
from llm2enc.errors import RecipeError
from llm2enc.recipe import load_recipe
try:
    load_recipe({str(path)!r})
except RecipeError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "refused"


@pytest.mark.parametrize(("value", "seed"), [("010", 10), ("1:30", None)])
def test_numbers_mean_what_they_say(value: str, seed: int | None) -> None:
    try:
        assert load_recipe(small(), [f"seed={value}"]).seed == seed
    except RecipeError:
        return


@pytest.mark.parametrize("text", ["2024-01-01", "1_0", "no", "=", "<<", "1:30", "a_b"])
def test_texts_of_yaml_1_2_are_texts(text: str) -> None:
    recipe = load_recipe(small(), [f"description={text}", f"input.prompts={{{text}: {text}}}"])
    assert (recipe.description, recipe.input.prompts) == (text, {text: text})


@pytest.mark.parametrize("override", ["stages.0.data.0.path=x", "input.query.0.pool=1"])
def test_one_fault_is_one_fault(override: str) -> None:
    assert "1 fault(s)" in fault(small(), override)


def test_the_path_of_a_fault_works_as_an_override() -> None:
    where = fault(small(), "stages.0.lr=high").splitlines()[1].split(": ")[0].strip()
    assert where == "stages.0.lr"


def test_fields_of_release_0_1_keep_their_names_for_a_release(caplog: pytest.LogCaptureFixture) -> None:
    old = load_recipe("pocket").model_dump(mode="json")
    stage = old["stages"][2]
    stage |= {"shards": stage.pop("rng_shards"), "graph_tokens": stage.pop("activation_tokens")}
    renamed = load_recipe(old, ["stages.contrastive.mini_batch_tokens=77"])
    assert renamed == load_recipe("pocket", ["stages.contrastive.micro_batch_tokens=77"])
    assert "stages.2.shards is called rng_shards now" in caplog.text
    assert "stages.2.mini_batch_tokens is called micro_batch_tokens now" in caplog.text
    caplog.clear()
    loss = stage.pop("loss")
    stage |= {"temperature": loss["temperature"], "mask_duplicates": loss["masks"]["duplicates"]}
    assert load_recipe(old) == load_recipe("pocket") and len(caplog.messages) == 4
    assert "stages.2.temperature is called loss.temperature now" in caplog.text
    assert "stages.2.mask_duplicates is called loss.masks.duplicates now" in caplog.text
