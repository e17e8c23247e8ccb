"""The exported directory: opened again by llm2enc, and by sentence-transformers in a process of its own."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from llm2enc.artifact import METADATA_FILE, layout
from llm2enc.artifact import directory as sentence_transformers
from llm2enc.encoding import Encoder
from llm2enc.model import Backbone
from llm2enc.recipe import ExampleSpec, InputSpec, LoraSpec, Part, load_recipe
from llm2enc.text import InputFormat, Passage
from tests.artifact.test_exported_tokenizer import recipe_format
from tests.support.builders import make_tokenizer

BOS, EOS = Part(special="bos", pool=True), Part(special="eos", pool=True)
TEXT, ASK = Part(slot="text", pool=True), Part(slot="instruction", pool=True)

# Every token is pooled, so that any program that pools them all gives the same vector.
WHOLE = InputSpec(
    query=(BOS, ASK, Part(literal=": ", pool=True), TEXT, EOS),
    document=(BOS, TEXT, EOS),
    max_tokens=80,
    prompts={"query": "Find the answer", "same": "Find a text of the same meaning"},
)
# LLM2Vec's chat wrap: literals on both sides of the text.
WRAP = InputSpec(
    query=(
        BOS,
        Part(literal="[INST] ", pool=True),
        ASK,
        Part(literal="; ", pool=True),
        TEXT,
        Part(literal=" [/INST]", pool=True),
    ),
    document=(BOS, Part(literal="[INST] ", pool=True), TEXT, Part(literal=" [/INST]", pool=True)),
    max_tokens=80,
    prompts={"query": "Find the answer"},
)
ECHO = (
    Part(special="bos"),
    Part(literal="Document:"),
    Part(slot="text"),
    Part(literal="\nDocument again:"),
    TEXT,
    EOS,
)
ECHO_LAST = InputSpec(query=ECHO, document=ECHO, max_tokens=160, max_text_tokens=50, tokenize="pieces")
# As most recipes pool: the text alone. BOS is read only.
TEXT_ONLY = InputSpec(
    query=(Part(special="bos"), Part(slot="instruction"), Part(literal=": "), TEXT),
    document=(Part(special="bos"), TEXT),
    max_tokens=40,
)

TEXTS = [
    *(" ".join(("the old town market by the river " * 9).split()[:count]) for count in (1, 2, 3, 7, 20, 40, 60)),
    "Zürich – naïve café, 東京 🦜!",
    "  spaces around  ",
    "two\nlines\n",
    "",
]


def make_encoder(family: str = "llama", spec: InputSpec = WHOLE, pooling: str = "mean", **options) -> Encoder:
    """An encoder of 2 layers with random weights, the same every time."""
    bidirectional, normalize = options.pop("bidirectional", True), options.pop("normalize", True)
    tokenizer = options.pop("tokenizer", None) or make_tokenizer()
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 256, **options,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**shape))
    return Encoder(Backbone(model, bidirectional), InputFormat(spec, tokenizer), pooling, normalize).eval()


def of_recipe(name: str, family: str) -> Encoder:
    """An encoder that reads as a shipped recipe, with a tokenizer like that of its model."""
    input_format = recipe_format(name)
    return make_encoder(family, input_format.spec, tokenizer=input_format.tokenizer)


@dataclass(frozen=True)
class Case:
    encoder: Encoder
    names: tuple[str | None, ...] = (None, "query", "document")


CASES = {
    "llama": lambda: Case(make_encoder(), (None, "query", "document", "same")),
    "llama-scaled": lambda: Case(
        make_encoder(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0})
    ),
    "mistral": lambda: Case(make_encoder("mistral", sliding_window=100)),
    "mistral-window": lambda: Case(make_encoder("mistral", sliding_window=5)),
    "qwen3": lambda: Case(make_encoder("qwen3")),
    "qwen3-window": lambda: Case(
        make_encoder("qwen3", use_sliding_window=True, sliding_window=100, max_window_layers=1)
    ),
    "gemma3_text": lambda: Case(
        make_encoder("gemma3_text", sliding_window=5, layer_types=["sliding_attention", "full_attention"])
    ),
    "unnormalised": lambda: Case(make_encoder(normalize=False)),
    "weighted": lambda: Case(make_encoder(pooling="weighted_mean")),
    "first": lambda: Case(make_encoder(pooling="first")),
    "wrap": lambda: Case(make_encoder("llama", WRAP)),
    "stablelm": lambda: Case(make_encoder("stablelm")),  # eager alone is bidirectional there
    "text-only": lambda: Case(make_encoder("llama", TEXT_ONLY)),
    **{
        name: lambda name=name, family=family: Case(of_recipe(name, family))
        for name, family in (
            ("mistral-7b, first", "mistral"),
            ("llama-2-7b", "llama"),
            ("llama-3-8b", "llama"),
            ("sheared-llama-1.3b", "llama"),
        )
    },
    "echo-last": lambda: Case(make_encoder("llama", ECHO_LAST, "last", bidirectional=False), (None, "document")),
}

_IN_SENTENCE_TRANSFORMERS = """
import json, sys
import numpy as np, torch
from sentence_transformers import SentenceTransformer
torch.set_num_threads(1)
folders, texts, out = json.loads(sys.argv[1]), json.loads(sys.argv[2]), {}
for folder, names in folders.items():
    model = SentenceTransformer(folder, device="cpu")
    for name in names:
        out[f"{folder}|{name}|batch"] = model.encode(texts, prompt_name=name)
        out[f"{folder}|{name}|alone"] = np.stack([model.encode([text], prompt_name=name)[0] for text in texts])
    first = [
        model[0](model.preprocess([text]))["token_embeddings"][0, 0].detach().numpy()
        for text in ("the old town river", "the old town market")
    ]
    out[f"{folder}|moved"] = np.abs(first[0] - first[1]).max()
np.savez(sys.argv[3], **out)
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Case], Path, dict[str, np.ndarray]]:
    """Every case, where it was written, and its vectors from sentence-transformers, all in one fresh process."""
    pytest.importorskip("sentence_transformers")
    root = tmp_path_factory.mktemp("exports")
    cases = {name: make() for name, make in CASES.items()}
    for name, case in cases.items():
        case.encoder.save(root / name)
    asked = {str(root / name): case.names for name, case in cases.items()}
    out = root / "vectors.npz"
    command = [sys.executable, "-c", _IN_SENTENCE_TRANSFORMERS, json.dumps(asked), json.dumps(TEXTS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return cases, root, dict(np.load(out))


@pytest.mark.parametrize("name", CASES)
def test_sentence_transformers_gives_our_vectors(opened, name: str) -> None:
    cases, root, theirs = opened
    case = cases[name]
    assert facts_of(root / name)["native"], facts_of(root / name)["reason"]
    for prompt in case.names:
        ours, judged = case.encoder.encode(TEXTS, prompt_name=prompt), judged_texts(root / name)
        for how in ("batch", "alone"):
            given = theirs[f"{root / name}|{prompt}|{how}"]
            mine, given = ours[judged], given[judged]
            assert cosines(mine, given).min() >= 0.99999, (prompt, how, cosines(mine, given))
            assert np.abs(mine - given).max() <= 1e-5 * max(1.0, np.abs(mine).max()), (prompt, how)


@pytest.mark.parametrize("name", CASES)
def test_the_first_token_sees_the_last_exactly_if_the_encoder_is_bidirectional(opened, name: str) -> None:
    cases, root, theirs = opened
    moved = theirs[f"{root / name}|moved"]
    assert moved > 1e-3 if cases[name].encoder.backbone.bidirectional else moved == 0


@pytest.mark.parametrize("name", CASES)
def test_reading_gives_the_same_vectors_and_weights(opened, name: str) -> None:
    cases, root, _ = opened
    encoder, again = cases[name].encoder, Encoder.load(root / name)
    assert again.backbone.fingerprint() == encoder.backbone.fingerprint() == facts_of(root / name)["fingerprint"]
    assert again.input_format.spec == encoder.input_format.spec
    for prompt in cases[name].names:
        ours = encoder.encode(TEXTS, prompt_name=prompt)
        np.testing.assert_allclose(again.encode(TEXTS, prompt_name=prompt), ours, atol=1e-6 * np.abs(ours).max())
    golden = facts_of(root / name)["golden"]
    np.testing.assert_allclose(again.encode(golden["texts"]), golden["vectors"], atol=2e-6 * max(1, np.abs(ours).max()))


def test_the_number_type_is_chosen_at_loading(opened) -> None:
    """As stored by default; 16-bit weights give nearly the same vectors, whatever the processor multiplies."""
    _, root, _ = opened
    name = next(iter(CASES))
    stored, narrow = Encoder.load(root / name), Encoder.load(root / name, dtype="bfloat16")
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}
    found = cosines(stored.encode(TEXTS), narrow.encode(TEXTS))
    assert 0.99 < found.min() < 1
    with pytest.raises(ValueError, match="'int4'; weights are loaded as one of auto, float32"):
        Encoder.load(root / name, dtype="int4")


@pytest.mark.parametrize("name", ["gemma3_text", "llama-2-7b", "sheared-llama-1.3b"])
def test_a_directory_written_twice_is_the_same(opened, tmp_path: Path, name: str) -> None:
    _, root, _ = opened
    Encoder.load(root / name).save(tmp_path / "again")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "1_Pooling/config.json"):
        one, other = (json.loads((folder / file).read_text()) for folder in (root / name, tmp_path / "again"))
        assert one == other, file


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_storage_type_is_one_rounding_of_the_weights(tmp_path: Path, dtype: str) -> None:
    encoder = make_encoder()
    before = encoder.encode(TEXTS)
    encoder.save(tmp_path / "out", dtype=dtype)
    stored, narrow = load_file(tmp_path / "out" / "model.safetensors"), getattr(torch, dtype)
    live = encoder.backbone.decoder.state_dict()
    assert stored.keys() == live.keys()
    assert all(torch.equal(tensor, live[name].to(narrow)) for name, tensor in stored.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    again, facts = Encoder.load(tmp_path / "out"), facts_of(tmp_path / "out")
    assert facts["fingerprint"] == again.backbone.fingerprint() != encoder.backbone.fingerprint()
    np.testing.assert_allclose(again.encode(facts["golden"]["texts"]), facts["golden"]["vectors"], atol=2e-6)
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert encoder.backbone.config.dtype in (None, torch.float32)


def test_a_storage_type_that_can_not_hold_the_weights_is_refused(tmp_path: Path) -> None:
    encoder = make_encoder()
    with torch.no_grad():
        encoder.backbone.decoder.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"up_proj.weight has values that float16 cannot hold"):
        encoder.save(tmp_path / "out", dtype="float16")
    with pytest.raises(ValueError, match="'int8'; weights are written as one of float32, bfloat16, float16"):
        encoder.save(tmp_path / "out", dtype="int8")
    assert not list(tmp_path.iterdir())


def test_a_family_that_needs_eager_attention_says_so(opened) -> None:
    _, root, _ = opened
    for name in ("stablelm", "llama"):
        settings = json.loads((root / name / "sentence_bert_config.json").read_text())
        eager = {"attn_implementation": "eager"} if name == "stablelm" else {}
        assert settings["model_args"] == {**eager, "allow_all_kernels": False}
    assert any("attn_implementation='eager'" in note for note in facts_of(root / "stablelm")["notes"])


def test_weights_are_the_bare_trunk(opened) -> None:
    _, root, _ = opened
    names = load_file(root / "llama" / "model.safetensors").keys()
    assert "embed_tokens.weight" in names and "layers.0.self_attn.q_proj.weight" in names
    assert not [name for name in names if name.startswith("model.") or "lm_head" in name]


def test_config_tells_every_engine_the_direction(opened) -> None:
    _, root, _ = opened
    config = {name: json.loads((root / name / "config.json").read_text()) for name in CASES}
    assert config["llama"]["architectures"] == ["LlamaModel"]
    for name in ("llama", "mistral", "qwen3"):
        assert config[name]["is_causal"] is False and config[name]["use_bidirectional_attention"] is True
    assert "is_causal" not in config["echo-last"] and "use_bidirectional_attention" not in config["echo-last"]
    assert "is_causal" not in config["gemma3_text"]
    assert config["gemma3_text"]["use_bidirectional_attention"] and config["gemma3_text"]["sliding_window"] == 10


def test_windows_that_no_input_reaches_are_taken_out_and_others_are_told(opened) -> None:
    _, root, _ = opened
    config = {name: json.loads((root / name / "config.json").read_text()) for name in CASES}
    assert config["mistral"]["sliding_window"] is None
    assert config["qwen3-window"]["sliding_window"] is None
    assert config["qwen3-window"]["layer_types"] == ["full_attention"] * 2
    assert config["mistral-window"]["sliding_window"] == 5
    assert "5 tokens to either side" in (root / "mistral-window" / "README.md").read_text()


def test_rotary_settings_are_there_under_their_old_names_too(opened) -> None:
    _, root, _ = opened
    scaled = json.loads((root / "llama-scaled" / "config.json").read_text())
    assert scaled["rope_theta"] == 5000.0
    assert scaled["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    gemma = json.loads((root / "gemma3_text" / "config.json").read_text())
    assert (gemma["rope_theta"], gemma["rope_local_base_freq"]) == (1_000_000.0, 10_000.0)


def test_module_files_speak_the_old_schema_and_the_new_one(opened) -> None:
    _, root, _ = opened
    pooling = json.loads((root / "llama" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode"] == "mean" and pooling["pooling_mode_mean_tokens"] is True
    assert sum(value is True for key, value in pooling.items() if key.startswith("pooling_mode_")) == 1
    assert pooling["embedding_dimension"] == 32
    modules = json.loads((root / "llama" / "modules.json").read_text())
    assert [m["type"].rpartition(".")[2] for m in modules] == ["Transformer", "Pooling", "Normalize"]
    assert all(m["type"].startswith("sentence_transformers.models.") for m in modules)
    assert len(json.loads((root / "unnormalised" / "modules.json").read_text())) == 2
    # The keys at which old releases, which would run the model as causal, raise a TypeError.
    assert "transformer_task" in json.loads((root / "llama" / "sentence_bert_config.json").read_text())
    top = json.loads((root / "llama" / "config_sentence_transformers.json").read_text())
    assert top["prompts"] == {
        "query": "Find the answer: ", "document": "", "same": "Find a text of the same meaning: ",
    }  # fmt: skip
    assert top["default_prompt_name"] is None and top["similarity_fn_name"] == "cosine"
    assert top["requirements"]["transformers"]["specifier"] == ">=5.4"


def test_a_document_prefix_is_the_default_prompt(opened) -> None:
    _, root, _ = opened
    top = json.loads((root / "wrap" / "config_sentence_transformers.json").read_text())
    assert top["default_prompt_name"] == "document"
    assert top["prompts"] == {"query": "[INST] Find the answer; ", "document": "[INST] "}


def test_echo_repeats_the_text_in_the_tokenizer(opened) -> None:
    _, root, _ = opened
    single = json.loads((root / "echo-last" / "tokenizer.json").read_text())["post_processor"]["single"]
    assert sum("Sequence" in piece for piece in single) == 2
    assert single[0]["SpecialToken"]["id"] == "<s>" and single[-1]["SpecialToken"]["id"] == "</s>"


def test_other_programs_read_documents_without_title_and_queries_without_examples(tmp_path: Path) -> None:
    title = Part(slot="title", empty="none", pool=True)
    query = (Part(slot="examples"), Part(literal="query: ", pool=True), TEXT)
    document = (Part(literal="title: ", pool=True), title, Part(literal=" | text: ", pool=True), TEXT)
    example = ExampleSpec(reserve=20)
    encoder = make_encoder(spec=InputSpec(query=query, document=document, max_tokens=40, example=example))
    encoder.save(tmp_path / "out")
    facts = facts_of(tmp_path / "out")
    assert facts["native"] and facts["prompts"] == {"query": "query: ", "document": "title: none | text: "}
    notes = " ".join(facts["notes"])
    assert "reads every document as one without title" in notes and "In-context examples are read by llm2enc" in notes
    again = Encoder.load(tmp_path / "out")
    for given in (
        {"texts": [Passage("Town", "a mill")]},
        {"texts": ["a"], "instruction": "", "examples": [("b", "c")]},
    ):
        np.testing.assert_allclose(again.encode(**given), encoder.encode(**given), atol=1e-6)


def test_pooling_that_others_cannot_do_is_said_and_measured(tmp_path: Path) -> None:
    parts = (BOS, TEXT, Part(special="eos"))  # nothing can leave out a token behind the text
    make_encoder(spec=InputSpec(query=parts, document=parts, max_tokens=40)).save(tmp_path / "out")
    facts = facts_of(tmp_path / "out")
    assert facts["native"] is False
    assert "set `pool: true` on every part" in facts["reason"]
    assert {d["kind"] for d in facts["differences"]} == {"pool"}
    assert "does **not** give the same vectors" in (tmp_path / "out" / "README.md").read_text()


def test_a_prompt_alone_out_of_the_pool_is_exact_by_include_prompt(tmp_path: Path) -> None:
    """Documents pool everything; queries all but BOS and prompt, whose last token cannot merge with the text."""
    query = (Part(special="bos"), Part(slot="instruction"), Part(literal="\n"), TEXT, EOS)
    spec = InputSpec(query=query, document=(BOS, TEXT, EOS), max_tokens=40, prompts={"query": "Find the answer"})
    split = spec.model_copy(update={"tokenize": "pieces"})
    assert make_encoder(spec=split).input_format.pack(["a"], "b", "query").pool.tolist()[:3] == [False] * 3
    make_encoder(spec=spec).save(tmp_path / "out")
    facts = facts_of(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())["include_prompt"] is False
    assert any("vLLM" in note for note in facts["notes"])
    differing = {(d["prompt"], d["probe"]) for d in facts["differences"]}
    assert ("query", "a plain text") not in differing and not [d for d in differing if d[0] == "document"]


def test_echo_mean_is_not_native_and_its_queries_are_left_out(tmp_path: Path) -> None:
    query = (Part(special="bos"), Part(slot="instruction"), Part(slot="text"), Part(literal=" again:"), TEXT, EOS)
    spec = InputSpec(query=query, document=ECHO, max_tokens=80, tokenize="pieces", prompts={"query": "Find"})
    make_encoder(spec=spec, bidirectional=False).save(tmp_path / "out")
    facts = facts_of(tmp_path / "out")
    assert not facts["native"]
    assert "the prompts query are left out" in facts["reason"] and "pooling: last" in facts["reason"]
    top = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())
    assert top["prompts"] == {"document": ""}


def test_the_dummy_space_of_sentencepiece_belongs_to_the_text() -> None:
    """ "a" is a token of its own in this vocabulary only with the space in front; "b" never is."""
    backend = Tokenizer(
        models.BPE({"<s>": 0, "▁": 1, "a": 2, "b": 3, "c": 4, "▁a": 5, "▁c": 6}, [("▁", "a"), ("▁", "c")])
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    spec = InputSpec(query=(BOS, TEXT), document=(BOS, TEXT))
    assert layout(InputFormat(spec, tokenizer)).runs == ((0,), ())


def test_stripping_is_a_rule_of_the_exported_tokenizer(tmp_path: Path) -> None:
    make_encoder(spec=WHOLE.model_copy(update={"strip": "outer"})).save(tmp_path / "out")
    facts = facts_of(tmp_path / "out")
    assert facts["native"] and facts["prompts"]["document"] == ""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    assert tokenizer("\t river \n")["input_ids"] == tokenizer("river")["input_ids"]


def test_the_packaged_recipe_is_exact_in_other_programs(tmp_path: Path) -> None:
    recipe = load_recipe("pocket")
    make_encoder(spec=recipe.input, pooling=recipe.pooling).save(tmp_path / "out", recipe=recipe)
    facts = facts_of(tmp_path / "out")
    assert facts["native"], facts["reason"]
    assert facts["recipe"]["name"] == "pocket"


def test_the_card_has_the_numbers_of_the_run(tmp_path: Path) -> None:
    recipe = load_recipe("pocket", ["model.name=someone/some-model", "description=A test"])
    history = [
        {"stage": "causal-mean", "scores": {"ndcg": 0.25}, "seconds": 1.4},
        {"stage": "after mntp", "scores": {"ndcg": 0.5, "spearman": 0.75}, "seconds": 62.0},
    ]
    make_encoder().save(tmp_path / "out", recipe=recipe, history=history)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: someone/some-model\n" in text.split("---")[1]
    assert "| causal-mean | 0.2500 |  | 1 |" in text and "| after mntp | 0.5000 | 0.7500 | 62 |" in text
    assert "<s>Find the answer: Where does the river run?</s>" in text
    assert facts_of(tmp_path / "out")["history"] == history


def test_a_card_does_not_name_a_local_directory(tmp_path: Path) -> None:
    recipe = load_recipe("pocket", [f"model.name={tmp_path}"])
    make_encoder().save(tmp_path / "out", recipe=recipe)
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_that_is_not_merged_is_refused(tmp_path: Path) -> None:
    encoder = make_encoder()
    encoder.backbone.add_lora(LoraSpec(r=2), seed=0)
    with pytest.raises(ValueError, match="merge_lora"):
        encoder.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merged_adapter_is_in_the_weights(tmp_path: Path) -> None:
    encoder = make_encoder()
    before = encoder.encode(TEXTS)
    encoder.backbone.add_lora(LoraSpec(r=2), seed=0)
    with torch.no_grad():
        for parameter in encoder.backbone.trained().values():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    trained = encoder.encode(TEXTS)
    encoder.backbone.merge_lora()
    encoder.save(tmp_path / "out")
    again = Encoder.load(tmp_path / "out").encode(TEXTS)
    assert np.abs(before - trained).max() > 0.01
    np.testing.assert_allclose(again, trained, atol=1e-5)


def test_saving_leaves_the_live_encoder_as_it_was(tmp_path: Path) -> None:
    encoder = make_encoder("gemma3_text", sliding_window=5)
    before, config = encoder.encode(TEXTS), encoder.backbone.config.to_dict()
    processor = encoder.input_format.tokenizer.backend_tokenizer.to_str()
    encoder.save(tmp_path / "out")
    assert encoder.backbone.config.to_dict() == config
    assert encoder.input_format.tokenizer.backend_tokenizer.to_str() == processor
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="no export of llm2enc"):
        make_encoder().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        make_encoder().save(tmp_path / "file")


def test_an_older_export_and_an_empty_directory_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    make_encoder().save(out)
    (out / "left-over.txt").write_text("of the older export")
    make_encoder(pooling="first").save(out)
    assert facts_of(out)["pooling"] == "first" and not (out / "left-over.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_midway_leaves_nothing_new_and_the_older_export_whole(tmp_path: Path, monkeypatch) -> None:
    def fail(*args) -> None:
        raise RuntimeError("disk full")

    make_encoder().save(tmp_path / "older")
    older = (tmp_path / "older" / METADATA_FILE).read_text()
    monkeypatch.setattr(sentence_transformers, "_golden", fail)
    for name in ("new", "older"):
        with pytest.raises(RuntimeError, match="disk full"):
            make_encoder().save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["older"]
    assert (tmp_path / "older" / METADATA_FILE).read_text() == older


def test_reading_something_else_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a directory written by llm2enc"):
        Encoder.load(tmp_path)
    (tmp_path / METADATA_FILE).write_text('{"format": 99, "versions": {"llm2enc": "9.0"}}')
    with pytest.raises(ValueError, match=r"format 99, this llm2enc reads format 1.*9.0"):
        Encoder.load(tmp_path)


def judged_texts(folder: Path) -> list[int]:
    """Which of TEXTS a native directory promises to read alike: not the empty one, where a note says so."""
    empty = any("empty text" in note for note in facts_of(folder)["notes"])
    return [number for number, text in enumerate(TEXTS) if text or not empty]


def facts_of(folder: Path) -> dict:
    return json.loads((folder / METADATA_FILE).read_text())


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
