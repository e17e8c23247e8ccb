"""Frozen teachers: their answers, that no text is asked twice, and that neither interruption nor processes change a bit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer

from llm2enc import distributed
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError, Interrupted, NotFinite
from llm2enc.recipe import LossSpec, Stage, TeacherSpec
from llm2enc.training import check_stages, teachers, train
from llm2enc.training.teachers import Teachers, teacher_digest
from tests.support.builders import assert_same, make_encoder, make_model, make_tokenizer, sentences
from tests.support.teachers import write_bert, write_cross_encoder, write_encoder
from tests.training.test_trainer import interrupt, log, make_stage, stop_after, weights

TEXTS = sentences(7)
QUERIES, DOCUMENTS, OWNERS = [0, 3, 5], [1, 2, 4, 6], [0, 0, 1, 2]  # q p n | q p | q p
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cross_encoder(tmp_path_factory.mktemp("ranker"))


def encoder(folder: Path, **fields: str) -> TeacherSpec:
    return TeacherSpec(model=str(folder), **fields)  # pyright: ignore[reportArgumentType]


def cross_encoder(folder: Path) -> TeacherSpec:
    return TeacherSpec(model=str(folder), kind="cross_encoder")


def lesson(asked: Teachers, spec: TeacherSpec, texts: list[str] = TEXTS, step: int = 0) -> teachers.Lesson:
    return asked.lessons(texts, QUERIES, DOCUMENTS, OWNERS, step, CPU)[spec]


def test_vectors_are_the_teachers_own_under_its_own_prompts(bert: Path) -> None:
    spec, plain = encoder(bert, document_prompt="other"), SentenceTransformer(str(bert))
    found = lesson(Teachers([spec]), spec)
    expected = np.stack(
        [plain.encode(text, prompt_name="query" if place in QUERIES else "other") for place, text in enumerate(TEXTS)]
    )
    assert found.vectors is not None
    np.testing.assert_allclose(found.vectors, expected, atol=2e-6)
    cosines = torch.cosine_similarity(found.vectors[[0, 0, 3, 5]], found.vectors[[1, 2, 4, 6]])
    assert torch.equal(found.scores, cosines)


def test_an_encoder_of_ours_reads_its_own_templates(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "teacher")
    spec = TeacherSpec(model=str(tmp_path / "teacher"), query_prompt="search")
    found = lesson(Teachers([spec]), spec).vectors
    assert found is not None
    queries = encoder.encode([TEXTS[0], TEXTS[3], TEXTS[5]], instruction="Find the answer")
    np.testing.assert_allclose(found[QUERIES], queries, atol=2e-6)


def test_a_cross_encoder_gives_raw_scores_of_each_document_with_its_query(ranker: Path) -> None:
    spec, plain = cross_encoder(ranker), CrossEncoder(str(ranker))
    found = lesson(Teachers([spec]), spec)
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[0], TEXTS[2]), (TEXTS[3], TEXTS[4]), (TEXTS[5], TEXTS[6])]
    expected = plain.predict(pairs, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(found.scores, expected, atol=2e-6)
    assert found.vectors is None and np.ptp(expected) > 0.1


def test_no_text_is_asked_twice(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    make = teachers._encoder
    monkeypatch.setattr(teachers, "_encoder", lambda spec: lambda items: seen.extend(items) or make(spec)(items))
    spec = encoder(bert)
    asked = Teachers([spec, spec])
    seen.clear()
    first = lesson(asked, spec, [*TEXTS[:6], TEXTS[1]])
    assert len(seen) == 6  # the last document is the first one again
    again = lesson(asked, spec, [*TEXTS[:4], TEXTS[6], *TEXTS[5:]], step=1)
    assert seen[6:] == [("document", TEXTS[6])]
    assert torch.equal(first.vectors[:4], again.vectors[:4])
    lesson(asked, spec, TEXTS[::-1], step=2)  # documents that were queries are read with another prompt
    assert len(seen) == len(set(seen))


def batches() -> list[list[str]]:
    """Batches that share texts, so that what is new in one depends on those before it."""
    texts = sentences(20, seed=2)
    return [texts[start : start + 7] for start in (0, 3, 5, 9, 13, 2)]


def test_a_resumed_run_knows_what_was_known_and_goes_on_bit_for_bit(bert: Path, tmp_path: Path, monkeypatch) -> None:
    """Interrupted in step 4, after the checkpoint before step 3: what was said since is said again, in the same company."""
    monkeypatch.setattr(teachers, "PIECE", 3)
    spec = encoder(bert)
    whole = Teachers([spec])
    expected = [lesson(whole, spec, texts, step).vectors for step, texts in enumerate(batches())]
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    cut = Teachers([spec])
    for step in range(5):
        lesson(cut, spec, batches()[step], step)
        if step in (2, 4):
            cut.save(tmp_path / "cut")
    resumed = Teachers([spec])
    resumed.resume(tmp_path / "cut", 3)
    found = [lesson(resumed, spec, batches()[step], step).vectors for step in range(3, 6)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected[3:], strict=True))
    whole.save(tmp_path / "whole")
    resumed.save(tmp_path / "cut")
    files = [(tmp_path / name / "teacher-0.answers").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1] and len(files[0]) % (16 + 4 + 4 * 32) == 0


def test_a_run_that_starts_over_forgets(bert: Path, tmp_path: Path) -> None:
    spec = encoder(bert)
    asked = Teachers([spec])
    lesson(asked, spec)
    asked.save(tmp_path)
    Teachers([spec]).resume(tmp_path, 0)
    assert (tmp_path / "teacher-0.answers").stat().st_size == 0


def test_answers_that_are_missing_beside_a_checkpoint(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"teacher-0\.answers is missing: .* start again with --overwrite"):
        Teachers([encoder(bert)]).resume(tmp_path, 3)


def test_processes_share_the_pieces_out_and_all_know_the_same(bert: Path, monkeypatch) -> None:
    """Three processes, one after the other: each encodes its pieces, and a stand-in for `gather` hands out the others'."""
    monkeypatch.setattr(teachers, "PIECE", 2)
    spec = encoder(bert)
    alone = lesson(Teachers([spec]), spec).vectors
    shares: dict[int, torch.Tensor] = {}
    real = distributed.rank_slice
    for process in range(3):
        asked = Teachers([spec])
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "world_size", lambda: 3)
            patch.setattr("llm2enc.distributed.collectives.world_size", lambda: 3)
            patch.setattr(
                distributed, "rank_slice", lambda count, who=None, me=process: real(count, me if who is None else who)
            )

            def gather(rows: torch.Tensor, counts: list[int], me: int = process) -> torch.Tensor:
                assert len(rows) == counts[me] and sum(counts) == 7
                shares[me] = rows
                return torch.cat([shares.get(other, torch.zeros(count, 32)) for other, count in enumerate(counts)])

            patch.setattr(distributed, "gather", gather)
            found = lesson(asked, spec).vectors
    assert sorted(shares) == [0, 1, 2] and torch.equal(found, alone)


def distilling(folder: Path, bert: Path, ranker: Path) -> Stage:
    """A stage that asks an encoder through a projection, and a cross-encoder."""
    loss = {
        "weight": 0.2,
        "temperature": 0.2,
        "soft_labels": {"kind": "kl", "teacher": {"model": str(ranker), "kind": "cross_encoder"}},
        "embedding_match": {"teacher": {"model": str(bert)}, "distance": "l2", "projection": True},
    }
    return make_stage("contrastive", folder, loss=LossSpec.model_validate_json(json.dumps(loss)), save_every=2)


def test_a_stage_with_teachers_resumes_to_the_bit_and_throws_its_projection_away(
    bert: Path, ranker: Path, tmp_path: Path
) -> None:
    stage = distilling(tmp_path, bert, ranker)
    whole, parts = make_encoder(), make_encoder()
    train(whole, stage, tmp_path / "whole", seed=3)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="after step 3 of 6"):
        stop_after(patch, 3, interrupt)
        train(parts, stage, tmp_path / "parts", seed=3)
    saved = load_file(tmp_path / "parts" / "checkpoint" / "trained.safetensors")
    assert saved["auxiliary.projection.weight"].shape == (32, 32)
    assert sorted(file.name for file in (tmp_path / "parts").glob("*.answers")) == [
        "teacher-0.answers",
        "teacher-1.answers",
    ]
    parts = make_encoder()
    train(parts, stage, tmp_path / "parts", seed=3)
    assert_same(weights(parts), weights(whole))
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    losses = [line["embedding_match"] for line in log(tmp_path / "whole")]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert not list((tmp_path / "parts").glob("*.answers")) and "auxiliary" not in " ".join(weights(parts))


def test_a_resumed_stage_asks_the_teacher_it_was_begun_with_or_stops(bert: Path, ranker: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "teacher")
    stage = distilling(tmp_path, tmp_path / "teacher", ranker)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 3, interrupt)
        train(make_encoder(), stage, tmp_path / "run", seed=3)
    shutil.copytree(write_encoder(tmp_path / "other", seed=1), tmp_path / "teacher", dirs_exist_ok=True)
    with pytest.raises(InputError, match=f"begun with other contents of: teacher {tmp_path}/teacher. To go on"):
        train(make_encoder(), stage, tmp_path / "run", seed=3)


def test_teachers_are_opened_before_anything_is_trained(bert: Path, ranker: Path, tmp_path: Path) -> None:
    fine = distilling(tmp_path, bert, ranker)
    check_stages(make_encoder(), [fine])
    with pytest.raises(InputError, match="no such directory"):
        check_stages(make_encoder(), [fine, distilling(tmp_path, tmp_path / "nowhere", ranker)])
    match = {"teacher": {"model": str(bert)}, "distance": "l2"}
    loss = LossSpec.model_validate_json(json.dumps({"embedding_match": match}))
    narrow = make_encoder(hidden_size=16, num_attention_heads=2)
    with pytest.raises(InputError, match=r"have 32 numbers, ours 16; set `projection: true`"):
        check_stages(narrow, [make_stage("contrastive", tmp_path, loss=loss)])


def test_an_answer_that_is_no_number_names_the_text(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = encoder(bert)
    asked = Teachers([spec])
    answer = np.full((7, 32), np.nan, np.float32)
    monkeypatch.setattr(asked._opened[spec], "_answer", lambda items: answer[: len(items)])
    with pytest.raises(NotFinite, match=f"the teacher {bert} answers '.*' with what is no number"):
        lesson(asked, spec)


def test_what_cannot_be_a_teacher_is_refused(bert: Path, ranker: Path, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "causal")
    make_tokenizer().save_pretrained(tmp_path / "causal")
    pairs = write_bert(tmp_path / "plain")
    classes = write_cross_encoder(tmp_path / "classes", labels=3)
    for spec, message in [
        (encoder(tmp_path / "nowhere"), "no such directory"),
        (encoder(tmp_path / "causal"), "holds no encoder"),
        (encoder(bert, query_prompt="passage"), "no prompt named 'passage'; it has query, document, other"),
        (cross_encoder(tmp_path / "nowhere"), "teacher .* cannot be used"),
        (cross_encoder(pairs), "has no layer that scores a pair"),
        (cross_encoder(bert), "has no layer that scores a pair"),
        (cross_encoder(classes), "returns 3 numbers a pair"),
    ]:
        with pytest.raises(InputError, match=message):
            Teachers([spec])


def test_a_digest_changes_with_the_files_but_for_the_card(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("Another card.")
    digests = [teacher_digest(encoder(folder)) for folder in (bert, tmp_path / "copy", tmp_path / "copy")]
    assert len(set(digests)) == 1
    (tmp_path / "copy" / "modules.json").write_text("[]")
    assert teacher_digest(encoder(tmp_path / "copy")) != digests[0]
    with pytest.raises(InputError, match="cannot be used"):
        teacher_digest(encoder(Path("nobody/nothing")))
