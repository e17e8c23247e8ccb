"""GRIT and its generative half: what is predicted, by hand; loss and gradient against transformers, one by one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm2enc.artifact import write_generator
from llm2enc.data import Dialogue, Pair, RowBatch
from llm2enc.encoding import Encoder
from llm2enc.recipe import DialogueFormat, FilesData, GenerationSpec, GritStage, LoraSpec, LossSpec, SftStage
from llm2enc.text import InputFormat, Tokens
from llm2enc.training.objectives import contrastive, grit, sft
from tests.support.builders import INPUT, ROLES, assert_same, gradients, make_encoder, make_tokenizer, sentences

DATA = (FilesData(kind="files", path="unused.jsonl"),)
COMMON = {"data": DATA, "steps": 1, "batch_size": 3, "lr": 1e-3, "precision": "float32"}
TEXTS = sentences(40)
DIALOGUES = [
    Dialogue(tuple(zip(TEXTS[3 * n :], TEXTS[3 * n + 1 :], strict=False))[: 1 + n % 3]) for n in range(7)
]  # of 1, 2 or 3 turns
PAIRS = [Pair(TEXTS[n], TEXTS[n + 9], (TEXTS[n + 20],), "Find it", "") for n in range(4)]


def sft_stage(**fields) -> SftStage:
    return SftStage(objective="sft", **(COMMON | {"max_tokens": 100} | fields))


def grit_stage(weight: float = 1.0, **fields) -> GritStage:
    generation = GenerationSpec(data=DATA, batch_size=7, weight=weight, group=3, max_tokens=100)
    return GritStage(objective="grit", generation=generation, **(COMMON | {"loss": LossSpec(temperature=0.1)} | fields))


def dialogues(items: list[Dialogue], step: int = 0) -> RowBatch:
    return RowBatch(step, items, "dialogues", True)


def full_encoder() -> Encoder:
    encoder = make_encoder()
    encoder.backbone.train_everything(head=True)
    return encoder


# --------------------------------------------------------------------------------------------------- what is predicted


def predicted(batch) -> list[str]:
    """What is to be predicted in each dialogue, as text."""
    tokenizer = make_tokenizer()
    parts = batch.targets.split(batch.tokens.lengths.tolist())
    return [tokenizer.decode(part[part != -100], skip_special_tokens=False) for part in parts]


def collated(items: list[Dialogue], stage: SftStage | None = None):
    return sft.collate(dialogues(items), stage or sft_stage(), make_encoder().input_format, 0)


def test_responses_and_their_eos_are_predicted_and_nothing_else() -> None:
    one, two = Dialogue((("a river", "the mill"),)), Dialogue((("a", "b c"), ("", "d")))
    batch = collated([two, one])
    ids = batch.tokens.ids.split(batch.tokens.lengths.tolist())
    assert [make_tokenizer().decode(some, skip_special_tokens=False) for some in ids] == [
        "<|user|>\na\n<|assistant|>\nb c</s>\n<|user|>\n\n<|assistant|>\nd</s>",
        "<|user|>\na river\n<|assistant|>\nthe mill</s>",
    ]
    assert predicted(batch) == ["b c</s>d</s>", "the mill</s>"]
    assert batch.num_targets == (batch.targets != -100).sum() and batch.describe()["dialogues"].startswith("2 (")


def test_a_token_is_predicted_from_the_state_before_it_of_the_same_dialogue() -> None:
    batch = collated(DIALOGUES)
    for ids, pool, targets in zip(
        *(part.split(batch.tokens.lengths.tolist()) for part in (batch.tokens.ids, batch.tokens.pool, batch.targets)),
        strict=True,
    ):
        assert targets[-1] == -100
        for place in range(len(ids) - 1):
            assert targets[place] == (ids[place + 1] if pool[place + 1] else -100)


def test_bos_stands_where_the_tokenizer_puts_one_and_marks_are_the_recipes() -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    stage = sft_stage(user="", assistant=" => ", between=" | ")
    batch = sft.collate(dialogues([Dialogue((("a", "b"), ("c", "d")))]), stage, InputFormat(INPUT, tokenizer), 0)
    assert tokenizer.decode(batch.tokens.ids, skip_special_tokens=False) == "<s>a => b</s> | c => d</s>"


def test_what_is_cut_is_the_end_and_no_eos_is_predicted_behind_it() -> None:
    whole = collated(DIALOGUES)
    limit = int(whole.tokens.lengths.median())
    batch = collated(DIALOGUES, sft_stage(max_tokens=limit))
    assert batch.tokens.truncated.tolist() == (whole.tokens.lengths > limit).tolist()
    assert 0 < batch.tokens.truncated.sum() < len(DIALOGUES)
    splits = zip(*(b.tokens.ids.split(b.tokens.lengths.tolist()) for b in (batch, whole)), strict=True)
    assert all(torch.equal(short, long[:limit]) for short, long in splits)
    assert all(text in full and len(text) > 0 for text, full in zip(predicted(batch), predicted(whole), strict=True))


def test_prompts_beyond_the_limit_predict_nothing_and_a_batch_of_them_is_refused() -> None:
    long, short = Dialogue(((" ".join(TEXTS[:9]), "yes"),)), Dialogue((("a", "b"),))
    encoder, stage = full_encoder(), sft_stage(max_tokens=40)
    batch = sft.collate(dialogues([long, short]), stage, encoder.input_format, 0)
    assert predicted(batch) == ["", "b</s>"]
    assert sft.backward(encoder, batch, stage)["unanswered"].item() == 0.5
    with pytest.raises(ValueError, match="no response of 1 dialogues begins within 40 tokens"):
        sft.backward(encoder, sft.collate(dialogues([long]), stage, encoder.input_format, 0), stage)


# --------------------------------------------------------------------------------------------------- loss and gradient


def written_out(encoder: Encoder, batch, aggregation: str, group: int | None) -> torch.Tensor:
    """The loss by transformers' own causal model, one dialogue after another."""
    model = encoder.backbone.model
    model.set_attn_implementation("eager")
    model.config.is_causal = True
    lengths = batch.tokens.lengths.tolist()
    losses = []
    for ids, targets in zip(batch.tokens.ids.split(lengths), batch.targets.split(lengths), strict=True):
        logits = model(input_ids=ids[None]).logits[0].double()
        losses.append(F.cross_entropy(logits, targets, ignore_index=-100, reduction="none")[targets != -100])
    if aggregation == "token":
        return sum(some.sum() for some in losses) / len(losses)
    size = group or len(losses)
    groups = [torch.cat(losses[start : start + size]) for start in range(0, len(losses), size)]
    means = [some.mean() for some in groups if len(some)]
    return sum(means) / len(means)


@pytest.mark.parametrize(("aggregation", "group"), [("mixed", None), ("mixed", 3), ("mixed", 1), ("token", None)])
def test_loss_and_gradient_are_those_of_transformers(aggregation: str, group: int | None) -> None:
    stage = sft_stage(aggregation=aggregation, group=group)
    encoder, reference = full_encoder(), full_encoder()
    batch = sft.collate(dialogues(DIALOGUES), stage, encoder.input_format, 0)
    value = sft.backward(encoder, batch, stage)["loss"]
    expected = written_out(reference, batch, aggregation, group)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same(gradients(encoder), gradients(reference), 2e-5)


def test_a_group_without_a_response_in_reach_does_not_count() -> None:
    long = Dialogue(((" ".join(TEXTS[:9]), "yes"),))
    stage = sft_stage(group=2, max_tokens=60)
    encoder = full_encoder()
    batch = sft.collate(dialogues([long, long, *DIALOGUES[:3]]), stage, encoder.input_format, 0)
    value = sft.backward(encoder, batch, stage)["loss"]
    assert value.item() == pytest.approx(written_out(full_encoder(), batch, "mixed", 2).item(), rel=1e-5)


def test_groups_are_for_the_mixed_aggregation() -> None:
    with pytest.raises(ValueError, match="`group` is for `aggregation: mixed`"):
        DialogueFormat(aggregation="token", group=3)


def grit_run(encoder: Encoder, stage: GritStage):
    batch = grit.collate((RowBatch(0, PAIRS, "pairs", True), dialogues(DIALOGUES)), stage, encoder.input_format, 0)
    return grit.backward(encoder, batch, stage), gradients(encoder)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_grit_is_the_sum_of_its_halves(weight: float) -> None:
    stage, encoder = grit_stage(weight), full_encoder()
    metrics, found = grit_run(encoder, stage)
    pairs, written = stage.parts
    first = contrastive.collate(RowBatch(0, PAIRS, "pairs", True), pairs, encoder.input_format, 0)
    one = contrastive.backward(encoder, first, pairs)["loss"]
    expected = gradients(encoder)
    other = sft.backward(encoder, sft.collate(dialogues(DIALOGUES), written, encoder.input_format, 0), written)["loss"]
    for name, gradient in gradients(encoder).items():
        expected[name] = expected.get(name, 0) + weight * gradient
    assert_same(found, expected, 1e-6)
    assert metrics["loss"].item() == pytest.approx(one.item() + weight * other.item(), rel=1e-6)
    assert (metrics["loss_contrastive"], metrics["loss_generative"]) == (one, pytest.approx(other.item(), rel=1e-6))


@pytest.mark.parametrize("lora", [False, True])
def test_no_split_changes_the_gradient(lora: bool) -> None:
    encoder = make_encoder()
    if lora:
        encoder.backbone.add_lora(LoraSpec(r=4, dropout=0.0), seed=0)
    else:
        encoder.backbone.train_everything(head=True)
    encoder.train()
    metrics, expected = grit_run(encoder, grit_stage())
    for mini, rows in ((1, 3), (40, 1000), (10_000, 5)):
        generation = grit_stage().generation.model_copy(update={"logit_rows": rows})
        again, found = grit_run(
            encoder, grit_stage(micro_batch_tokens=mini).model_copy(update={"generation": generation})
        )
        assert again["loss"].item() == pytest.approx(metrics["loss"].item(), rel=1e-6)
        assert_same(found, expected, 2e-5)


# ------------------------------------------------------------------------------------------------------------ generator


def greedy(encoder: Encoder, ids: list[int], count: int) -> list[int]:
    """The next tokens by the trained model in memory."""
    with torch.no_grad():
        for _ in range(count):
            row = torch.tensor([ids])
            tokens = Tokens.from_blocks(row)
            ids = [*ids, int(encoder.backbone.logits(encoder.backbone.hidden(tokens, causal=True)[-1:]).argmax())]
    return ids[-count:]


@pytest.mark.parametrize("tied", [False, True])
def test_the_generator_writes_what_the_model_in_memory_writes(tied: bool, tmp_path: Path) -> None:
    encoder, form = make_encoder(tie_word_embeddings=tied), DialogueFormat()
    write_generator(encoder.backbone, encoder.input_format.tokenizer, tmp_path / "generator", form)
    assert encoder.backbone.config.is_causal is False  # the encoder stays one
    assert "is_causal" not in json.loads((tmp_path / "generator" / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "generator")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "generator")
    for text in TEXTS[:3]:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        ids = prompt["input_ids"]
        written = model.generate(
            torch.tensor([ids]), max_new_tokens=8, min_new_tokens=8, do_sample=False, eos_token_id=None
        )
        assert written[0, len(ids) :].tolist() == greedy(encoder, ids, 8)


def test_the_chat_template_writes_what_was_trained_on(tmp_path: Path) -> None:
    encoder, form = make_encoder(), DialogueFormat(user='<|user|>\né "', between="\n\n")
    write_generator(encoder.backbone, encoder.input_format.tokenizer, tmp_path / "generator", form)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "generator")
    for dialogue in DIALOGUES:
        messages = [
            {"role": role, "content": text} for turn in dialogue.turns for role, text in zip(ROLES, turn, strict=True)
        ]
        tokens = sft.pack([dialogue], form, encoder.input_format, 1000)
        assert tokenizer.apply_chat_template(messages)["input_ids"] == tokens.ids.tolist()
        said = [{"role": "system", "content": "Be brief."}, *messages]
        (asked, answered), *others = dialogue.turns
        first = replace(dialogue, turns=((f"Be brief.\n\n{asked}", answered), *others))
        tokens = sft.pack([first], form, encoder.input_format, 1000)
        assert tokenizer.apply_chat_template(said)["input_ids"] == tokens.ids.tolist()
        # What is generated from is the beginning of what was trained on.
        start = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
        assert start == sft.pack([dialogue], form, encoder.input_format, 1000).ids.tolist()[: len(start)]
