"""Somebody else's encoders, made on the spot: what is said of each follows from how its attention was made."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedModel

from llm2enc.cli import verify as verify_command
from llm2enc.encoding.models import SentenceTransformerEncoder
from llm2enc.verification import third_party, verify_third_party
from llm2enc.verification.third_party import Check, ThirdPartyReport
from tests.support.builders import make_tokenizer
from tests.support.tiny import tiny_model

sentence_transformers = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")


def save(model: PreTrainedModel, folder: Path, pooling: str = "mean", normalize: bool = True, **config) -> Path:
    """A plain directory of sentence-transformers; `config` is written into config.json afterwards."""
    model.save_pretrained(folder / "decoder")
    make_tokenizer(128 + 256, pad_token="<pad>").save_pretrained(folder / "decoder")
    path = folder / "decoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    parts = [modules.Transformer(str(folder / "decoder")), modules.Pooling(model.config.hidden_size, pooling)]
    parts += [modules.Normalize()] * normalize
    sentence_transformers.SentenceTransformer(modules=parts, device="cpu").save(str(folder / "model"))
    saved = folder / "model" / "config.json"
    saved.write_text(json.dumps(json.loads(saved.read_text()) | config))
    return folder / "model"


def tiny(family: str, **overrides) -> PreTrainedModel:
    """The decoder of a tiny model with attention sharp enough to see what it reads."""
    overrides = {"vocab_size": 384, "initializer_range": 0.2, **overrides}
    return tiny_model(family, **overrides).base_model


def checks(report: ThirdPartyReport) -> dict[str, Check]:
    return {row.question: row for row in report.rows}


def bert(folder: Path, **options) -> Path:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=384, max_position_embeddings=512, initializer_range=0.2, **shape))
    return save(model, folder, **options)


def test_a_bert_is_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = verify_third_party(bert(tmp_path))
    found = checks(report)
    assert report.agrees and report.to_json()["agrees"]
    for question in ("direction", "padding right", "batches", "length", "prompts"):
        assert found[question].verdict == "fine", found[question]
    assert "both directions, in every layer" in found["direction"].evidence
    # Its positions are looked up in a table, from the start of the row.
    assert found["padding left"].verdict == "mind" and "never pad on the left" in found["padding left"].remedy
    verify_command._print_third_party(report)
    assert "direction" in capsys.readouterr().out


def test_a_causal_llama_under_mean_pooling_is_reported(tmp_path: Path) -> None:
    found = checks(verify_third_party(save(tiny("llama"), tmp_path)))
    direction = found["direction"]
    assert direction.verdict == "mind" and "causal under mean pooling" in direction.evidence
    assert "llm2enc convert opens all of its" in direction.remedy
    assert found["padding right"].verdict == found["batches"].verdict == "fine"


def test_a_causal_model_under_last_token_pooling_is_as_it_should_be(tmp_path: Path) -> None:
    report = verify_third_party(save(tiny("qwen3"), tmp_path, pooling="lasttoken"))
    assert report.agrees and checks(report)["direction"].verdict == "fine"
    assert "last-token pooling" in checks(report)["direction"].evidence


def test_a_converted_llama_reads_both_ways(tmp_path: Path) -> None:
    direction = checks(verify_third_party(save(tiny("llama"), tmp_path, is_causal=False)))["direction"]
    assert direction.verdict == "fine" and "is_causal False" in direction.evidence


def test_a_claim_that_transformers_does_not_honour_is_a_problem(tmp_path: Path) -> None:
    """transformers reads `use_bidirectional_attention` in Gemma 3, not in Llama."""
    report = verify_third_party(save(tiny("llama"), tmp_path, use_bidirectional_attention=True))
    direction = checks(report)["direction"]
    assert not report.agrees and direction.verdict == "problem"
    assert "reads in one direction" in direction.evidence and "is_causal false" in direction.remedy


def test_a_direction_that_depends_on_padding_is_a_problem(tmp_path: Path) -> None:
    """StableLM under SDPA: without padding there is no mask, and its attention then falls back to causal."""
    report = verify_third_party(save(tiny("stablelm"), tmp_path, is_causal=False))
    found = checks(report)
    assert not report.agrees and found["direction"].verdict == "problem", found
    assert "depends on whether there is padding" in found["direction"].evidence
    assert found["batches"].verdict == "problem" and "three times as long" in found["batches"].evidence
    assert '"attn_implementation": "eager"' in found["direction"].remedy


def test_one_causal_layer_among_two_sided_ones_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer 1 reads through a triangular mask, whatever the others do."""

    def triangle(layer, args, kwargs):
        length = args[0].size(1)
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
        return args, {**kwargs, "attention_mask": mask}

    def opened(name: str) -> SentenceTransformerEncoder:
        found = SentenceTransformerEncoder(name)
        found.model[0].auto_model.layers[1].register_forward_pre_hook(triangle, with_kwargs=True)
        return found

    monkeypatch.setattr(third_party, "open_encoder", opened)
    direction = checks(verify_third_party(save(tiny("llama"), tmp_path, is_causal=False)))["direction"]
    assert direction.verdict == "mind" and "layers [1]" in direction.evidence


def test_padding_on_the_side_that_moves_positions_is_a_problem(tmp_path: Path) -> None:
    folder = save(tiny("gpt2"), tmp_path, is_causal=False)
    left = checks(verify_third_party(folder))["padding left"]
    assert left.verdict == "mind"  # the tokenizer pads on the right
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    report = verify_third_party(folder)
    left = checks(report)["padding left"]
    assert not report.agrees and left.verdict == "problem" and "pad on the right" in left.remedy
    assert checks(report)["batches"].verdict == "problem"


def test_vectors_of_other_lengths_and_prompts_are_told(tmp_path: Path) -> None:
    folder = bert(tmp_path, normalize=False)
    path = folder / "config_sentence_transformers.json"
    settings = json.loads(path.read_text())
    prompts = {"query": "Find: ", "document": ""}
    path.write_text(json.dumps(settings | {"prompts": prompts, "similarity_fn_name": "cosine"}))
    found = checks(verify_third_party(folder))
    assert found["length"].verdict == "mind" and "normalise" in found["length"].remedy
    assert found["prompts"].verdict == "fine" and "Find: " in found["prompts"].evidence


def test_releases_that_it_asks_for_are_compared_with_those_installed(tmp_path: Path) -> None:
    folder = bert(tmp_path)
    path = folder / "config_sentence_transformers.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"requirements": {"transformers": {"specifier": ">=4"}}}))
    found = checks(verify_third_party(folder))["requirements"]
    assert found.verdict == "fine" and "transformers>=4" in found.evidence
    path.write_text(json.dumps(settings | {"requirements": {"transformers": {"specifier": ">=999"}}}))
    report = verify_third_party(folder)
    assert not report.agrees
    assert any(row.verdict == "problem" and "999" in row.evidence for row in report.rows), report.rows


def test_static_embeddings_have_no_direction(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [modules.StaticEmbedding(make_tokenizer(), embedding_dim=16)]
    sentence_transformers.SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "model"))
    report = verify_third_party(tmp_path / "model")
    assert report.agrees and checks(report)["direction"].verdict == "unknown"
    assert checks(report)["batches"].verdict == "fine"


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        verify_third_party(tmp_path / "nothing" / "here")


def test_a_slip_in_a_path_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(third_party, "open_encoder", lambda name: pytest.fail("the hub would be asked"))
    with pytest.raises(ValueError, match="runs/pockte: no such directory, although runs is one"):
        verify_third_party("runs/pockte")
