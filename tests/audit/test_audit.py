"""The data audit: every check on a planted fault and on clean data, its numbers against counting by hand."""

import io
import json
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from llm2enc import audit, cli
from llm2enc.audit import examine, targets
from llm2enc.audit.checks.balance import effective
from llm2enc.audit.checks.contamination import GRAM, NEAR, evaluation_texts, words_of
from llm2enc.audit.checks.duplicates import Batching, collision_rate
from llm2enc.audit.checks.languages import language_of
from llm2enc.audit.checks.lengths import InputView
from llm2enc.audit.checks.prefixes import common_prefix
from llm2enc.audit.checks.swapped import is_question
from llm2enc.audit.chunks import Reservoir, choose, chunks, keys_of, normalised
from llm2enc.audit.examination import AuditOptions, examine_rows
from llm2enc.audit.report import Finding, SourceReport
from llm2enc.audit.show import marked, seen
from llm2enc.cli import data as data_command
from llm2enc.data import Pair, Rows, ScoredPair, Stream, row_batches
from llm2enc.evaluation import ClassificationTask, RetrievalTask, StsTask
from llm2enc.recipe import FilesData, InputSpec, Part, load_recipe
from llm2enc.text import InputFormat
from tests.support.builders import INPUT, make_tokenizer, scores_file, sentences


def pair(query: str, positive: str, *negatives: str, extra: tuple[str, ...] = (), instruction: str = "") -> Pair:
    return Pair(query, positive, negatives, instruction, "", extra)


def clean(count: int = 120) -> list[Pair]:
    """Different short queries, longer positives, a negative each."""
    queries, first, second, wrong = (sentences(count, seed=seed) for seed in range(4))
    return [pair(q, f"{a} and {b}", f"{w} of it") for q, a, b, w in zip(queries, first, second, wrong, strict=True)]


def input_view(spec: InputSpec = INPUT, max_tokens: int | None = None) -> InputView:
    return InputView(InputFormat(spec, make_tokenizer()), max_tokens)


def look(rows: list, batch_size: int = 8, tasks: tuple = (), **options) -> SourceReport:
    evaluation = evaluation_texts(tasks) if tasks else None
    return examine_rows(rows, AuditOptions(Batching(batch_size), evaluation=evaluation, examples=0, **options))


def found(report: SourceReport, check: str) -> Finding:
    (finding,) = [finding for finding in report.findings if finding.check == check]
    return finding


def checks(report: SourceReport) -> set[str]:
    return {finding.check for finding in report.findings}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_clean_pairs_and_texts_have_no_findings() -> None:
    assert look(clean(), view=input_view()).findings == []
    assert look(sentences(100), view=input_view()).findings == []


# ---------------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("text", "check", "severity"),
    [
        ("   ", "empty-texts", "warning"),
        ("half \ud800 a sign", "lone-surrogates", "error"),
        ("caf\ufffd au lait", "replacement-characters", "warning"),
        ("cafÃ© au lait", "mojibake", "warning"),
        ("itâ€™s here", "mojibake", "warning"),
        ("a\x00b here", "control-characters", "note"),
        ("the <b>old</b> town", "html", "note"),
        ("wine &amp; wool", "html", "note"),
        ("-----------", "constant-texts", "warning"),
        ("spam " * 12, "constant-texts", "warning"),
    ],
)
def test_a_damaged_text_is_found_with_its_row(text: str, check: str, severity: str) -> None:
    rows = clean()
    rows[41] = pair(rows[41].query, text, *rows[41].negatives)
    finding = found(look(rows, view=input_view()), check)
    assert (finding.count, finding.total, finding.rows, finding.severity) == (1, 120, (42,), severity)


@pytest.mark.parametrize(
    "text", ["2 < 3 and 5 > 4", "AT&T; R&D", "São João, naïve café", "hm-hm", "a\tb\nc", "no no", "x" * 4]
)
def test_what_only_looks_like_damage_is_left_alone(text: str) -> None:
    rows = [*clean(), pair("the last one", text)]
    assert not checks(look(rows)) & {"html", "mojibake", "control-characters", "constant-texts"}


def test_cells_that_are_no_text_are_an_error_not_a_crash() -> None:
    report = look([*clean(20), pair("a number", 7), pair(None, "nothing")], view=input_view())  # type: ignore[arg-type]
    assert found(report, "not-text").rows == (21, 22) and found(report, "not-text").severity == "error"


# ---------------------------------------------------------------------------------------------------------------- pairs


def test_texts_are_equal_but_for_case_space_and_unicode_form() -> None:
    assert normalised("  Ｆｕｌｌ\u00a0WIDTH \n ﬁle ") == "full width file" == normalised("Full width FILE")
    assert len(set(keys_of(["Straße 1", "STRASSE  1", "straße 2"]).tolist())) == 2


def test_repeated_rows_and_texts_are_counted_once_each() -> None:
    rows = clean()
    again = [pair(rows[3].query.upper(), f" {rows[3].positive}")] * 2
    finding = found(look([*rows, *again]), "repeated-rows")
    assert (finding.count, finding.rows, finding.severity) == (2, (4, 121), "warning")
    texts = sentences(50)
    assert found(look([*texts, texts[7]]), "repeated-texts").rows == (8, 51)


def test_right_answers_among_negatives_are_found() -> None:
    rows = clean()
    rows[10] = pair(rows[10].query, rows[10].positive, "fine", rows[10].positive.upper())  # its own
    rows[20] = pair(rows[20].query, rows[20].positive, "one more", extra=("one more",))  # its own, a further one
    rows[30] = pair(rows[31].query, rows[30].positive, rows[31].positive)  # that of another row
    rows[40] = pair(rows[40].query, rows[40].positive, rows[40].query)  # the question
    rows[50] = pair(rows[50].query, rows[50].query)
    report = look(rows)
    assert found(report, "positive-among-negatives").rows == (11, 21)
    assert found(report, "positive-among-negatives").severity == "error"  # 2 of 121 negatives
    assert found(report, "answer-among-negatives").rows == (31,)
    assert found(report, "query-among-negatives").rows == (41,)
    assert found(report, "positive-is-query").rows == (51,)


def test_shared_texts_are_graded_by_what_the_stage_does_with_them() -> None:
    rows = [*clean(), *(pair(f"a question {n} for it", "one answer for all of these rows") for n in range(12))]
    assert found(look(rows), "shared-positive").severity == "warning"
    for answer in ({"mask_duplicates": True}, {"in_batch_negatives": False}, {"unique_ids": True}):
        batching = Batching(8, **answer)
        finding = found(examine_rows(rows, AuditOptions(batching)), "shared-positive")
        assert finding.severity == "note" and (finding.count, finding.total) == (12, 132)
    assert "shared-query" not in checks(look(rows))
    swapped = [pair(row.positive, row.query) for row in rows]
    assert found(look(swapped), "shared-query").count == 12


def test_fewer_rows_than_a_batch_is_an_error() -> None:
    assert found(look(clean(20), batch_size=32), "too-few-rows").severity == "error"


@pytest.mark.parametrize("counts", [(3, 1, 1, 2, 4), (2,) * 5, (1, 9), (5, 5, 1)])
def test_the_collision_rate_is_that_of_all_batches(counts: tuple[int, ...]) -> None:
    rows = [text for text, count in enumerate(counts) for _ in range(count)]
    for batch_size in range(1, 6):
        drawn = list(combinations(rows, batch_size))
        share = np.mean([np.mean([batch.count(text) > 1 for text in batch]) for batch in drawn])
        assert collision_rate(np.array(counts), batch_size) == pytest.approx(share, abs=1e-9)


def test_the_collision_rate_is_met_by_the_batches_of_training(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    positives = [f"answer {text}" for text in generator.zipf(1.7, size=160).clip(max=90)]
    rows = [{"query": f"question {row}", "positive": text} for row, text in enumerate(positives)]
    spec = FilesData(kind="files", path=str(write(tmp_path / "pairs.jsonl", rows)))
    batches = row_batches(Pair, [spec], 6, seed=0)
    drawn = [[row.positive for row in next(batches).rows] for _ in range(1500)]
    expected = collision_rate(np.array(list(Counter(positives).values())), 6)
    share = np.mean([np.mean([texts.count(text) > 1 for text in texts]) for texts in drawn])
    assert 0.02 < expected < 0.98
    # Four standard errors of independent batches; those of an epoch exclude each other, which spreads less.
    assert share == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 1500))


# -------------------------------------------------------------------------------------------------------------- columns


def _answered(count: int = 60) -> list[Pair]:
    return [
        pair(f"where does the {text} go?", " ".join([text] * 2 + ["which runs through the old town of stone"] * 3))
        for text in sentences(count)
    ]


def test_swapped_columns_are_found_by_length_and_by_questions() -> None:
    right = _answered()
    assert "swapped-columns" not in checks(look(right))
    finding = found(look([pair(row.positive, row.query) for row in right]), "swapped-columns")
    assert finding.severity == "error" and "questions" in finding.what and "longer" in finding.what
    plain = [pair(row.positive, row.query[10:-1].replace("go", "")) for row in right]  # long, but nobody asks
    assert found(look(plain), "swapped-columns").severity == "warning"


def test_pairs_of_one_kind_give_no_alarm_either_way() -> None:
    rows = [pair(f"the {a}", f"some {b}") for a, b in zip(sentences(80), sentences(80, seed=4), strict=True)]
    assert not {"swapped-columns"} & (checks(look(rows)) | checks(look([pair(r.positive, r.query) for r in rows])))
    chinese = [pair(f"the old bridge of stone number {n}", f"第{n}座古老的石头桥") for n in range(60)]
    assert "swapped-columns" not in checks(look(chinese))  # three times as many letters, but not longer


def test_questions_are_told_from_statements() -> None:
    assert all(
        map(is_question, ["Where is it", "is it here", "C'est où ?", "它在哪里？", "comment ça va", "He left. Why?"])
    )
    assert not any(map(is_question, ["It is here.", "Where it was, nobody knew.", "wheresoever", "", "?!."]))


# -------------------------------------------------------------------------------------------------------------- lengths


def test_lengths_and_truncation_are_those_of_the_packed_inputs() -> None:
    rows = [pair(q, p, instruction="find it") for q, p in zip(sentences(40), [" ".join(sentences(n)) for n in range(1, 41)],
                                                              strict=True)]  # fmt: skip
    given = input_view(max_tokens=24)
    lengths = look(rows, view=given).lengths
    free = InputFormat(INPUT.model_copy(update={"max_tokens": 10**6}), given.input_format.tokenizer)
    for side, role in (("query", "query"), ("positive", "document")):
        texts = [getattr(row, side) for row in rows]
        instruction = "find it" if role == "query" else ""
        cut = given.input_format.pack(texts, instruction, role, 24)
        whole = free.pack(texts, instruction, role)
        assert lengths[side]["truncated"] == int(cut.truncated.sum()) == int((whole.lengths > 24).sum())
        lost = 1 - cut.lengths.sum() / whole.lengths.sum()
        assert lengths[side]["tokens_lost_share"] == pytest.approx(float(lost))
        alone = [len(ids) for ids in given.input_format.plain_ids(texts)]
        assert lengths[side]["tokens"]["50%"] == np.median(alone) and lengths[side]["tokens"]["most"] == max(alone)
    assert lengths["positive"]["truncated"] > 0


def test_the_limit_that_truncation_asks_for_keeps_what_it_says() -> None:
    texts = [" ".join(sentences(n % 9 + 1)) for n in range(100)]
    remedy = found(look(texts, view=input_view(max_tokens=30)), "truncated").remedy
    limit, share = int(remedy.split()[1]), int(remedy.split()[4])
    wide = InputFormat(INPUT.model_copy(update={"max_tokens": limit}), make_tokenizer())
    assert limit > 30 and (~wide.pack(texts).truncated).float().mean() >= share / 100


def test_an_instruction_that_fills_the_input_is_an_error() -> None:
    rows = [pair(row.query, row.positive, instruction="find " * 80) for row in clean(30)]
    assert found(look(rows, view=input_view()), "no-room").severity == "error"


ECHO = InputSpec(
    query=(Part(special="bos"), Part(slot="instruction"), Part(literal=" Query:"), Part(slot="text", pool=True)),
    document=(
        Part(special="bos"),
        Part(literal="Text:"),
        Part(slot="text"),
        Part(literal=" Again:"),
        Part(slot="text", pool=True),
        Part(special="eos", pool=True),
    ),
    max_tokens=40,
)


@pytest.mark.parametrize("spec", [INPUT, ECHO])
@pytest.mark.parametrize("text", ["the old bridge", "naïve 日本 🙂 stone", "the mill " * 30, ""])
def test_what_is_shown_is_what_the_model_reads(spec: InputSpec, text: str) -> None:
    given = input_view(spec)
    for instruction, role in (("find it", "query"), ("", "document")):
        tokens = given.input_format.pack([text], instruction, role)
        view = seen(text, instruction, role, given)
        decoded = given.input_format.tokenizer.decode(tokens.ids, clean_up_tokenization_spaces=False)
        assert "".join(view["pieces"]) == decoded
        assert view["pooled"] == tokens.pool.tolist() and view["truncated"] == bool(tokens.truncated[0])
    assert marked({"pieces": ["<s>", "a", " b", "c"], "pooled": [False, True, True, False]}) == "<s>[a| b]c"


# ---------------------------------------------------------------------------------------------------- prefixes, balance


def test_a_prefix_is_the_longest_that_most_texts_share() -> None:
    texts = [f"query: {text}" for text in sentences(80)] + sentences(20, seed=5)
    assert common_prefix(texts) == "query: "
    brute = max((a[:n] for a in texts for n in range(len(a)) if sum(b.startswith(a[:n]) for b in texts) >= 80), key=len)
    assert brute == "query: "
    assert common_prefix(sentences(100)) == ""
    rows = [pair(f"query: {row.query}", row.positive) for row in clean()]
    assert found(look(rows), "shared-prefix").severity == "warning"


def test_what_the_template_adds_must_not_stand_in_the_text() -> None:
    rows = [pair(f"Query: the {q}", p, instruction="find the answer") for q, p in zip(sentences(40), sentences(40, 1),
                                                                                       strict=True)]  # fmt: skip
    assert found(look(rows, view=input_view(ECHO)), "literal-twice").severity == "error"
    rows[5] = pair("Find the answer: the river", rows[5].positive, instruction="find the answer")
    finding = found(look(rows, view=input_view()), "instruction-twice")
    assert (finding.count, finding.rows) == (1, (6,))


def test_instructions_out_of_proportion_and_unread_ones_are_named() -> None:
    assert effective(np.array([7, 7, 7, 0])) == pytest.approx(3.0)
    rows = [pair(row.query, row.positive, instruction="find it") for row in clean()]
    rows[8] = pair(rows[8].query, rows[8].positive)
    report = look(rows)
    assert found(report, "missing-instruction").rows == (9,) and found(report, "one-instruction").count == 119
    bare = INPUT.model_copy(update={"query": INPUT.document})
    assert found(look(rows, view=input_view(bare)), "unread-instruction").count == 119
    assert "unread-instruction" not in checks(look(rows, view=input_view()))


def test_class_labels_are_recognised_and_a_large_class_is_named() -> None:
    labels = ["joy"] * 80 + ["anger"] * 25 + ["fear"] * 15
    rows = [pair(row.query, label) for row, label in zip(clean(), labels, strict=True)]
    finding = found(look(rows), "labels")
    assert (finding.count, finding.severity) == (80, "warning") and "in_batch_negatives: false" in finding.remedy


# ------------------------------------------------------------------------------------------------------------ languages


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The boats bring wine to the market", "en"),
        ("Die Brücke wurde im Frühling aus Stein gebaut", "de"),
        ("Le pont de la vieille ville est en pierre", "fr"),
        ("El puente de la ciudad es muy viejo", "es"),
        ("Il ponte della città è molto vecchio", "it"),
        ("Мы были у старого моста", "ru"),
        ("Міст був збудований з каменю", "uk"),
        ("古い橋は石でできている", "ja"),
        ("这座旧桥是用石头建的 (Bridge)", "zh"),
        ("오래된 다리는 돌로 지어졌다", "ko"),
        ("Η γέφυρα είναι παλιά", "el"),
        ("الجسر القديم من الحجر", "ar"),
        ("12 + 30 = 42", "und"),
        ("", "und"),
        ("Xyzzy", "und"),
        ("half \ud800 a sign", "und"),
    ],
)
def test_a_language_is_detected_or_undetermined(text: str, language: str) -> None:
    assert language_of(text) == language


def test_a_few_texts_in_another_language_and_two_languages_are_noted() -> None:
    english = [f"the boats of the market bring wine to {text}" for text in sentences(95)]
    german = [f"die Brücke ist aus Stein und nicht aus Holz {n}" for n in range(95)]
    finding = found(look([*english, *german[:5]]), "minor-language")
    assert (finding.count, finding.rows) == (5, (96, 97))
    assert "two-languages" in checks(look([pair(a, b) for a, b in zip(english, german, strict=True)]))


# ------------------------------------------------------------------------------------------------------- contamination


def _task(texts: list[str]) -> StsTask:
    return StsTask(name="sts", first=texts, second=texts[:1] * len(texts), scores=np.arange(len(texts)))


def _long(count: int, words: int = 24, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(f"w{n}" for n in generator.integers(0, 5000, size=words)) for _ in range(count)]


def test_planted_evaluation_texts_are_found_exact_and_near() -> None:
    held_out = _long(50)
    rows = clean()
    assert look(rows, tasks=(_task(held_out),)).findings == []
    words = held_out[9].split()
    words[12] = "changed"
    rows[70] = pair(f"{held_out[4].upper()}!", rows[70].positive)  # word for word
    rows[80] = pair(rows[80].query, f"Once upon a time {' '.join(words)} and so on")  # one word of 24 changed
    finding = found(look(rows, tasks=(_task(held_out),)), "contamination")
    assert (finding.count, finding.total, finding.rows) == (2, 50, (71, 81))
    assert "1 word for word, 1 by half" in finding.what and finding.severity == "warning"


def test_a_near_text_is_found_as_sets_of_8_grams_say() -> None:
    """Against the definition in plain Python, for texts of many lengths with many words changed."""
    generator = np.random.default_rng(1)
    held_out = [text for size in (10, 15, 16, 18, 24, 40, 80) for text in _long(12, size, seed=size)]
    planted, expected = [], 0
    for text in held_out:
        words = np.array(text.split(), dtype=object)
        words[generator.choice(len(words), size=int(generator.integers(1, 5)), replace=False)] = "other"
        planted.append(" ".join(words))
    grams = {tuple(each[i : i + GRAM]) for each in map(words_of, planted) for i in range(len(each) - GRAM + 1)}
    for text in held_out:
        each = words_of(text)
        own = {tuple(each[i : i + GRAM]) for i in range(len(each) - GRAM + 1)}
        expected += len(each) >= 16 and len(own & grams) >= NEAR * len(own)
    task = ClassificationTask(name="c", train_texts=planted, train_labels=[], test_texts=held_out, test_labels=[])
    finding = found(look([pair(a, "an answer") for a in planted], tasks=(task,)), "contamination")
    assert finding.count == expected and 20 < expected < 70


def test_a_shared_corpus_weighs_less_than_shared_queries() -> None:
    documents = {str(n): text for n, text in enumerate(_long(40))}
    task = RetrievalTask(
        name="r", queries={"q": "who built the old bridge"}, documents=documents, qrels={"q": {"0": 1}}
    )
    corpus = [pair(row.query, documents[str(n)]) for n, row in enumerate(clean(10))]
    assert found(look(corpus, tasks=(task,)), "contamination").severity == "note"
    queries = [*clean(20), pair("Who built the old bridge?", "nobody knows")]
    assert found(look(queries, tasks=(task,)), "contamination").severity == "error"


def test_chinese_counts_by_signs() -> None:
    text = "这座旧桥是很久以前用附近山上的石头建成的它通向市场"
    assert len(words_of(text)) == len(text)
    finding = found(
        look([*clean(20), pair("桥", f"据说{text[:20]}的")], tasks=(_task([text, "别的"]),)), "contamination"
    )
    assert finding.rows == (21,)


# --------------------------------------------------------------------------------------------------------------- passes


def test_large_sources_are_sampled_and_say_so() -> None:
    rows = Rows("many", 5000, lambda positions: [f"text {position}" for position in positions])
    report = look(rows, limit=1000)
    assert report.rows == 1000 and "random sample of 1,000 of 5,000" in report.sampled
    chosen, _ = choose(rows, 1000)
    numbers = np.array([int(text.split()[1]) for text in chosen])
    assert (np.diff(numbers) > 0).all() and 2000 < numbers.mean() < 3000
    stream = Stream("stream", lambda: iter([rows]))
    assert "first 1,000 rows" in look(stream, limit=1000).sampled and look(stream, limit=9000).sampled == ""


def test_the_reservoir_takes_every_row_alike() -> None:
    drawn = Counter()
    for seed in range(300):
        reservoir = Reservoir(20)
        reservoir._generator = np.random.default_rng(seed)
        for chunk in chunks(iter(map(str, range(1, 2501)))):
            reservoir.add(chunk)
        numbers, sample = reservoir.chunk()
        assert sample.columns["text"].texts == list(map(str, numbers)) and len(numbers) == 20
        drawn.update(number // 500 for number in numbers)
    # 6000 draws over five ranges of 500 rows; five standard deviations
    assert all(abs(drawn[part] - 1200) < 5 * np.sqrt(6000 * 0.2 * 0.8) for part in range(5))


# ----------------------------------------------------------------------------------------------------- paths and recipes


def _recipe(folder: Path, sources: list[dict], **extra) -> dict:
    template = [{"special": "bos"}, {"slot": "text", "pool": True}]
    stage = {"objective": "contrastive", "data": sources, "steps": 2, "batch_size": 4, "lr": 1e-3}
    return {
        "name": "test",
        "model": {"name": "pocket"},
        "input": {"query": template, "document": template},
        "pooling": "mean",
        "stages": [stage],
        **extra,
    }


def _columns(rows: list[Pair]) -> dict[str, list[dict]]:
    """Rows in four formats, by file name."""
    return {
        "ours.jsonl": [{"query": r.query, "positive": r.positive, "negatives": list(r.negatives)} for r in rows],
        "st.jsonl": [{"anchor": r.query, "positive": r.positive} for r in rows],
        "flag.jsonl": [{"query": r.query, "pos": [r.positive], "neg": list(r.negatives)} for r in rows],
        "tevatron.jsonl": [
            {"query": r.query, "positive_passages": [{"docid": "1", "title": "", "text": r.positive}]} for r in rows
        ],
    }


@pytest.mark.parametrize("name", ["ours.jsonl", "st.jsonl", "flag.jsonl", "tevatron.jsonl"])
def test_the_data_block_of_a_recognised_file_fits_into_a_recipe(tmp_path: Path, name: str) -> None:
    import yaml

    path = write(tmp_path / name, _columns(clean(12))[name])
    (source,) = examine(str(path)).sources
    block = yaml.safe_load(source.recognised["block"])
    recipe = load_recipe(_recipe(tmp_path, block["data"]))
    again = examine(recipe=recipe).sources[0]
    assert again.rows == source.rows == 12 and again.recognised["format"] == source.recognised["format"]
    assert source.recognised["why"].startswith(("columns", "format", source.recognised["format"]))
    assert source.shown[0]["query"][0]["pieces"]


def test_texts_folders_and_beir_sets_are_read(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(sentences(30)))
    write(tmp_path / "pairs.jsonl", _columns(clean(12))["ours.jsonl"])
    report = examine(str(tmp_path))
    assert [(Path(s.name).name, s.stage, s.rows) for s in report.sources] == [
        ("pairs.jsonl", "contrastive", 12),
        ("texts.txt", "texts", 30),
    ]
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    write(beir / "corpus.jsonl", [{"_id": "d1", "title": "Bridges", "text": "of stone"}])
    write(beir / "queries.jsonl", [{"_id": "q1", "text": "which bridge"}])
    (beir / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    (source,) = examine(str(beir)).sources
    assert source.recognised["format"] == "beir" and source.rows == 1


def test_scores_are_shown_beside_the_texts(tmp_path: Path) -> None:
    rows = [
        {"query": r.query, "pos": [r.positive], "neg": ["no"], "pos_scores": [n / 10]} for n, r in enumerate(clean(9))
    ]
    rows[3]["pos_scores"] = None
    (source,) = examine(str(write(tmp_path / "flag.jsonl", rows))).sources
    assert source.stage == "contrastive"
    assert source.scores == {"positive": {"scores": 8, "least": 0.0, "median": 0.45, "most": 0.8}}
    assert found(source, "missing-scores").count == 1


def test_scored_pairs_are_examined_as_such(tmp_path: Path) -> None:
    rows = [{"sentence1": r.query, "sentence2": r.positive, "score": n % 5} for n, r in enumerate(clean(20))]
    (source,) = examine(str(write(tmp_path / "sts.jsonl", [*rows, rows[0]]))).sources
    assert (source.stage, source.rows, set(source.columns)) == ("scored pairs", 21, {"first", "second"})
    assert source.scores == {"pair": {"scores": 21, "least": 0.0, "median": 2.0, "most": 4.0}}
    assert "contrastive training takes every row for a match" in source.recognised["why"]
    assert found(source, "repeated-texts").rows == (1, 21) and list(source.shown[0]) == ["first", "second"]
    equal = [{**row, "score": 1} for row in rows]
    (source,) = examine(str(write(tmp_path / "equal.jsonl", equal))).sources
    assert found(source, "equal-scores").severity == "error"


def test_a_recipe_s_scored_pairs_are_read_as_its_stage_reads_them(tmp_path: Path) -> None:
    loss, data = {"pair_scores": [{"kind": "cosent"}]}, [{"kind": "files", "path": scores_file(tmp_path).path}]
    stage = {"objective": "pair_scores", "steps": 1, "batch_size": 4, "lr": 1e-3, "loss": loss, "data": data}
    (source,) = targets.of_recipe(load_recipe("pocket", [f"stages={json.dumps([stage])}"]))
    _, opened = targets.open_source(source)
    assert isinstance(opened.rows[0], ScoredPair) and len(opened.rows) == 24


def test_the_table_fits_a_narrow_terminal(tmp_path: Path) -> None:
    (source,) = examine(str(write(tmp_path / "pairs.jsonl", _columns(clean(20))["ours.jsonl"]))).sources
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(data_command._counts(source))
    shown = console.export_text()
    assert all(word in shown for word in ("positives", "negatives", "5/50/95 %", "distinct")) and "…" not in shown, (
        shown
    )


def test_a_stream_of_texts_alone_is_told_from_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a hub data set is read, whose columns are known before its rows."""
    write(tmp_path / "texts.jsonl", [{"passage": text} for text in sentences(30)])
    streamed = FilesData(kind="files", path=str(tmp_path / "texts.jsonl"), streaming=True)
    monkeypatch.setattr(targets, "_specs", lambda path: [streamed])
    (source,) = examine("owner/name").sources
    assert (source.stage, source.rows) == ("texts", 30)


def test_rows_that_training_leaves_out_are_counted(tmp_path: Path) -> None:
    rows = [*_columns(clean(20))["ours.jsonl"], {"query": " ", "positive": "an answer", "negatives": []}]
    (source,) = examine(str(write(tmp_path / "pairs.jsonl", rows))).sources
    assert source.rows == 20 and found(source, "left-out").count == 1


def test_a_recipe_is_examined_with_its_own_template_and_evaluation(tmp_path: Path) -> None:
    rows = clean(30)
    good = write(tmp_path / "good.jsonl", _columns(rows)["ours.jsonl"])
    bad = write(tmp_path / "bad.jsonl", [{"query": 3, "positive": 4}])
    task = tmp_path / "eval" / "Pairs"
    task.mkdir(parents=True)
    (task / "task.json").write_text(json.dumps({"type": "bitext"}))
    (task / "test.tsv").write_text(f"sentence1\tsentence2\n{rows[3].query}\tnothing like it at all\n")
    sources = [{"kind": "files", "path": str(path)} for path in (good, bad)]
    recipe = load_recipe(_recipe(tmp_path, sources, evaluation=[{"kind": "folder", "path": str(task.parent)}]))
    report = examine(recipe=recipe)
    assert "expected" in report.unreadable[str(bad)] and report.evaluation == {"Pairs": 2}
    finding = found(report.sources[0], "contamination")
    assert (finding.count, finding.total, finding.severity) == (1, 2, "error") and report.has_errors
    assert report.sources[0].measured_with == "template and tokenizer of recipe test"
    assert report.sources[0].shown[0]["query"][0]["pooled"][0] is False  # BOS, by the recipe's template


def test_a_source_that_crowds_out_the_others_is_noted(tmp_path: Path) -> None:
    rows = _columns(clean(120))["ours.jsonl"]
    sources = [{"kind": "files", "path": str(write(tmp_path / f"{size}.jsonl", rows[:size]))} for size in (120, 5, 5)]
    data = _recipe(tmp_path, sources)
    large, *small = examine(recipe=load_recipe(data)).sources
    assert "fills 92.3% of the stage's batches" in found(large, "one-source").what
    assert not any("one-source" in checks(source) for source in small)
    data["stages"][0]["mixture_alpha"] = 0.5
    assert "one-source" not in checks(examine(recipe=load_recipe(data)).sources[0])


def test_the_tokenizer_of_a_model_is_read_without_its_weights(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path / "model")
    path = write(tmp_path / "pairs.jsonl", _columns(clean(12))["ours.jsonl"])
    (source,) = examine(str(path), model=str(tmp_path / "model")).sources
    alone = [len(ids) for ids in InputFormat(INPUT, make_tokenizer()).plain_ids([row.query for row in clean(12)])]
    assert source.lengths["query"]["tokens"]["most"] == max(alone)


# --------------------------------------------------------------------------------------------------------- command line


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["llm2enc", "data", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_the_exit_code_says_what_was_found(tmp_path: Path, monkeypatch, capsys) -> None:
    good = write(tmp_path / "good.jsonl", _columns(clean(70))["ours.jsonl"])
    assert call(monkeypatch, good) == 0
    shown = capsys.readouterr().out
    assert "recognised:" in shown and "[<s>|" in shown and "- kind: files" in shown and "nothing found" in shown
    few = write(tmp_path / "few.jsonl", _columns(clean(5))["ours.jsonl"])
    assert call(monkeypatch, few, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["sources"][0]["findings"][0]["check"] == "too-few-rows"
    assert call(monkeypatch, tmp_path / "none.jsonl") == 2 and "no such file" in capsys.readouterr().err
    assert call(monkeypatch) == 2 and "--recipe" in capsys.readouterr().err


def test_damaged_texts_do_not_damage_the_report(tmp_path: Path, monkeypatch, capsys) -> None:
    rows = [*clean(70), pair("[bold]a\x1b[31m \x07 <b>", "an answer", instruction="[red]")]
    path = write(tmp_path / "odd.jsonl", [{"query": r.query, "positive": r.positive} for r in rows[::-1]])
    assert call(monkeypatch, path) == 0
    shown = capsys.readouterr().out
    assert "\x1b[31m" not in shown and "\\x1b" in shown


def test_ctrl_c_ends_with_130(tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "examine", interrupted)
    assert call(monkeypatch, tmp_path) == 130 and "Traceback" not in capsys.readouterr().err
