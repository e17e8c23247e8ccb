"""What is compared: the variants of a causal language model, the stages of a run, encoders that exist already."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal

from llm2enc.comparison.variants import DEFAULT, Variant, find_variants, input_spec
from llm2enc.encoding import Encoder, LoadedModel, LoadType, open_encoder
from llm2enc.errors import CannotConvert, InputError
from llm2enc.model import limits, load_config, load_tokenizer, text_config
from llm2enc.recipe import ModelSpec, load_recipe
from llm2enc.training import checkpoint

SENTENCE_TRANSFORMER = "st:"  # before a hub id, which could be either


@dataclass(frozen=True)
class System:
    """One way of making vectors, ready to be measured. The weights may change when the next system is asked for."""

    name: str
    description: str
    encoder: LoadedModel


def is_run(model: str) -> bool:
    return (Path(model) / "recipe.yaml").is_file()


def is_encoder(model: str) -> bool:
    files = ("llm2enc.json", "modules.json")
    return model.startswith(SENTENCE_TRANSFORMER) or any((Path(model) / name).is_file() for name in files)


def check(models: Sequence[str], names: Sequence[str] | None, max_text_tokens: int, dtype: LoadType = "auto") -> None:
    """ValueError for what can be seen to be wrong before any weight is loaded."""
    variants = find_variants(names or ())
    if len(set(models)) < len(models):
        raise InputError(f"a model is named twice: {', '.join(models)}")
    for model in models:
        path = Path(model)
        if (path.is_absolute() or model.startswith(".")) and not path.exists():
            raise InputError(f"{model}: no such directory")
        if dtype != "auto" and (is_run(model) or is_encoder(model)):
            raise InputError(f"{model} says itself what its weights are held in; --dtype is for causal models")
        if is_run(model):
            load_recipe(path / "recipe.yaml")
        elif is_encoder(model):
            if names:
                raise InputError(
                    f"{model} is an encoder and has its own input format and pooling; leave out --variants, or give its run"
                )
        else:
            if path.is_dir() and not (path / "config.json").is_file():
                raise InputError(
                    f"{model} holds neither a model (config.json), an encoder (modules.json) nor a run of llm2enc "
                    "(recipe.yaml)"
                )
            spec = ModelSpec.named(model)
            tokenizer, positions = load_tokenizer(spec), _positions(spec)
            for variant in variants or find_variants(DEFAULT):
                input_spec(variant, tokenizer, max_text_tokens, positions)


def systems_of(
    model: str, names: Sequence[str] | None, max_text_tokens: int, dtype: LoadType, notes: list[str]
) -> Iterator[System]:
    """Everything to measure of one model, one by one. See `states_of`."""
    for systems in states_of(model, names, max_text_tokens, dtype, notes):
        yield from systems


def states_of(
    model: str, names: Sequence[str] | None, max_text_tokens: int, dtype: LoadType, notes: list[str]
) -> Iterator[list[System]]:
    """The systems of each state of the weights: of a run before each stage and at the end, else only one.

    names  variants; by default those of DEFAULT for a causal model and the recipe's own for the stages of a run
    notes  gets what has to be left out, and why
    """
    if is_run(model):
        yield from _stages(Path(model), names, max_text_tokens, notes)
    elif is_encoder(model):
        name = model.removeprefix(SENTENCE_TRANSFORMER)
        yield [System("as saved", "an encoder, with its own input format and pooling", open_encoder(name))]
    else:
        yield _variants(model, find_variants(names or DEFAULT), max_text_tokens, dtype, notes)


def count_states(model: str) -> int:
    """How many `states_of` will yield."""
    if not is_run(model):
        return 1
    stages = load_recipe(Path(model) / "recipe.yaml").stages
    folders = (Path(model) / f"{number}-{stage.objective}" for number, stage in enumerate(stages))
    return 1 + sum(1 for _ in takewhile(checkpoint.is_finished, folders))


def _variants(
    model: str, variants: list[Variant], max_text_tokens: int, dtype: LoadType, notes: list[str]
) -> list[System]:
    spec = ModelSpec.named(model, dtype=_stored(dtype))
    first = input_spec(variants[0], load_tokenizer(spec), max_text_tokens, _positions(spec))
    try:
        encoder = Encoder.from_causal_lm(spec, first)
    except CannotConvert as refused:
        variants = [variant for variant in variants if variant.causal]
        notes.append(f"{model}: the bidirectional variants are left out. {refused}")
        if not variants:
            raise
        encoder = Encoder.from_causal_lm(spec.model_copy(update={"attention": "causal"}), first)
    return [System(one.name, one.description, _encoder_of(encoder, one, max_text_tokens)) for one in variants]


def _stages(run: Path, names: Sequence[str] | None, max_text_tokens: int, notes: list[str]) -> Iterator[list[System]]:
    recipe = load_recipe(run / "recipe.yaml")
    encoder = Encoder.from_recipe(recipe)
    own = f"{recipe.model.attention} attention, {recipe.pooling} pooling, template of the recipe"
    variants = [
        variant for variant in find_variants(names or ()) if variant.causal or recipe.model.attention == "bidirectional"
    ]
    if len(variants) < len(names or ()):
        notes.append(f"{run}: its recipe keeps the model causal, so the bidirectional variants are left out")

    def of(stage: str) -> list[System]:
        if not names:
            return [System(stage, f"{stage}: {own}", encoder.variant())]
        read = [(one, _encoder_of(encoder, one, max_text_tokens)) for one in variants]
        return [System(f"{stage} {one.name}", f"{stage}: {one.description}", variant) for one, variant in read]

    yield of("untrained")
    for index, stage in enumerate(recipe.stages):
        folder = run / f"{index}-{stage.objective}"
        if not checkpoint.is_finished(folder):
            notes.append(f"{run}: stage {folder.name} and what follows is not finished, so it is left out")
            return
        checkpoint.load_finished(folder, encoder, stage, recipe.seed, recipe.adapter_goes_on(index))
        yield of(f"after {stage.objective}")


def _encoder_of(encoder: Encoder, variant: Variant, max_text_tokens: int) -> Encoder:
    spec = input_spec(variant, encoder.input_format.tokenizer, max_text_tokens, _limit(encoder.backbone.config))
    return encoder.variant(causal=variant.causal, pooling=variant.pooling, layer=variant.layer, input=spec)


def _positions(spec: ModelSpec) -> int:
    return _limit(text_config(load_config(spec)))


def _limit(config) -> int:
    limit = limits.longest_input(config)
    return 2**31 if limit is None else limit.tokens


def _stored(dtype: LoadType) -> Literal["float32", "bfloat16", "float16"]:
    """What weights are held in where the user does not say: float32 on a CPU, for exactness; bfloat16 on a GPU."""
    import torch

    if dtype != "auto":
        return dtype
    return "bfloat16" if torch.cuda.is_available() else "float32"
