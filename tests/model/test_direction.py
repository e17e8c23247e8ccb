"""A base that is bidirectional already: one reading of its direction and window, from loading to export."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from llm2enc.artifact import config as decoder_config
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.model import Backbone, is_bidirectional, load_backbone, prove, with_common_direction
from llm2enc.recipe import ModelSpec
from llm2enc.text import InputFormat, Tokens
from tests.support.builders import INPUT, make_encoder, make_tokenizer
from tests.support.tiny import tiny_model

IDS = torch.arange(2, 26)


def states(backbone: Backbone, ids: torch.Tensor = IDS) -> torch.Tensor:
    row = ids.tolist()
    with torch.no_grad():
        return backbone.eval().hidden(Tokens.from_lists([row], [[True] * len(row)], [False]))


def bidirectional_gemma(folder: Path, layers: int = 1) -> Path:
    """A Gemma 3 of windows that reads in both directions, as EmbeddingGemma does: `sliding_window: 8` in its file."""
    model = tiny_model(
        "gemma3_text", num_hidden_layers=layers, layer_types=["sliding_attention"] * layers,
        use_bidirectional_attention=True, sliding_window=8, vocab_size=320,
    )  # fmt: skip
    assert model.config.to_dict()["sliding_window"] == 8
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path) -> Backbone:
    return load_backbone(ModelSpec(name=str(folder), dtype="float32"))


def test_a_token_sees_four_to_each_side_of_a_window_of_eight(tmp_path: Path) -> None:
    backbone = load(bidirectional_gemma(tmp_path))
    changed = IDS.clone()
    changed[12] = 40
    moved = (states(backbone, changed) - states(backbone)).abs().amax(1) > 0
    assert moved.nonzero()[:, 0].tolist() == list(range(8, 17))


@pytest.mark.parametrize("layers", [1, 2])
def test_the_states_are_the_familys_own(layers: int, tmp_path: Path) -> None:
    backbone = load(bidirectional_gemma(tmp_path, layers))
    prove(backbone)
    own = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        torch.testing.assert_close(states(backbone), own(IDS[None]).last_hidden_state[0], atol=1e-5, rtol=1e-4)


def test_saving_and_loading_keeps_window_and_vectors(tmp_path: Path) -> None:
    base = bidirectional_gemma(tmp_path / "base", layers=2)
    backbone = load(base)
    assert backbone.config.sliding_window == 4
    encoder = Encoder(backbone, InputFormat(INPUT, make_tokenizer()), "mean").eval()
    encoder.save(tmp_path / "model")
    assert decoder_config.read(tmp_path / "model").sliding_window == 4
    loaded = Encoder.load(tmp_path / "model").backbone
    assert torch.equal(states(loaded), states(backbone))
    other = AutoModel.from_pretrained(tmp_path / "model", attn_implementation="eager")
    with torch.no_grad():
        torch.testing.assert_close(states(loaded), other(IDS[None]).last_hidden_state[0], atol=1e-5, rtol=1e-4)
    again = load(tmp_path / "model")  # an export as a base
    assert torch.equal(states(again), states(backbone))


@pytest.mark.parametrize("family", ["gemma3_text", "gemma4_text"])
@pytest.mark.parametrize("window", [2, 7, 8, 4096])
def test_half_of_the_files_window_to_each_side(family: str, window: int) -> None:
    key = {"gemma3_text": True, "gemma4_text": "all"}[family]
    config = type(tiny_model(family).config)(sliding_window=window, use_bidirectional_attention=key)
    assert is_bidirectional(config)
    assert with_common_direction(config).sliding_window == window // 2
    assert config.is_causal is False and is_bidirectional(config)
    assert with_common_direction(config).sliding_window == window // 2  # said once, it stays


def test_a_causal_models_window_stays() -> None:
    config = tiny_model("gemma3_text", sliding_window=8).config
    assert with_common_direction(config).sliding_window == 8 and not is_bidirectional(config)


@pytest.mark.parametrize("make", [bidirectional_gemma, lambda folder: make_encoder().save(folder) or folder])
def test_a_causal_recipe_on_a_bidirectional_base_says_what_to_do(make, tmp_path: Path) -> None:
    folder = make(tmp_path / "base")
    with pytest.raises(InputError, match=r"bidirectional already.*set `model\.attention: bidirectional`"):
        load_backbone(ModelSpec(name=str(folder), attention="causal"))
