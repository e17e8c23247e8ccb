"""Merged encoders: the arithmetic against hand-made numbers and other libraries, the directory against its parents."""

import json
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm2enc.artifact import MergeRecord, card, read_metadata
from llm2enc.encoding import Encoder
from llm2enc.evaluation import benchmark, gather, score
from llm2enc.merging import check_sources, measuring, merge, run, scores
from llm2enc.merging.arithmetic import METHODS, Method, average, slerp
from llm2enc.merging.measuring import table
from llm2enc.merging.weights import INDEX, WEIGHTS, Weights, fingerprint
from llm2enc.model import Backbone
from llm2enc.recipe import load_recipe
from tests.artifact.test_directory import make_encoder as family_encoder
from tests.support.builders import INPUT, assert_same, make_encoder, make_model, make_tokenizer, sentences

X, Y, Z = torch.eye(3)


def vectors(*rows: tuple[float, ...]) -> list[Tensor]:
    return [torch.tensor(row) for row in rows]


def close(found: Tensor, expected: list[float]) -> bool:
    return torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def make(folder: Path, seed: int = 0, change: Callable[[Encoder], None] = lambda encoder: None, **config) -> Path:
    """An exported encoder with weights of its own, near those of every other seed."""
    encoder = make_encoder(**config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.backbone.decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    change(encoder)
    encoder.save(folder)
    return folder


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three encoders of one base."""
    root = tmp_path_factory.mktemp("parents")
    return [make(root / name, seed) for seed, name in enumerate("abc")]


def state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / WEIGHTS)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def shard(folder: Path, out: Path) -> Path:
    """The same directory with its weights in two files."""
    shutil.copytree(folder, out)
    tensors, files = state(out), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (out / WEIGHTS).unlink()
    places = {name: files[number % 2] for number, name in enumerate(sorted(tensors))}
    for file in files:
        part = {name: tensors[name] for name, place in places.items() if place == file}
        save_file(part, out / file, metadata={"format": "pt"})
    (out / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return out


# ------------------------------------------------------------------------------------------------------------ arithmetic


def test_every_method_has_its_function() -> None:
    assert set(get_args(Method)) == METHODS.keys()


def test_slerp_goes_along_the_arc() -> None:
    # A third of 90 degrees from x towards y: (cos 30, sin 30).
    assert close(slerp([X, Y], [2, 1]), [math.sqrt(3) / 2, 0.5, 0])
    # The ends are turned as they are: at 45 degrees each has the factor sin 45 / sin 90.
    assert close(slerp(vectors((2, 0), (0, 4)), [1, 1]), [math.sqrt(2), 2 * math.sqrt(2)])
    # From (1, 0) to 60 degrees, the middle is at 30, with the length that both have.
    middle = slerp([torch.tensor([1.0, 0]), torch.tensor([0.5, math.sqrt(3) / 2], dtype=torch.float64)], [1, 1])
    assert close(middle, [math.sqrt(3) / 2, 0.5])


def test_slerp_of_three_takes_one_in_after_another() -> None:
    # x and y at one half, then z at one third of 90 degrees: sin 60 and sin 30.
    side = math.sin(math.pi / 3) * math.sqrt(0.5)
    assert close(slerp([X, Y, Z], [1, 1, 1]), [side, side, 0.5])
    # z at 3 / 4 of 90 degrees after x and y at 2 / 3 of 90 degrees.
    low, high = math.sin(math.pi / 8), math.sin(3 * math.pi / 8)
    assert close(slerp([X, Y, Z], [1, 2, 9]), [low * 0.5, low * math.sqrt(3) / 2, high])


def test_slerp_is_the_formula_on_flattened_tensors() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(5, 7, generator=generator) for _ in range(2))
    u, v = (x.double().numpy() for x in (one, other))
    angle = np.arccos((u * v).sum() / np.linalg.norm(u) / np.linalg.norm(v))
    expected = (np.sin(0.7 * angle) * u + np.sin(0.3 * angle) * v) / np.sin(angle)
    assert np.allclose(slerp([one, other], [7, 3]).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weights, end", [((1, 0), 0), ((0, 1), 1), ((0, 0, 2), 2), ((0, 3, 0), 1)])
@pytest.mark.parametrize("method", METHODS)
def test_all_the_weight_on_one_gives_that_one(method: Method, weights: tuple[float, ...], end: int) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(9, generator=generator) * 10**n for n in range(3)][: len(weights)]
    tensors[end][0] = -0.0  # its sign, too
    found = METHODS[method](tensors, weights).float()
    assert torch.equal(found.view(torch.int32), tensors[end].view(torch.int32))


def test_a_small_angle_is_measured_and_none_is_an_average() -> None:
    near = torch.tensor([math.cos(1e-5), math.sin(1e-5)], dtype=torch.float64)
    assert close(slerp([torch.tensor([1.0, 0]), near], [3, 1]), [math.cos(2.5e-6), math.sin(2.5e-6)])
    assert close(slerp(vectors((1, 2), (3, 6)), [1, 1]), [2, 4])  # parallel
    assert close(slerp(vectors((1, 2), (-1, -2)), [3, 1]), [0.5, 1])  # opposite
    assert close(slerp(vectors((0, 0), (2, 4)), [1, 1]), [1, 2])  # zero


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_angles_do_not_depend_on_the_chunk(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(3, 5, generator=generator) for _ in range(2)]
    expected = slerp(tensors, [1, 2])
    monkeypatch.setattr("llm2enc.merging.arithmetic.CHUNK", chunk)
    assert torch.allclose(slerp(tensors, [1, 2]), expected, rtol=0, atol=1e-12)


def test_averages_are_numpys() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(4, 6, generator=generator) for _ in range(3)]
    expected = np.average([x.double().numpy() for x in tensors], axis=0, weights=[5, 2, -1])
    assert np.allclose(average(tensors, [5, 2, -1]).numpy(), expected, rtol=0, atol=1e-14)
    before = [x.clone() for x in tensors]
    average([x.double() for x in tensors], [1, 1, 1])
    assert all(torch.equal(one, other) for one, other in zip(tensors, before, strict=True))


def test_arguments_stay_as_they_are() -> None:
    tensors = [torch.ones(3, dtype=torch.float64), torch.tensor([1.0, 2, 3], dtype=torch.float64)]
    for method in METHODS.values():
        method(tensors, [1, 1])
        assert tensors[0].tolist() == [1, 1, 1] and tensors[1].tolist() == [1, 2, 3]


# ----------------------------------------------------------------------------------------------------------- directories


def test_the_average_is_that_of_torch(parents: list[Path], tmp_path: Path) -> None:
    from torch.optim.swa_utils import AveragedModel

    merge(parents, tmp_path / "out")
    models = [Encoder.load(parent).backbone.decoder for parent in parents]
    averaged = AveragedModel(nn.Identity())
    averaged.module = models[0]
    averaged.n_averaged.fill_(1)
    for model in models[1:]:
        averaged.update_parameters(model)
    expected = {name: parameter.detach() for name, parameter in averaged.module.named_parameters()}
    assert_same(state(tmp_path / "out"), expected, tolerance=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_one_model_with_itself_is_itself(method: Method, parents: list[Path], tmp_path: Path) -> None:
    record = merge([parents[0]] * 3, tmp_path / "out", method=method, weights=[0.2, 1, 0.1])
    assert_same(state(tmp_path / "out"), state(parents[0]), tolerance=0 if method == "average" else 1e-6)
    for name in ("config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"):
        assert read_json(tmp_path / "out" / name) == read_json(parents[0] / name)
    fingerprint = Encoder.load(parents[0]).backbone.fingerprint()
    assert record.parents[2].model_dump() == {
        "name": None,
        "fingerprint": fingerprint,
        "weight": 0.1,
        "recipes": [None],
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_an_encoder_with_the_merged_weights(method: Method, parents: list[Path], tmp_path: Path) -> None:
    record = merge(parents, tmp_path / "out", method=method, weights=[1, 2, 3])
    states = [state(parent) for parent in parents]
    expected = {name: METHODS[method]([s[name] for s in states], [1, 2, 3]).float() for name in states[0]}
    assert_same(state(tmp_path / "out"), expected)
    encoder = Encoder.load(tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "llm2enc.json").read_text())
    assert (
        facts["fingerprint"] == encoder.backbone.fingerprint() and MergeRecord.model_validate(facts["merge"]) == record
    )
    golden = np.array(facts["golden"]["vectors"])
    assert np.allclose(encoder.encode(facts["golden"]["texts"]), golden, atol=2e-6)
    assert not np.allclose(
        golden, json.loads((parents[0] / "llm2enc.json").read_text())["golden"]["vectors"], atol=0.01
    )
    assert record.method == method and record.base is None and record.base_weight == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "## Merged" in text and all(f"`{parent.fingerprint[:12]}`" in text for parent in record.parents)
    assert "| 0.333 |" in text and ("SLERP" in text) == (method == "slerp")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    folders = [make(tmp_path / name, seed, lambda encoder: encoder.to(dtype)) for seed, name in enumerate("abc")]
    model = make_model()
    model.save_pretrained(tmp_path / "base")
    merge(folders, tmp_path / "out", base=tmp_path / "base", base_weight=0.25, weights=[1, 1, 2])
    states, base = [state(folder) for folder in folders], model.model.state_dict()
    expected = {
        name: sum(x[name].double() * w for x, w in zip(states, (0.1875, 0.1875, 0.375), strict=True))
        + 0.25 * base[name]
        for name in base
    }
    found = state(tmp_path / "out")
    assert_same(found, {name: tensor.to(dtype) for name, tensor in expected.items()})
    assert Encoder.load(tmp_path / "out").backbone.decoder.dtype == dtype


def test_a_merged_encoder_merges_again(parents: list[Path], tmp_path: Path) -> None:
    merge(parents[:2], tmp_path / "two")
    merge([tmp_path / "two", parents[2]], tmp_path / "again", weights=[2, 1])
    merge(parents, tmp_path / "three")
    assert_same(state(tmp_path / "again"), state(tmp_path / "three"), tolerance=1e-6)


def test_a_merged_encoder_keeps_the_recipes_of_all_that_are_in_it(tmp_path: Path) -> None:
    recipe = load_recipe("mistral-7b")
    other = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": "me/other"})})
    runs = []
    for name, made in (("a", recipe), ("b", recipe), ("c", other)):
        runs.append(tmp_path / name)
        make_encoder().save(runs[-1], recipe=made)
    merge(runs[:2], tmp_path / "ab")
    merge([tmp_path / "ab", runs[2]], tmp_path / "abc")
    names = {out: [r["model"]["name"] for r in read_metadata(tmp_path / out).recipes] for out in ("ab", "abc")}
    assert names == {"ab": [recipe.model.name] * 2, "abc": [recipe.model.name] * 2 + ["me/other"]}
    assert f"base_model: {recipe.model.name}" in (tmp_path / "ab" / "README.md").read_text()
    assert "base_model" not in (tmp_path / "abc" / "README.md").read_text()  # no one model that all started from


def test_a_family_whose_configuration_is_rewritten_stays_what_it_was(tmp_path: Path) -> None:
    """Gemma 3's window is doubled in the file and halved when it is read."""
    layers = ["sliding_attention", "full_attention"]
    encoder = family_encoder("gemma3_text", sliding_window=5, layer_types=layers)
    encoder.save(tmp_path / "a")
    merge([tmp_path / "a", tmp_path / "a"], tmp_path / "out")
    assert read_json(tmp_path / "out" / "config.json") == read_json(tmp_path / "a" / "config.json")
    assert np.array_equal(Encoder.load(tmp_path / "out").encode(sentences(5)), encoder.encode(sentences(5)))


def test_keys_for_other_programs_alone_keep_nobody_apart(parents: list[Path], tmp_path: Path) -> None:
    shutil.copytree(parents[0], tmp_path / "older")
    config = read_json(tmp_path / "older" / "config.json")
    del config["pruned_heads"], config["eos_token_id"]  # as older releases of ours wrote it
    (tmp_path / "older" / "config.json").write_text(json.dumps(config))
    merge([tmp_path / "older", parents[1]], tmp_path / "out")
    merge(parents[:2], tmp_path / "same")
    assert_same(state(tmp_path / "out"), state(tmp_path / "same"))


def test_shards_are_read_as_one_file(parents: list[Path], tmp_path: Path) -> None:
    merge(parents, tmp_path / "whole", method="slerp")
    sharded = [shard(parents[0], tmp_path / "s0"), parents[1], shard(parents[2], tmp_path / "s2")]
    merge(sharded, tmp_path / "out", method="slerp")
    assert_same(state(tmp_path / "out"), state(tmp_path / "whole"))


# ------------------------------------------------------------------------------------------------------------------ base


def test_base_weight_one_is_the_base_and_one_half_lies_between(parents: list[Path], tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "base")  # names with `model.`, and a head
    record = merge([parents[0]], tmp_path / "all", base=tmp_path / "base", base_weight=1)
    base = model.model.state_dict()
    assert_same(state(tmp_path / "all"), base)
    assert record.base == Backbone(model, bidirectional=True).fingerprint()
    merge(parents[:2], tmp_path / "half", base=tmp_path / "base", base_weight=0.5)
    one, other = state(parents[0]), state(parents[1])
    expected = {name: one[name] / 4 + other[name] / 4 + base[name] / 2 for name in base}
    assert_same(state(tmp_path / "half"), expected, tolerance=1e-6)
    assert "mixed with the base model" in (tmp_path / "half" / "README.md").read_text()


def test_an_export_and_a_base_in_other_types_will_do(parents: list[Path], tmp_path: Path) -> None:
    record = merge([parents[0]], tmp_path / "x", base=parents[1], base_weight=0.5)
    assert record.base == json.loads((parents[1] / "llm2enc.json").read_text())["fingerprint"]
    merge(parents[:2], tmp_path / "y")
    assert_same(state(tmp_path / "x"), state(tmp_path / "y"))
    model = make_model(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    record = merge([parents[0]], tmp_path / "z", base=tmp_path / "base", base_weight=0.5)
    assert record.base == Backbone(model.float(), bidirectional=True).fingerprint()


def test_the_fingerprint_of_files_is_that_of_the_backbone(parents: list[Path]) -> None:
    weights = Weights(parents[0])
    names = {name: name for name in weights.files}
    assert fingerprint(weights, names, weights) == Encoder.load(parents[0]).backbone.fingerprint()


# --------------------------------------------------------------------------------------------------------------- refusals


def _other_tokenizer(encoder: Encoder) -> None:
    encoder.input_format.tokenizer.add_tokens(["<new>"])


def _unnormalised(encoder: Encoder) -> None:
    encoder.normalize = False


OTHERS = {
    "another tokenizer (added_tokens": {"change": _other_tokenizer},
    "pooling is 'last', not 'mean'": {"pooling": "last"},
    "normalize is False, not True": {"change": _unnormalised},
    "another input format (max_tokens)": {"input": INPUT.model_copy(update={"max_tokens": 32})},
    "another input format (prompts)": {"input": INPUT.model_copy(update={"prompts": {}})},
    "other model settings (rms_norm_eps)": {"rms_norm_eps": 1e-5},
    "such as layers.0.mlp.down_proj.weight (32, 64), not (32, 48)": {"intermediate_size": 64},
    "9 tensors are in one of them only, such as layers.2.": {"num_hidden_layers": 3},
    "weights are stored as BF16, not F32": {"change": lambda encoder: encoder.to(torch.bfloat16)},
    "attention is 'causal', not 'bidirectional'": {"bidirectional": False},
}


@pytest.mark.parametrize("message", OTHERS)
def test_an_encoder_that_differs_is_refused(message: str, parents: list[Path], tmp_path: Path) -> None:
    make(tmp_path / "other", **OTHERS[message])
    with pytest.raises(ValueError) as error:
        merge([parents[0], parents[1], tmp_path / "other"], tmp_path / "out")
    assert message in str(error.value) and f"{tmp_path / 'other'} cannot be merged with {parents[0]}" in str(
        error.value
    )
    assert str(parents[1]) not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_all_that_is_wrong_is_said_at_once(parents: list[Path], tmp_path: Path) -> None:
    make(tmp_path / "b", pooling="last", intermediate_size=64)
    make_model(num_attention_heads=2, num_key_value_heads=1, head_dim=16).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError) as error:
        merge([parents[0], tmp_path / "b"], tmp_path / "out", base=tmp_path / "base", base_weight=0.1)
    for message in ("pooling is 'last'", "(intermediate_size)", "6 tensors", "is no base of", "num_attention_heads"):
        assert message in str(error.value)
    with pytest.raises(ValueError) as error:
        merge([parents[0]], parents[0], method="ties", weights=[-1, math.nan], base_weight=0.5)
    for message in (
        "1 encoders to merge",
        "method is 'ties'",
        "2 weights for 1 encoders",
        "must be finite",
        "give both or neither",
        "is to be merged and to be written",
    ):
        assert message in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": [1, -1]}, "add up to more than 0"),
        ({"weights": [3, -1], "method": "slerp"}, "a negative one"),
        ({"base": "pocket"}, "give both or neither"),
        ({"base": "pocket", "base_weight": 1.5}, "the share of the base, 0 to 1"),
        ({"base": "pocket", "base_weight": 0.5}, "under any prefix|hidden_size"),
    ],
)
def test_what_means_nothing_is_refused(options: dict, message: str, parents: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        merge(parents[:2], tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_base_that_is_none_is_refused(parents: list[Path], tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "base")
    tokenizer = make_tokenizer(300)
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="another vocabulary"):
        merge(parents[:1], tmp_path / "out", base=tmp_path / "base", base_weight=0.5)
    make_model(num_hidden_layers=1).save_pretrained(tmp_path / "short")
    with pytest.raises(ValueError, match="does not have the tensors of"):
        merge(parents[:1], tmp_path / "out", base=tmp_path / "short", base_weight=0.5)
    make_model(vocab_size=330).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"embed_tokens\.weight is F32 \(330, 32\), not F32 \(320, 32\)"):
        merge(parents[:1], tmp_path / "out", base=tmp_path / "wide", base_weight=0.5)
    make_model(num_hidden_layers=3).save_pretrained(tmp_path / "long")
    with pytest.raises(ValueError, match="num_hidden_layers"):
        merge(parents[:1], tmp_path / "out", base=tmp_path / "long", base_weight=0.5)


def test_places_that_hold_something_else_are_refused(parents: list[Path], tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and no export of llm2enc"):
        merge(parents, tmp_path / "used")
    with pytest.raises(ValueError, match="is to be merged and to be written"):  # a base that would be lost
        merge(parents[:1], parents[1], base=parents[1], base_weight=0.5)
    with pytest.raises(ValueError, match="no such file or folder"):
        check_sources([str(tmp_path / "none.csv")])
    with pytest.raises(ValueError, match="is not a directory written by llm2enc"):
        merge([parents[0], tmp_path / "used"], tmp_path / "out")
    shutil.copytree(parents[0], tmp_path / "bare")
    (tmp_path / "bare" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="weights are read from safetensors only"):
        merge([parents[0], tmp_path / "bare"], tmp_path / "out")


def test_integers_have_no_average() -> None:
    one, other = torch.tensor([1, 2]), torch.tensor([1, 3])
    assert torch.equal(run._merged([one, one], [1, 1], "average", None, 0), one)
    with pytest.raises(ValueError, match="different integers"):
        run._merged([one, other], [1, 1], "average", None, 0)


@pytest.mark.parametrize("moment", ["load", "write", "card"])
def test_a_failure_leaves_what_was_there(
    moment: str, parents: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(parents, tmp_path / "out", weights=[1, 0, 0])

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    place, name = {"load": (Encoder, "load"), "write": (Encoder, "save"), "card": (card, "merged")}[moment]
    monkeypatch.setattr(place, name, fail)
    for out in ("out", "new"):
        with pytest.raises(KeyboardInterrupt):
            merge(parents, tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert_same(state(tmp_path / "out"), state(parents[0]))
    monkeypatch.undo()
    merge(parents, tmp_path / "out", weights=[0, 1, 0])  # an older export is replaced
    assert_same(state(tmp_path / "out"), state(parents[1]))


# ---------------------------------------------------------------------------------------------------------------- scores


def test_scores_compare_the_result_with_the_best_parent(
    parents: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "LOCAL_SECONDS", 0.0)
    texts = sentences(40)
    pairs = [{"query": text, "positive": " ".join(text.split()[::-1])} for text in texts]
    (tmp_path / "turned.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    rated = [{"sentence1": a, "sentence2": b, "score": len(a) - len(b)} for a, b in pairwise(texts)]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated))
    sources = [str(tmp_path / "turned.jsonl"), str(tmp_path / "rated.jsonl")]
    merge(parents[:2], tmp_path / "soup")
    said: list[str] = []
    rows = scores(parents[:2], tmp_path / "soup", sources, tmp_path / "s", report=said.append, show_progress=False)
    encoders = [Encoder.load(folder) for folder in (*parents[:2], tmp_path / "soup")]
    expected = np.array([[score(encoder, task).score for encoder in encoders] for task in gather(sources)[0]])
    found = np.array([[*row.parents, row.merged] for row in rows])
    assert [row.task for row in rows] == ["turned", "rated", "mean over types"]
    assert np.allclose(found, [*expected, expected.mean(axis=0)], atol=1e-6)
    for row in rows:
        assert row.parents[row.best] == max(row.parents) and row.gain == row.merged - max(row.parents)
    assert (tmp_path / "s" / "merge.md").read_text() == table(rows, parents[:2])
    assert any("parent-1" in line for line in said)


def test_the_table_names_the_best_parent_and_the_gain() -> None:
    row = measuring.Row("sts", "spearman", (0.5, 0.75), 0.7)
    assert row.best == 1 and row.gain == pytest.approx(-0.05)
    lines = table([row], ["runs/a/model", "runs/b"]).splitlines()
    assert lines[0] == "| task | metric | 0: a | 1: b | merged | best parent | gain |"
    assert lines[2] == "| sts | spearman | 50.0 | 75.0 | 70.0 | 1 | -5.0 |"


def test_a_parent_or_base_whose_file_was_cut_is_named_with_both_sizes(parents: list[Path], tmp_path: Path) -> None:
    cut = Path(shutil.copytree(parents[1], tmp_path / "cut"))
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[:-10])
    words = f"has {len(whole) - 10} bytes, but its header describes {len(whole)}"
    with pytest.raises(ValueError, match=words):
        merge([parents[0], cut], tmp_path / "out")
    with pytest.raises(ValueError, match=words):
        merge([parents[0]], tmp_path / "out", base=cut, base_weight=0.5)
    assert not (tmp_path / "out").exists()
