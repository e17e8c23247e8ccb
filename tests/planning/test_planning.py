"""The planner against what it plans: real models, real graphs, real steps, real files; and formulas worked out by hand."""

import json
import resource
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from llm2enc.cli.app import app
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.model import Backbone, fresh_head, skeleton
from llm2enc.planning import parse, plan, report
from llm2enc.planning.devices import Devices
from llm2enc.planning.fake_profiler import Costs, FakeProfiler, StepConfig
from llm2enc.planning.measured import tokens_per_second
from llm2enc.planning.memory import sizes
from llm2enc.planning.workload import Workload, of_stage
from llm2enc.recipe import (
    HeadSpec,
    LatentAttentionSpec,
    LoraSpec,
    ModelSpec,
    ProjectionSpec,
    load_recipe,
    recipe_names,
)
from llm2enc.text import Tokens
from llm2enc.training import checkpoint, prepare
from tests.support.builders import make_backbone, make_encoder, pairs_file
from tests.support.tiny import tiny_model

GIB = 2**30
LENGTHS = torch.full((6,), 16)
MEAN = StepConfig(autocast=False, cuda=False, causal=False, pooling="mean")
ONE = Devices("one", 1, 10**12, {"float32": 1e12, "bfloat16": 1e12}, cuda=False)


def folder_of(config, folder: Path) -> Path:
    """A directory with a config.json, and weights that no one can read."""
    config.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    return folder


def outline(config, folder: Path) -> Backbone:
    name = str(folder_of(config, folder))
    return Backbone(skeleton(ModelSpec(name=name, dtype="float32")), bidirectional=True)


def recipe_of(folder: Path, stages: list[dict], **model):
    part = [{"special": "bos", "pool": True}, {"slot": "text", "pool": True}]
    return load_recipe(
        {
            "name": "planned",
            "model": {"name": str(folder), **model},
            "input": {"query": part, "document": part, "max_tokens": 512},
            "pooling": "mean",
            "stages": stages,
        }
    )


def stage(objective: str = "simcse", **fields) -> dict:
    shape = {"objective": objective, "data": [{"kind": "hub", "path": "a/b"}], "steps": 10, "batch_size": 8, "lr": 1e-4}
    return shape | {"lora": {"r": 4}} | fields


def around(backbone: Backbone) -> Encoder:
    """An encoder that is given tokens, and needs no format."""
    return Encoder(backbone, None, "mean")


def as_if_run(profiler: FakeProfiler, lengths: torch.Tensor, config: StepConfig) -> Costs:
    """The costs of all layers, none left out."""
    found = profiler._run(lengths, config)
    return Costs(
        evaluated=found.peak("evaluate"),
        logits=found.peak("logits"),
        backward=found.peak("forward", "backward"),
        **found.sums,
    )


# ---------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "qwen2_moe", "gemma2", "phi3", "deepseek_v3"])
def test_an_outline_has_the_parameters_and_the_adapter_of_the_model(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    real, planned = Backbone(model, bidirectional=True), outline(model.config, tmp_path)
    for backbone in (real, planned):
        backbone.add_lora(LoraSpec(r=3, dropout=0.0), seed=0)
    shapes = [{name: tuple(p.shape) for name, p in backbone.trained().items()} for backbone in (real, planned)]
    assert shapes[0] == shapes[1] and shapes[0]
    size = sizes(around(planned), 1, sharded=False)
    assert size.weights + size.adapter == sum(p.numel() * p.element_size() for p in real.parameters())
    assert size.adapter == size.trained == 4 * sum(p.numel() for p in real.trained().values())


def test_sharded_layers_are_divided_and_the_rest_is_not() -> None:
    backbone = make_backbone()
    backbone.train_everything(head=False)
    layers = 4 * sum(p.numel() for layer in backbone.decoder.layers for p in layer.parameters())
    alone, four = sizes(around(backbone), 1, sharded=True), sizes(around(backbone), 4, sharded=True)
    assert alone.whole == alone.gathered == 0 and four.whole == layers
    assert four.weights == alone.weights - layers * 3 // 4
    assert four.trained == alone.trained - layers * 3 // 4 and four.replicated == alone.trained - layers
    assert four.gathered == 3 * layers / 2  # two of them, and the gradient of one


# ------------------------------------------------------------------------------------------------------------ operations


def test_operations_of_full_training_are_six_per_weight_and_token() -> None:
    backbone = make_backbone()
    backbone.train_everything(head=False)
    weights = sum(p.numel() for p in backbone.decoder.layers.parameters() if p.dim() == 2)
    tokens, heads, width, layers = int(LENGTHS.sum()), 4, 8, 2
    found = FakeProfiler(around(backbone)).costs(LENGTHS, MEAN)
    assert found.forward_flops == 2 * weights * tokens and found.flops == 6 * weights * tokens
    # Scores and weighted values forwards; backwards these again from both sides, and the scores once more.
    products = 2 * tokens * 16 * heads * width * layers
    assert found.forward_attention == 2 * products and found.attention == 7 * products


@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_with_an_adapter_are_those_of_a_real_step(checkpointing: bool) -> None:
    backbone = make_backbone()
    backbone.add_lora(LoraSpec(r=4), 0)
    backbone.set_gradient_checkpointing(checkpointing)
    backbone.train()
    tokens = Tokens.from_blocks(torch.randint(300, (6, 16)))
    with FlopCounterMode(display=False) as counter:  # it does not know the attention of CPUs
        backbone.hidden(tokens).sum().backward()
    assert FakeProfiler(around(backbone)).costs(LENGTHS, MEAN).flops == counter.get_total_flops()


# ---------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("full", "autocast", "dropout"), [(False, False, 0.0), (True, False, 0.0), (False, True, 0.0), (False, False, 0.3)]
)
def test_activations_are_what_autograd_keeps_of_a_real_pass(full: bool, autocast: bool, dropout: float) -> None:
    backbone = make_backbone()
    backbone.train_everything(head=False) if full else backbone.add_lora(LoraSpec(r=4, dropout=0.1), 0)
    backbone.set_attention_dropout(dropout)
    backbone.train()
    weights = {p.untyped_storage().data_ptr() for p in [*backbone.parameters(), *backbone.buffers()]}
    kept: dict[int, int] = {}
    alive = []  # or a storage could be freed and its address seen again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    tokens = Tokens.from_blocks(torch.randint(300, (6, 16)))
    with torch.autocast("cpu", torch.bfloat16, autocast), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        states = backbone.hidden(tokens)
    known = sum(kept.values()) + (0 if states.untyped_storage().data_ptr() in kept else states.nbytes)
    found = FakeProfiler(around(backbone)).costs(LENGTHS, StepConfig(autocast, False, False, "mean"))
    # Not in a graph: what pooling keeps, ids, positions and masks, a few bytes per token.
    assert known * 0.99 <= found.graph <= known + tokens.ids.numel() * (4 * 32 * 3 + 64)


@pytest.mark.parametrize(
    "kind",
    [
        "lora",
        *(pytest.param(k, marks=pytest.mark.full) for k in ("full", "checkpointing", "logits", "two kinds of layers")),
    ],
)
def test_a_few_layers_say_what_many_take(kind: str) -> None:
    if kind == "two kinds of layers":
        many = {"num_hidden_layers": 7, "layer_types": ["sliding_attention", "full_attention"] * 3 + ["full_attention"]}
        backbone = Backbone(tiny_model("qwen3", **many), bidirectional=True)
    else:
        backbone = make_backbone(num_hidden_layers=5)
    backbone.train_everything(head=False) if kind == "full" else backbone.add_lora(LoraSpec(r=4), 0)
    backbone.set_gradient_checkpointing(kind == "checkpointing")
    backbone.train()
    wanted = StepConfig(True, True, False, None, targets=0.25, logit_rows=8) if kind == "logits" else MEAN
    profiler = FakeProfiler(around(backbone))
    found, run = profiler.costs(LENGTHS, wanted), as_if_run(profiler, LENGTHS, wanted)
    if kind == "two kinds of layers":  # counted one kind after the other, so another layer may be at the peak
        assert found.backward == pytest.approx(run.backward, rel=0.02)
        run = replace(run, backward=found.backward)
    assert found == run


def test_checkpointing_and_fused_attention_take_less() -> None:
    backbone = make_backbone(num_hidden_layers=3)
    backbone.add_lora(LoraSpec(r=4), 0)
    backbone.set_attention_dropout(0.3)
    backbone.train()
    profiler = FakeProfiler(around(backbone))
    plain = profiler.costs(LENGTHS, MEAN)
    fused = profiler.costs(LENGTHS, StepConfig(False, True, False, "mean"))
    # Per layer, head and pair of tokens: dropout's factors, the weights before it and after it, 4 bytes each; kept.
    assert plain.graph - fused.graph > 3 * 4 * 6 * 16**2 * 3 * 4
    profiler.known.clear()
    backbone.set_gradient_checkpointing(True)
    again = profiler.costs(LENGTHS, MEAN)
    assert again.graph < plain.graph / 2 and again.backward < plain.backward and again.flops > plain.flops


def test_the_largest_safe_mini_batch_fits_and_a_larger_one_does_not(tmp_path: Path) -> None:
    config = make_backbone().model.config
    recipe = recipe_of(
        folder_of(config, tmp_path), [stage(batch_size=64, rng_shards=2, precision="float32")], dtype="float32"
    )
    whole = plan(recipe, ONE).stages[0]
    assert whole.fits and whole.whole_shard and whole.safe_micro_batch_tokens == 64 * 512

    def on(memory: float, tokens: int | None = None):
        changed = [] if tokens is None else [f"stages.0.micro_batch_tokens={tokens}"]
        devices = Devices("small", 1, int(memory), ONE.peaks, cuda=False)
        return plan(load_recipe(recipe.model_dump(mode="json"), changed), devices).stages[0]

    memory = 0.7 * GIB + 0.2 * (whole.peak - 0.6 * GIB)
    found = on(memory)
    safe = found.safe_micro_batch_tokens
    assert safe is not None and not found.whole_shard and safe % 256 == 0
    assert on(memory, safe).fits and not on(memory, safe + 1024).fits
    assert not found.fits and f"stages.0.micro_batch_tokens={safe}" in found.remedies[0]
    assert on(0.5 * GIB).safe_micro_batch_tokens is None


# -------------------------------------------------------------------------------------------------------- without weights


def test_a_large_model_is_planned_without_its_weights(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 32000}
    config = LlamaConfig(**shape, num_attention_heads=32, num_key_value_heads=8)
    recipe = recipe_of(folder_of(config, tmp_path), [stage(lora={"r": 16}, micro_batch_tokens=8192)])
    opened, watching = [], [True]  # a hook cannot be taken away again
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if watching and event == "open" else None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = plan(recipe, parse("2xh100-80gb"))
    watching.clear()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert any(name.endswith("config.json") for name in opened)
    assert not any(name.endswith((".safetensors", ".bin", ".pt")) for name in opened)
    # By hand: embeddings and head, and per layer q, o, k, v, three of the feed-forward, two norms; and the last norm.
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    assert found.parameters == 2 * 32000 * 4096 + 32 * layer + 4096
    assert grown < GIB < found.stages[0].memory["weights"] / 10
    ranks = 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))  # r (in + out) of every projection
    assert found.stages[0].trained == 32 * ranks
    assert found.stages[0].fits and found.stages[0].checkpoint == 12 * 32 * ranks


def test_no_configuration_is_an_error_that_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm2enc.planning.run.load_config", _offline)
    with pytest.raises(ValueError, match=r"only that file is needed.*model.name=path/to/config.json"):
        plan(recipe_of(Path("nobody/nothing"), [stage()]), ONE)


def _offline(spec: ModelSpec):
    raise OSError("no network")


def offline_cases() -> list:
    """Every shipped recipe without its stages; with them one, and the others in the long form."""
    marks = {name: () if name == "sheared-llama-1.3b" else pytest.mark.full for name in recipe_names()}
    staged = [pytest.param(name, True, marks=mark) for name, mark in marks.items()]
    return [*((name, False) for name in recipe_names()), *staged]


@pytest.mark.parametrize(("name", "staged"), offline_cases())
def test_every_shipped_recipe_is_planned_without_a_network(name: str, staged: bool, monkeypatch) -> None:
    """Of its first two layers, which takes the same way as all of them and a fraction of the time."""
    recipe = load_recipe(name, ["model.layers=2"])
    recipe = recipe if staged else recipe.model_copy(update={"stages": ()})
    if recipe.model.name != "pocket":
        monkeypatch.setattr("llm2enc.planning.run.load_config", _offline)
        monkeypatch.setattr("llm2enc.planning.run.load_tokenizer", _offline)
        monkeypatch.setattr("llm2enc.planning.run.chosen", lambda spec: spec.model_copy(update={"package": None}))
    found = plan(recipe, parse("8xh100-80gb"))
    assert len(found.stages) == len(recipe.training) and found.parameters > 1e6
    used = [note for note in found.notes if "cannot be reached, so its published numbers are used (no network)" in note]
    assert len(used) == (recipe.model.name != "pocket")


def test_a_package_that_is_not_there_is_no_obstacle_to_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(spec: ModelSpec):
        raise InputError("cannot be reached, and the package is not installed")

    monkeypatch.setattr("llm2enc.planning.run.chosen", nowhere)
    monkeypatch.setattr("llm2enc.planning.run.load_tokenizer", _offline)
    found = plan(load_recipe("smollm2-135m", ["model.layers=2", "stages=[]"]), ONE)
    assert found.model == "HuggingFaceTB/SmolLM2-135M-Instruct" and "published numbers are used" in found.notes[0]
    with pytest.raises(InputError, match="not installed"):
        plan(load_recipe("smollm2-135m", ["model.name=nobody/nothing", "stages=[]"]), ONE)


def test_a_plan_knows_what_is_measured_kept_and_merged(tmp_path: Path) -> None:
    folder = folder_of(make_backbone().model.config, tmp_path)
    fields = stage(steps=10, evaluate_every=4, keep_best="docstrings/ndcg@10", keep_checkpoints=[2, 5])
    merge = {"objective": "merge", "of": [{"stage": 0, "step": 2}, {"stage": 0}, {"encoder": "x"}], "base_weight": 0.5}
    evaluation = {"evaluation": [{"kind": "docstrings"}]}
    plain, more = (
        plan(load_recipe({**recipe_of(folder, []).model_dump(mode="json"), **evaluation, "stages": stages}), ONE)
        for stages in ([stage(steps=10)], [fields, merge])
    )
    (one,), (other,) = plain.stages, more.stages
    assert (one.measurements, other.measurements) == (0, 3)  # after steps 4, 8 and 10
    assert other.checkpoint == one.checkpoint * 4 // 3 and other.finished == 3 * one.finished
    assert more.merges == (("1-merge", 4 * more.exported),)  # two of this run, the base, the result
    most = max(2 * other.checkpoint, 4 * more.exported)
    assert more.disk == more.exported + most + other.finished + more.exported
    assert "measured within the stage" in dict(row[:2] for row in report.rows(more.stages, False))
    assert any("1-merge" in line for line in report.lines(more))


# ------------------------------------------------------------------------------------------------------------- the rest


def test_devices_are_read_from_their_names() -> None:
    eight = parse("8xh100-80gb")
    assert (eight.name, eight.count, eight.peaks["bfloat16"]) == ("h100-80gb", 8, 989.4e12)
    assert eight.memory == int(0.98 * 80 * GIB) and not eight.note
    assert parse("2x8xH100-80GB").count == 16 and parse("a100-40gb").count == 1
    assert parse("2xrtx4090").name == "4090-24gb" and "bfloat16" not in parse("t4").peaks
    assert "taken as said" in parse("h100-64gb").note and parse("h100-64gb").memory < eight.memory
    with pytest.raises(ValueError, match=r"known: h100-80gb.*a100-40/80gb"):
        parse("8xh1000")
    with pytest.raises(ValueError, match="a100-40gb or a100-80gb"):
        parse("a100")
    with pytest.raises(ValueError, match="at least one"):
        parse("0xh100")


def test_lengths_come_from_the_data_where_they_are_local(tmp_path: Path) -> None:
    encoder, source = make_encoder(), pairs_file(tmp_path).model_dump(mode="json")
    local = recipe_of(tmp_path, [stage("contrastive", data=[source], batch_size=4)]).stages[0]
    found = of_stage(local, encoder.input_format.spec, encoder.input_format, 0)
    assert found.basis == "the first batch, tokenized" and 8 <= found.texts <= 12 and found.lengths.unique().numel() > 1
    unknown = of_stage(local, encoder.input_format.spec, None, 0)
    assert unknown.lengths.tolist() == [64] * 12 and "upper bound" in unknown.basis
    missing = recipe_of(tmp_path, [stage(data=[{"kind": "files", "path": str(tmp_path / "no.txt")}], max_tokens=32)])
    assert of_stage(missing.stages[0], encoder.input_format.spec, encoder.input_format, 0).lengths.tolist() == [32] * 16


def test_scored_pairs_are_planned_and_teachers_are_named_without_being_opened(tmp_path: Path) -> None:
    config = make_backbone().model.config
    teacher = {"model": str(tmp_path / "nowhere")}
    loss = {"embedding_match": {"teacher": teacher, "distance": "l2", "projection": True}, "spread_out": {"centre": 0}}
    scored = stage("pair_scores", loss={"pair_scores": [{"kind": "softmax"}]})
    recipe = recipe_of(folder_of(config, tmp_path), [scored, stage("contrastive", loss=loss)], dtype="float32")
    found = plan(recipe, ONE)
    assert [one.texts for one in found.stages] == [16, 24] and all(one.fits for one in found.stages)
    assert f"1-contrastive asks {teacher['model']}, whose memory and time are not counted" in found.notes


def test_work_is_cut_as_training_cuts_it() -> None:
    load = Workload(torch.tensor([4, 9, 5, 7, 6, 8]), "", shards=3)
    assert [part.tolist() for part in load.micro_batches(12)] == [[9], [4], [7, 5], [8], [6]]
    assert [part.tolist() for part in load.busiest(12, 2)] == [[9], [4], [7, 5]]
    assert load.share(2) == 2 / 3 and load.share(3) == 1 / 3 and load.largest_shard == 14


HEADS = (
    None,
    ProjectionSpec(kind="projection", dimensions=24, bias=True),
    LatentAttentionSpec(kind="latent_attention", latents=6, heads=2),
)


@pytest.mark.parametrize("head", HEADS)
def test_checkpoints_and_finished_stages_have_the_planned_size(head: HeadSpec | None, tmp_path: Path) -> None:
    backbone = make_backbone()
    recipe = recipe_of(folder_of(backbone.model.config, tmp_path), [stage()], dtype="float32")
    found = plan(recipe.model_copy(update={"head": head}), ONE).stages[0]
    backbone.add_lora(recipe.stages[0].lora, 0)
    encoder = around(backbone)
    encoder.head = fresh_head(backbone.width, head, 0) if head else None
    parameters = list(encoder.trained().values())
    assert found.trained == sum(parameter.numel() for parameter in parameters)
    optimizer = torch.optim.AdamW(parameters)
    encoder(Tokens.from_blocks(torch.zeros(1, 4, dtype=torch.long))).sum().backward()
    optimizer.step()
    checkpoint.save(tmp_path, 1, encoder, optimizer)
    headers = 200 * 4 * len(parameters)  # names, shapes and places of at most so many bytes per tensor
    saved = sum(path.stat().st_size for path in (tmp_path / "checkpoint").iterdir())
    checkpoint.finish(tmp_path, encoder, "", {})
    assert found.checkpoint <= saved <= found.checkpoint + headers
    files = [tmp_path / "adapter" / "adapter_model.safetensors", *tmp_path.glob(checkpoint.HEAD)]
    assert found.finished <= sum(path.stat().st_size for path in files) <= found.finished + headers


def test_a_head_is_counted_where_it_trains(tmp_path: Path) -> None:
    folder = folder_of(make_backbone().model.config, tmp_path)
    recipe = recipe_of(folder, [stage("clm", trainable="full", lora=None), stage()], dtype="float32")
    with_head = recipe.model_copy(update={"head": ProjectionSpec(kind="projection", dimensions=24)})
    plain, headed = plan(recipe, ONE), plan(with_head, ONE)
    more = [there.trained - here.trained for here, there in zip(plain.stages, headed.stages, strict=True)]
    assert more == [0, 24 * 32]
    assert headed.exported - plain.exported == 4 * 24 * 32
    weights = [
        there.memory["weights"] - here.memory["weights"]
        for here, there in zip(plain.stages, headed.stages, strict=True)
    ]
    assert weights == [4 * 24 * 32] * 2
    vectors = [stages.stages[1].memory["vectors"] for stages in (plain, headed)]
    assert vectors[1] < vectors[0], "24 dimensions take less than 32"


@pytest.mark.parametrize("part", ["bias", "embeddings", {"layers": 2}])
def test_a_part_is_counted_and_what_does_not_train_keeps_no_activations(part, tmp_path: Path) -> None:
    """A deep model is not run in full: frozen layers and those that train count as kinds of their own."""
    config = make_backbone(num_hidden_layers=6, attention_bias=True).model.config
    recipe = recipe_of(folder_of(config, tmp_path), [stage(trainable=part, lora=None)], dtype="float32")
    encoder = around(outline(config, tmp_path))
    prepare(encoder, recipe.stages[0], 0)
    trained = encoder.trained()
    assert plan(recipe, ONE).stages[0].trained == sum(parameter.numel() for parameter in trained.values()) > 0
    profiler = FakeProfiler(encoder)
    found, run = profiler.costs(LENGTHS, MEAN), as_if_run(profiler, LENGTHS, MEAN)
    assert asdict(found) == pytest.approx(asdict(run), rel=1e-6)


@pytest.mark.parametrize("which", ["random", "all", 2])
def test_vectors_of_several_layers_are_planned(which: str | int, tmp_path: Path) -> None:
    """As many vectors as layers are read go through the loss; a deep model is not run in full."""
    config = make_backbone(num_hidden_layers=6).model.config
    layers = {"which": which}
    recipe = recipe_of(folder_of(config, tmp_path), [stage(), stage(loss={"layers": layers})], dtype="float32")
    plain, several = plan(recipe, ONE).stages
    assert (
        several.memory["vectors"] > plain.memory["vectors"] and several.memory["backward"] >= plain.memory["backward"]
    )
    encoder = around(outline(config, tmp_path))
    prepare(encoder, recipe.stages[1], 0)
    profiler, wanted = FakeProfiler(encoder), replace(MEAN, layers=recipe.stages[1].loss.layers)
    found, run = profiler.costs(LENGTHS, wanted), as_if_run(profiler, LENGTHS, wanted)
    assert asdict(found) == pytest.approx(asdict(run), rel=1e-6)


def test_every_block_of_a_denominator_counts(tmp_path: Path) -> None:
    """256 rows without hard negatives: similarities of 256 x 256, once for the documents and once for the queries."""
    folder, plain = folder_of(make_backbone().model.config, tmp_path), {"temperature": {"start": 0.07}}
    losses = (
        plain,
        plain | {"queries_as_negatives": True},
        plain | {"queries_as_negatives": True, "reverse_rows": "sum"},
    )
    stages = [stage("contrastive", batch_size=256, hard_negatives=0, loss=loss, precision="float32") for loss in losses]
    sizes = [found.memory["vectors"] for found in plan(recipe_of(folder, stages, dtype="float32"), ONE).stages]
    block = 256 * 256 * 4
    assert sizes[0] + block <= sizes[1] and sizes[1] + block <= sizes[2]


def test_a_measured_speed_gives_the_time_and_the_share_of_the_peak(tmp_path: Path) -> None:
    recipe = recipe_of(folder_of(make_backbone().model.config, tmp_path / "model"), [stage()], dtype="float32")
    run = tmp_path / "run"
    (run / "0-simcse").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no recipe\.yaml"):
        plan(recipe, ONE, measured=run)
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    with pytest.raises(ValueError, match="has not logged a step"):
        plan(recipe, ONE, measured=run)
    lines = [
        json.dumps({"step": step, "tokens_per_second": speed}) for step, speed in ((1, 5.0), (2, 1000.0), (3, 1000.0))
    ]
    (run / "0-simcse" / "metrics.jsonl").write_text("\n".join(lines))
    found = plan(recipe, ONE, measured=run).stages[0]
    assert found.seconds == pytest.approx(found.steps * found.tokens / 1000)
    assert found.share == pytest.approx(found.flops / found.seconds / 1e12)
    assert found.flops / found.share == pytest.approx(
        plan(recipe, ONE, share=0.5).stages[0].seconds * 0.5e12 / found.share
    )
    other = recipe_of(tmp_path / "model", [stage(precision="float32")], dtype="float32")
    with pytest.raises(ValueError, match=r"stages\.0\.precision differs"):
        tokens_per_second(run, 0, other.stages[0], other)


def test_the_command_says_what_does_not_fit_and_what_to_change(tmp_path: Path) -> None:
    recipe = recipe_of(folder_of(make_backbone().model.config, tmp_path), [stage(rng_shards=2)], dtype="float32")
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    run = CliRunner().invoke
    good = run(app, ["plan", str(tmp_path / "r.yaml"), "--gpus", "2xh100-80gb", "--json"])
    assert good.exit_code == 0 and json.loads(good.stdout)["stages"][0]["fits"]
    many = run(app, ["plan", str(tmp_path / "r.yaml"), "--gpus", "4xh100-80gb"])
    assert (
        many.exit_code == 1 and "4 processes share" in many.stdout and "--set stages.0.rng_shards=4, or" in many.stdout
    )
    assert "does not fit" not in many.stdout and "NO" not in many.stdout  # memory is not what is short
    shown = run(app, ["plan", str(tmp_path / "r.yaml"), "--gpus", "h100-80gb", "--mfu", "0.2"])
    assert "20.0 %" in shown.stdout and "upper bound" in shown.stdout and "disk:" in shown.stdout
    assert isinstance(run(app, ["plan", "pocket", "--gpus", "abacus"]).exception, ValueError)
