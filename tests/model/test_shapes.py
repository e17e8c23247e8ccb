"""The published numbers of models: they give the parameters that the repositories report."""

import pytest

from llm2enc.model import published_config, skeleton
from llm2enc.model.shapes import shapes
from llm2enc.recipe import ModelSpec, load_recipe, recipe_names

# Of the causal LM, as the safetensors of each repository have them, or its paper or card says.
PARAMETERS = {
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "EleutherAI/gpt-neo-125m": 125_198_592,
    "EleutherAI/pythia-410m": 405_334_016,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "NousResearch/Llama-2-7b-hf": 6_738_415_616,
    "Qwen/Qwen2-0.5B": 494_032_768,
    "Qwen/Qwen2-7B": 7_615_616_512,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-0.6B-Base": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "google/gemma-2-9b-it": 9_241_705_984,
    "google/gemma-3-1b-pt": 999_885_952,
    "google/gemma-3-270m": 268_098_176,
    "intfloat/e5-mistral-7b-instruct": 7_110_660_096 + 32_000 * 4_096,  # published without its head
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "mistralai/Mistral-7B-Instruct-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "princeton-nlp/Sheared-LLaMA-1.3B": 1_345_423_360,
}


def test_every_shape_is_compared() -> None:
    assert list(shapes()) == list(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_numbers_give_the_published_parameters(name: str) -> None:
    spec = ModelSpec(name=name)
    model = skeleton(spec, published_config(spec))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_layers_are_cut_and_an_unknown_model_has_no_shape() -> None:
    cut = published_config(ModelSpec(name="Qwen/Qwen3-8B", layers=3))
    assert cut is not None and cut.num_hidden_layers == 3 == len(cut.layer_types)
    assert published_config(ModelSpec(name="nobody/nothing")) is None


def test_every_shipped_recipe_can_be_planned_without_a_network() -> None:
    backbones = {load_recipe(name).model.name for name in recipe_names()}
    assert backbones <= {"pocket", *shapes()}
