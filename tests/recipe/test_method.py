"""A method is not tied to one model: a recipe with another model and other data, on tokenizers of three families."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llm2enc import Encoder, convert, load_recipe
from llm2enc.data import read_texts
from llm2enc.errors import RecipeError
from llm2enc.recipe import FilesData, InputSpec, Part, sources_of
from llm2enc.text import InputFormat, for_tokenizer
from tests.conversion.test_recipes_run import SENTENCES
from tests.support.tiny import tiny_model

# Family: its special tokens by role, and those that its tokenizer puts around a text.
FAMILIES = {
    "llama": ({"bos_token": "<s>", "eos_token": "</s>"}, "<s> $A </s>"),
    "qwen3": ({"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, "$A"),
    "gpt_neox": ({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, "$A"),  # it has a BOS, and puts none
}
# What `llm2vec` makes of the text "to be" for the instruction "I", a token a byte; pooled tokens in brackets.
READ = {
    "llama": ("<s> I ; [Ġ] [t] [o] [Ġ] [b] [e] [</s>]", "<s> [t] [o] [Ġ] [b] [e] [</s>]"),
    "qwen3": ("I ; [Ġ] [t] [o] [Ġ] [b] [e]", "[t] [o] [Ġ] [b] [e]"),
    "gpt_neox": ("I ; [Ġ] [t] [o] [Ġ] [b] [e]", "[t] [o] [Ġ] [b] [e]"),
}


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a token a byte, and special tokens as the family has them."""
    roles, around = FAMILIES[family]
    names = sorted({*roles.values()})
    vocabulary = {token: number for number, token in enumerate([*names, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(names)
    backend.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[(n, vocabulary[n]) for n in names]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def make_family(family: str, folder: Path) -> str:
    """A tiny random model of the family with its tokenizer."""
    make_tokenizer(family).save_pretrained(folder)
    tiny_model(family, vocab_size=320, max_position_embeddings=1024).save_pretrained(folder)
    return str(folder)


def read(input_format: InputFormat, *row: str) -> str:
    """The tokens of one text in the notation of READ."""
    text, instruction, role = row
    tokens = input_format.pack([text], instruction, role)
    names = input_format.tokenizer.convert_ids_to_tokens(tokens.ids.tolist())
    return " ".join(f"[{name}]" if pooled else name for name, pooled in zip(names, tokens.pool.tolist(), strict=True))


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    rows = [{"query": s[:12], "positive": s, "negative": SENTENCES[n - 1]} for n, s in enumerate(SENTENCES)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "pairs.jsonl")


# ----------------------------------------------------------------------------------------------------------- end to end


@pytest.mark.parametrize("family", FAMILIES)
def test_llm2vec_trains_any_family_on_any_pairs(family: str, pairs: str, tmp_path: Path, in_process: None) -> None:
    few = {"steps": 2, "schedule_steps": 4, "warmup_steps": 0, "batch_size": 4, "precision": "float32", "rng_shards": 1}
    changes = [f"stages.{stage}.{key}={value}" for stage in range(3) for key, value in few.items()]
    changes += ["model.dtype=float32", "stages.mntp.block_tokens=32"]
    recipe = load_recipe("llm2vec", changes, model=make_family(family, tmp_path / "base"), data=pairs)

    convert(recipe, tmp_path / "run")

    encoder = Encoder.load(tmp_path / "run" / "model")
    assert (
        read(encoder.input_format, "to be", "I", "query"),
        read(encoder.input_format, "to be", "I", "document"),
    ) == READ[family]
    for stage in ("0-mntp", "1-simcse", "2-contrastive"):
        lines = (tmp_path / "run" / stage / "metrics.jsonl").read_text().splitlines()
        assert np.isfinite([json.loads(line)["loss"] for line in lines]).all()
    saved = load_recipe(str(tmp_path / "run" / "recipe.yaml"))
    assert saved.name == "llm2vec-base" and {stage.data[0].path for stage in saved.stages} == {pairs}
    specials = ["bos", None, "eos"] if family == "llama" else [None]
    assert [part.special for part in saved.input.document] == specials
    assert all(part.when is None for part in saved.input.query)  # what was found, not how to find it


# -------------------------------------------------------------------------------------------------------------- --model


def test_a_model_takes_the_place_of_the_recipes() -> None:
    own = load_recipe("mistral-7b")
    other = load_recipe("mistral-7b", ["model.revision=v1"], model="Qwen/Qwen3-0.6B")
    assert (other.model.name, other.model.revision, other.name) == ("Qwen/Qwen3-0.6B", "v1", "mistral-7b-Qwen3-0.6B")
    assert other.description == "recipe mistral-7b, model Qwen/Qwen3-0.6B"
    assert (other.stages, other.input, other.pooling) == (own.stages, own.input, own.pooling)


def test_revision_and_trust_stay_with_the_former_model() -> None:
    fields = load_recipe("pocket", ["model.revision=abc", "model.trust_remote_code=true"]).model_dump(mode="json")
    other = load_recipe(fields, model="someone/else").model
    assert (other.revision, other.trust_remote_code, other.dtype) == (None, False, "float32")


@pytest.mark.parametrize("role", ["query", "document"])
def test_a_part_that_the_tokenizer_cannot_express_is_named(role: str) -> None:
    text, bos = Part(slot="text", pool=True), Part(special="bos")
    spec = InputSpec(**{"query": (text,), "document": (text,), role: (Part(literal="a"), bos, text)})
    with pytest.raises(
        ValueError, match=rf"part input\.{role}\.1: .*bos token.*--set input\.{role}\.1\.when=tokenizer"
    ):
        InputFormat(spec, make_tokenizer("qwen3"))


def test_a_recipe_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    base = make_family("qwen3", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"part input\.query\.0"):
        convert(load_recipe("mistral-7b", model=base), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_chat_marks_that_are_plain_text_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = make_family("llama", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    with caplog.at_level("INFO", "llm2enc"), pytest.raises(OSError):
        convert(load_recipe("mistral-7b", model=base), tmp_path / "run")
    assert [record.getMessage() for record in caplog.records if "plain text" in record.getMessage()] == [
        f"[INST] in input.query.1, input.document.1 is no token of {base}: it is read as plain text",
        f"[/INST] in input.query.6, input.document.4 is no token of {base}: it is read as plain text",
    ]


def test_a_template_without_open_parts_is_left_alone() -> None:
    spec = load_recipe("pocket").input
    assert for_tokenizer(spec, make_tokenizer("llama")) is spec


# --------------------------------------------------------------------------------------------------------------- --data


def test_data_takes_the_place_of_every_stages_and_prompts_go_with_the_former() -> None:
    recipe = load_recipe("mistral-7b", ["stages.contrastive.data.0.instruction=Find it"], data="mine.jsonl")
    (mntp,), (simcse,), (contrastive,) = (stage.data for stage in recipe.stages)
    assert mntp == simcse == FilesData(kind="files", path="mine.jsonl", view="texts")
    assert contrastive == FilesData(kind="files", path="mine.jsonl", instruction="Find it")
    assert (recipe.input.prompts, recipe.name) == ({}, "mistral-7b")
    assert recipe.description == "recipe mistral-7b, data mine.jsonl"
    assert load_recipe("pocket", data="mine.jsonl").evaluation == load_recipe("pocket").evaluation


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_are_read_as_texts(pairs: str, streaming: bool) -> None:
    found = read_texts(FilesData(kind="files", path=pairs, view="texts", streaming=streaming))
    assert list(found) == [text for sentence in SENTENCES for text in (sentence[:12], sentence)]
    if not streaming:
        assert found.take(np.array([3, 0])) == [SENTENCES[1], SENTENCES[0][:12]]


def test_a_table_of_texts_stays_one(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "one", "query": "no", "positive": "no"}\n')
    assert list(read_texts(FilesData(kind="files", path=str(tmp_path / "texts.jsonl"), view="texts"))) == ["one"]


def test_texts_are_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"texts.txt holds texts, and stages.2 \(contrastive\) trains on pairs"):
        load_recipe("llm2vec", data="texts.txt")


def test_what_data_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/one.csv", "a/two.jsonl", "a/notes.md", "beir/corpus.jsonl", "empty/notes.md"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert [source.path for source in sources_of("a")] == ["a/one.csv", "a/two.jsonl"]
    assert [(source.kind, source.path) for source in sources_of("beir")] == [("files", "beir")]
    assert [source.kind for source in sources_of("a/*.csv")] == ["files"]
    assert [source.kind for source in sources_of("sentence-transformers/all-nli")] == ["hub"]
    with pytest.raises(RecipeError, match="holds no file that can be read as data"):
        sources_of("empty")


# ----------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "./a model"])
def test_a_model_in_the_place_of_a_recipe_is_answered_with_two_commands(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a model").mkdir()
    with pytest.raises(RecipeError) as refused:
        load_recipe(model)
    name = Path(model).name
    commands = [shlex.split(line, comments=True) for line in str(refused.value).splitlines()[1:]]
    assert commands == [
        ["llm2enc", "convert", "llm2vec", "--model", model, "-o", f"runs/{name}"],
        ["llm2enc", "convert", model, "--training-free", "-o", f"runs/{name}"],
    ]
