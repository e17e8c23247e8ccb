"""RetroMAE: its masks, what a row of the decoder sees, and loss and gradient against the method written out text by text."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llm2enc.data import RowBatch
from llm2enc.encoding import Encoder
from llm2enc.recipe import FilesData, LoraSpec, RetromaeStage
from llm2enc.training import Teachers, train
from llm2enc.training.objectives import mntp, retromae
from llm2enc.training.objectives.enhanced_decoder import HEAD, EnhancedDecoder
from tests.support.builders import assert_same, gradients, make_encoder, sentences, texts_file

COMMON = {"steps": 1, "batch_size": 7, "lr": 1e-3, "precision": "float32"}


def make_stage(**fields) -> RetromaeStage:
    data = (FilesData(kind="files", path="unused.txt"),)
    return RetromaeStage(objective="retromae", **({"data": data} | COMMON | fields))


def collated(texts: list[str], encoder: Encoder | None = None, step: int = 0, **fields):
    input_format = (encoder or make_encoder()).input_format
    return retromae.collate(RowBatch(step, texts, "here", True), make_stage(**fields), input_format, 0)


def make_encoder_with_decoder(lora: bool = False, pooling: str = "mean") -> Encoder:
    encoder = make_encoder(pooling=pooling)
    if lora:
        encoder.backbone.add_lora(LoraSpec(r=4, dropout=0.0), seed=0)
        with torch.no_grad():  # a fresh B is zero, and so would be the gradient of A
            for parameter in encoder.backbone.trained().values():
                parameter.add_(0.02)
    else:
        encoder.backbone.train_everything(head=True)
    encoder.auxiliary = nn.ModuleDict(retromae.auxiliary(encoder, make_stage(), Teachers(()), 0))
    return encoder.train()


# ---------------------------------------------------------------------------------------------------------------- masks


def test_masks_of_the_decoder() -> None:
    plain = np.ones(60, dtype=bool)
    plain[[0, 59]] = False
    masks = np.stack([retromae.decoder_mask(plain, 0.3, np.random.default_rng(seed)) for seed in range(40)])
    assert masks.shape == (40, 60, 61) and masks[:, :, 0].all()
    own, seen = np.eye(60, dtype=bool), masks[:, :, 1:]
    assert not seen[:, own].any()
    others = ~own & plain
    assert seen[:, ~own & ~plain].all()
    share, count = seen[:, others].mean(), 40 * others.sum()
    assert abs(share - 0.7) < 3 * (0.3 * 0.7 / count) ** 0.5
    rows = seen[0][:, 1:59]
    assert len({row.tobytes() for row in rows}) == 60  # each row draws its own
    assert not np.array_equal(masks[0], masks[1])


def test_what_is_masked_and_what_is_named() -> None:
    texts = sentences(60)
    batch, encoder = collated(texts, mask_policy="all"), make_encoder()
    hidden = mntp.mask_id(encoder.input_format.tokenizer, "blank")
    lengths = batch.tokens.lengths.tolist()
    masked = 0
    parts = (batch.tokens.ids, batch.clean, batch.masked, batch.named)
    for inputs, clean, targets, named in zip(*(part.split(lengths) for part in parts), strict=True):
        assert clean[0] == 0 and named[0] == -100 and torch.equal(named[1:], clean[1:])  # all but BOS
        changed = inputs != clean
        assert not changed[0] and (inputs[changed] == hidden).all() and changed.any()
        assert targets[-1] == -100 and torch.equal(targets[:-1], torch.where(changed[1:], clean[1:], -100))
        masked += int(changed.sum())
    assert torch.equal(batch.clean, encoder.input_format.pack(texts).ids)
    count = len(batch.clean) - len(texts)
    assert abs(masked / count - 0.3) < 4 * (0.21 / count) ** 0.5


def test_noise_is_that_of_the_row_and_the_step() -> None:
    texts = sentences(5)
    one, again, other = (collated(texts, step=step) for step in (0, 0, 1))
    assert torch.equal(one.tokens.ids, again.tokens.ids) and not torch.equal(one.tokens.ids, other.tokens.ids)
    assert all(map(torch.equal, one.visible, again.visible)) and not any(map(torch.equal, one.visible, other.visible))
    fewer = collated(texts[:2])  # as another process would have them
    assert torch.equal(fewer.tokens.ids, one.tokens.ids[: len(fewer.tokens.ids)])
    assert all(map(torch.equal, fewer.visible, one.visible[:2]))


def test_a_batch_without_words_is_refused() -> None:
    encoder = make_encoder_with_decoder()
    with pytest.raises(ValueError, match="nothing to mask"):
        retromae.backward(encoder, collated(["", ""]), make_stage())


# -------------------------------------------------------------------------------------------------------------- decoder


def decoder_and_inputs(length: int = 9) -> tuple[EnhancedDecoder, torch.Tensor, torch.Tensor, torch.Tensor]:
    decoder = EnhancedDecoder(2 * HEAD, seed=0).double()
    with torch.no_grad():
        for parameter in decoder.parameters():  # so that attention is not flat, and norms are not ones
            parameter.mul_(2 + torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)))
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(2, 2 * HEAD, dtype=torch.float64, generator=generator)
    embeddings = torch.randn(2, length, 2 * HEAD, dtype=torch.float64, generator=generator)
    plain = np.array([False, *[True] * (length - 1)])
    masks = [torch.from_numpy(retromae.decoder_mask(plain, 0.5, np.random.default_rng(n))) for n in range(2)]
    return decoder, vectors, embeddings, torch.stack(masks)


def test_no_row_sees_its_own_token() -> None:
    """The key and value of a token, not its embedding, are changed: the head that names it may be the same matrix."""
    decoder, vectors, embeddings, visible = decoder_and_inputs()
    before = decoder(vectors, embeddings, visible)
    for place in range(9):
        changed = embeddings.clone()
        changed[:, place] += 1
        after = decoder(vectors, changed, visible)
        same = (after == before).all(-1)
        assert torch.equal(same, ~visible[:, :, 1 + place]) and same[:, place].all()
    assert ((decoder(vectors + 1, embeddings, visible) - before).abs().amax(-1) > 1e-3).all()


def written_out(decoder: EnhancedDecoder, vector: torch.Tensor, embeddings: torch.Tensor, visible: torch.Tensor):
    """The layer, one row, head and column after another."""

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean() + 1e-6).sqrt() * weight

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        half = HEAD // 2
        numbers = torch.complex(x[:half], x[half:])
        angles = position * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        found = numbers * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([found.real, found.imag])

    columns = [norm(column, decoder.key_norm.weight) for column in (vector, *embeddings)]
    rows = []
    for row in range(len(embeddings)):
        found = []
        for head in range(decoder.heads):
            part = slice(head * HEAD, (head + 1) * HEAD)
            asked = turned(decoder.query.weight[part] @ norm(vector, decoder.query_norm.weight), row + 1)
            seen = [n for n in range(len(columns)) if visible[row, n]]
            keys = [turned(decoder.key.weight[part] @ columns[n], n) for n in seen]
            shares = torch.softmax(torch.stack([asked @ key for key in keys]) / HEAD**0.5, 0)
            values = [decoder.value.weight[part] @ columns[n] for n in seen]
            found.append(sum(share * value for share, value in zip(shares, values, strict=True)))
        state = vector + decoder.output.weight @ torch.cat(found)
        state = state + decoder.down.weight @ F.gelu(decoder.up.weight @ norm(state, decoder.hidden_norm.weight))
        rows.append(norm(state, decoder.final_norm.weight))
    return torch.stack(rows)


def test_the_layer_is_the_formula() -> None:
    decoder, vectors, embeddings, visible = decoder_and_inputs()
    found = decoder(vectors, embeddings, visible)
    given = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (found * given).sum().backward()
    kept = gradients(decoder)
    expected = torch.stack([written_out(decoder, *one) for one in zip(vectors, embeddings, visible, strict=True)])
    (expected * given).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # angles are made in float32
    assert_same(kept, gradients(decoder), 1e-5)


def test_the_layer_is_that_of_its_seed() -> None:
    one, same, other = (EnhancedDecoder(32, seed).state_dict() for seed in (0, 0, 1))
    assert_same(one, same)
    assert not torch.equal(one["query.weight"], other["query.weight"])
    assert one["up.weight"].std().item() == pytest.approx(0.02, rel=0.05)


# --------------------------------------------------------------------------------------------------- loss and gradient


def run(encoder: Encoder, texts: list[str], **fields):
    batch = collated(texts, encoder, **fields)
    return batch, retromae.backward(encoder, batch, make_stage(**fields)), gradients(encoder)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("lora", [False, True])
def test_loss_and_gradient_text_by_text(lora: bool, pooling: str) -> None:
    """Each text alone: its states, its vector, and what the head makes of both; means over all tokens of each kind."""
    encoder = make_encoder_with_decoder(lora, pooling)
    batch, metrics, found = run(encoder, sentences(7))
    lengths = batch.tokens.lengths.tolist()
    masked, named, starts = [], [], np.cumsum([0, *lengths])
    for row, (start, end) in enumerate(pairwise(starts)):
        tokens = batch.tokens.select(torch.tensor([row]))
        states = encoder.backbone.hidden(tokens, causal=False)
        vector = states[-1] if pooling == "last" else states[1:].mean(0)  # BOS is not pooled
        embeddings = encoder.backbone.model.get_input_embeddings()(batch.clean[start:end])
        rebuilt = encoder.auxiliary["decoder"](vector[None], embeddings[None], batch.visible[row][None])[0]
        for losses, hidden, targets in ((masked, states, batch.masked), (named, rebuilt, batch.named)):
            kept = targets[start:end] != -100
            logits = encoder.backbone.logits(hidden[kept])
            losses.append(F.cross_entropy(logits, targets[start:end][kept], reduction="none"))
    one, other = torch.cat(masked).mean(), torch.cat(named).mean()
    (one + other).backward()
    assert metrics["loss_masked"].item() == pytest.approx(one.item(), rel=1e-5)
    assert metrics["loss_decoder"].item() == pytest.approx(other.item(), rel=1e-5)
    assert metrics["loss"].item() == pytest.approx((one + other).item(), rel=1e-5)
    assert_same(found, gradients(encoder), 2e-5)
    assert all(f"auxiliary.{name}" in found for name, _ in encoder.auxiliary.named_parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_split_changes_the_gradient(checkpointing: bool) -> None:
    encoder = make_encoder_with_decoder()
    encoder.backbone.set_gradient_checkpointing(checkpointing)
    _, metrics, expected = run(encoder, sentences(7))
    for mini, rows in ((1, 3), (30, 1000), (60, 1)):
        _, again, found = run(encoder, sentences(7), micro_batch_tokens=mini, logit_rows=rows)
        assert again["loss"].item() == pytest.approx(metrics["loss"].item(), rel=1e-6)
        assert_same(found, expected, 2e-5)


def test_padding_is_not_seen() -> None:
    """A short text decodes alike alone and beside a long one."""
    encoder = make_encoder_with_decoder()
    batch = collated(["a", " ".join(sentences(3))], encoder)
    clean, hidden = replace(batch.tokens, ids=batch.clean), torch.randn(len(batch.clean), encoder.backbone.width)
    both = retromae.decode(encoder, hidden, clean, batch.visible)
    states = hidden.split(clean.lengths.tolist())
    alone = [
        retromae.decode(encoder, states[n], clean.select(torch.tensor([n])), batch.visible[n : n + 1]) for n in (0, 1)
    ]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_the_decoder_is_thrown_away(tmp_path: Path) -> None:
    encoder = make_encoder()
    stage = make_stage(data=(texts_file(tmp_path),), trainable="full", steps=2)
    train(encoder, stage, tmp_path / "run", seed=0)
    assert not encoder.auxiliary
    assert not any("auxiliary" in name for name, _ in encoder.named_parameters())
