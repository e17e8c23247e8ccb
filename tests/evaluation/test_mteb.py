"""Our scores are mteb's: the same tasks by its evaluators. And mteb asks our encoders for the right things, once."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from llm2enc.evaluation import (
    BitextTask,
    ClassificationTask,
    PairClassificationTask,
    RerankingTask,
    RetrievalTask,
    StsTask,
    Task,
    TaskResult,
    mteb_tasks,
    score,
)
from llm2enc.evaluation.mteb_adapter import Failure, MtebEncoder, run_mteb
from llm2enc.evaluation.mteb_local import local_task
from llm2enc.evaluation.tasks import ClusteringTask, SummarizationTask
from tests.support.builders import make_encoder, sentences

mteb = pytest.importorskip("mteb")

QUERY, DOCUMENT = {"prompt_name": "query"}, {"prompt_name": "document"}
# Our metrics, and mteb's name of each.
SHARED = {
    "sts": {"spearman": "cosine_spearman", "pearson": "cosine_pearson"},
    "pair_classification": {"average_precision": "cosine_ap"},
    "bitext": {"f1": "f1", "accuracy": "accuracy"},
    "classification": {"accuracy": "accuracy", "f1": "f1"},
    "clustering": {"v_measure": "v_measure"},
    "reranking": {"map": "map_at_1000", "mrr": "mrr_at_1000", "ndcg@10": "ndcg_at_10"},
    "retrieval": {
        **{f"{ours}@{k}": f"{theirs}_at_{k}" for ours, theirs in (("ndcg", "ndcg"), ("recall", "recall"),
                                                                  ("accuracy", "hit_rate")) for k in (1, 10, 100)},
        "map": "map_at_1000",
        "mrr": "mrr_at_1000",
    },
    "summarization": {"spearman": "cosine_spearman"},
}  # fmt: skip
TOLERANCE = {"reranking": 6e-6, "retrieval": 6e-6}  # mteb rounds these to five digits


class Words:
    """A text is the sum of its words' fixed random vectors, so that texts which share words are alike."""

    def __init__(self):
        self.calls: list[tuple[list[str], dict[str, str]]] = []

    def encode(self, texts, **asked):
        self.calls.append((list(texts), asked))
        return np.stack([sum(map(self.vector, text.split())) for text in texts]).astype(np.float32)

    @staticmethod
    def vector(word: str) -> np.ndarray:
        return np.random.default_rng(zlib.crc32(word.encode())).normal(size=24)


class Signs(Words):
    """A text is 64 signs: every cosine is a multiple of 1/32 and exact in float32, so that equal ones are equal bits."""

    def encode(self, texts, **asked):
        self.calls.append((list(texts), asked))
        return np.stack([np.sign(np.random.default_rng(zlib.crc32(t.encode())).normal(size=64)) for t in texts]).astype(
            np.float32
        )


def texts(count: int, seed: int, copies: bool = True) -> list[str]:
    """Texts of few words. Copies: every seventh is a copy of the third."""
    found = sentences(count, seed)
    return [found[2] if copies and row % 7 == 6 else text for row, text in enumerate(found)]


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def two_sides(copies: bool) -> tuple[list[str], list[str]]:
    """Sixty pairs of texts. Copies: of every third pair both texts are one."""
    first, second = texts(60, 1, copies), texts(60, 2, copies)
    return first, [first[row] if copies and row % 3 == 1 else text for row, text in enumerate(second)]


def sts(copies: bool = True) -> StsTask:
    first, second = two_sides(copies)
    return StsTask(name="sts", first=first, second=second, scores=random().integers(0, 6, 60).astype(float))


def pair_classification(copies: bool = True) -> PairClassificationTask:
    first, second = two_sides(copies)
    labels = random().integers(0, 2, 60).astype(bool)
    return PairClassificationTask(name="pairs", first=first, second=second, labels=labels)


def bitext(copies: bool = True) -> BitextTask:
    """Translations keep two words, so that some are found; copied sentences find one translation only."""
    first = texts(50, 1, copies=False)
    second = [" ".join(text.split()[-2:]) for text in first]
    more = first[:5] if copies else []
    return BitextTask(
        name="bitext", first=first + more, second=second + sentences(5, 9)[: len(more)], language="cmn-eng"
    )


def labelled(count: int, seed: int, copies: bool) -> tuple[list[str], list[str]]:
    labels = random(seed).choice(["ten", "two", "zwei"], count, p=[0.5, 0.3, 0.2]).tolist()
    return [f"{text} {label}" for text, label in zip(texts(count, seed, copies), labels, strict=True)], labels


def classification(copies: bool = True) -> ClassificationTask:
    (train, train_labels), (test, test_labels) = labelled(40, 3, copies), labelled(60, 4, copies)
    return ClassificationTask(
        name="labels", train_texts=train, train_labels=train_labels, test_texts=test, test_labels=test_labels
    )


def reranking(copies: bool = True) -> RerankingTask:
    """More than ten candidates each, and a query without a positive. Copies: texts that are positive and negative."""
    pool, sizes = texts(400, 5, copies), random(6).integers(1, 5, 20).tolist()
    positives = [pool[20 * row : 20 * row + size] for row, size in enumerate(sizes)]
    both = [texts[:1] if copies else [] for texts in positives]
    negatives = [pool[20 * row + size : 20 * row + 18] + both[row] for row, size in enumerate(sizes)]
    queries = texts(20, 8, copies)
    return RerankingTask(name="rerank", queries=queries, positives=[*positives[:-1], []], negatives=negatives)


def retrieval(copies: bool = True) -> RetrievalTask:
    """Graded judgements, also 0 and of documents that are not there; ids that sort as text, not as numbers."""
    generator = random(7)
    documents = {str(row): text for row, text in enumerate(texts(150, 5, copies))}
    queries = {f"q{row}": text for row, text in enumerate(texts(25, 8, copies))}
    judged = {
        query: {"none": 0}
        | {str(d): int(generator.integers(0, 3)) for d in generator.choice(150, 6, replace=False)}
        | {str(generator.integers(150)): 1}
        for query in queries
    }
    return RetrievalTask(name="search", queries=queries, documents=documents, qrels=judged, instruction="Find it")


def arguments(copies: bool = True) -> RetrievalTask:
    """Documents that ask, as in ArguAna; one with nothing but 0, one whose answers are partly, one whose are all absent."""
    generator = random(9)
    documents = {str(row): text for row, text in enumerate(texts(150, 5, copies))}
    qrels = {str(row): {str(d): 1 for d in generator.choice(np.arange(30, 150), 3, replace=False)} for row in range(25)}
    qrels |= {"0": {"31": 0}, "1": qrels["1"] | {"gone": 2}, "2": {"gone": 1, "lost": 1}}
    queries = {query: documents[query] for query in qrels}
    return RetrievalTask(name="arguments", queries=queries, documents=documents, qrels=qrels, ignore_identical_ids=True)


def summarization(copies: bool = True) -> SummarizationTask:
    """Tied scores, a different number of summaries each, a document whose summaries all have one score."""
    generator, pool = random(8), texts(300, 5, copies)
    human = [pool[10 * row : 10 * row + 1 + row % 3] for row in range(12)]
    machine = [pool[150 + 10 * row : 154 + 10 * row + row % 4] for row in range(12)]
    relevance = [generator.integers(1, 4, len(of_document)).astype(float).tolist() for of_document in machine]
    relevance[3] = [2.0] * len(machine[3])
    return SummarizationTask(name="summaries", human=human, machine=machine, relevance=relevance)


EXACT = [sts, pair_classification, bitext, classification, reranking, retrieval, arguments, summarization]


def by_mteb(encoder, task: Task) -> dict[str, float]:
    """mteb's scores of a task."""
    (result,) = mteb.evaluate(
        MtebEncoder(encoder, "test", "1"), local_task(task), cache=None, show_progress_bar=False
    ).task_results
    ((entry,),) = result.scores.values()
    return entry


# --------------------------------------------------------------------------------------------------------------- scores


# Copied candidates have equal cosines where arithmetic is exact only; of equally near translations mteb takes any.
CASES = [*((make, Words, False) for make in EXACT), *((make, Signs, True) for make in EXACT if make is not bitext)]


@pytest.mark.parametrize(
    ("make", "encoder", "copies"), [*CASES, *((make, Words, True) for make in (sts, pair_classification, bitext))]
)
def test_every_shared_metric_equals_mteb(make, encoder, copies) -> None:
    task = make(copies)
    ours, theirs = score(encoder(), task), by_mteb(encoder(), task)
    assert ours.score == pytest.approx(theirs["main_score"], abs=TOLERANCE.get(task.type, 1e-6))
    for name, of_mteb in SHARED[task.type].items():
        assert ours.metrics[name] == pytest.approx(theirs[of_mteb], abs=TOLERANCE.get(task.type, 1e-6)), name
    assert abs(ours.score) < 0.999, "a perfect score would be no proof"


@pytest.mark.parametrize(("encoder", "copies"), [(Words, False), (Signs, True)])
@pytest.mark.parametrize(
    ("make", "measure"), [(reranking, "map_cut_1000"), (retrieval, "ndcg_cut_10"), (arguments, "ndcg_cut_10")]
)
def test_every_query_scores_what_mteb_gives_it(make, measure, encoder, copies) -> None:
    task, of_queries = make(copies), {}
    theirs = local_task(task)
    theirs.task_specific_scores = lambda scores, *_, **__: of_queries.update(scores) or {}  # mteb's hook; not rounded
    mteb.evaluate(MtebEncoder(encoder(), "test", "1"), theirs, cache=None, show_progress_bar=False)
    ids = [str(row) for row in range(len(task.queries))] if task.type == "reranking" else list(task.queries)
    np.testing.assert_allclose(
        score(encoder(), task).per_example, [of_queries[query][measure] for query in ids], atol=1e-9
    )


def test_a_document_whose_summaries_can_not_be_told_apart_is_zero_for_us_and_left_out_by_mteb() -> None:
    task = summarization()
    task.machine[5][:] = task.machine[5][:1] * len(task.machine[5])
    task.relevance[5][:2] = [1.0, 3.0]
    scored = sum(np.ptp(wanted) > 0 for wanted in task.relevance)
    ours, theirs = score(Words(), task).score, by_mteb(Words(), task)["main_score"]
    assert ours == pytest.approx(theirs * (scored - 1) / scored, abs=1e-6)


def clusters(own_words: int, bare: int = 0) -> ClusteringTask:
    """Texts of three classes, each with words that only its class has; the first of every `bare` texts has none."""
    labels = ["a", "b", "c"] * 40
    members = [
        f"{text} {f'{label} ' * (0 if bare and row % bare == 0 else own_words)}"
        for row, (text, label) in enumerate(zip(texts(120, 3), labels, strict=True))
    ]
    return ClusteringTask(name="clusters", members=members, labels=labels)


def test_clusters_that_are_far_apart_are_found_by_both() -> None:
    task = clusters(40)
    assert score(Words(), task).score == pytest.approx(1)
    assert by_mteb(Words(), task)["main_score"] == pytest.approx(1)
    labels = [label if row % 3 else "abc"[row % 7 % 3] for row, label in enumerate(task.labels)]
    wrong = ClusteringTask(name="clusters", members=task.members, labels=labels)
    assert 0.5 < score(Words(), wrong).score < 0.7
    assert score(Words(), wrong).score == pytest.approx(by_mteb(Words(), wrong)["main_score"], abs=1e-6)


def test_clusters_that_overlap_score_nearly_alike() -> None:
    # k-means of all rows with four starts here, of batches with fewer starts in mteb: other local optima.
    ours, theirs = score(Words(), clusters(4, bare=3)).score, by_mteb(Words(), clusters(4, bare=3))["main_score"]
    assert 0.8 < ours < 0.98
    assert ours == pytest.approx(theirs, abs=0.05)


def test_an_encoder_of_ours_scores_the_same_in_mteb() -> None:
    for task in (sts(), retrieval()):
        assert score(make_encoder(), task).score == pytest.approx(by_mteb(make_encoder(), task)["main_score"], abs=6e-6)


# -------------------------------------------------------------------------------------------------------------- prompts


def asked(task: Task, **options) -> list[dict[str, str]]:
    """The keywords of every call of the encoder."""
    encoder = Words()
    mteb.evaluate(MtebEncoder(encoder, "test", "1", **options), local_task(task), cache=None, show_progress_bar=False)
    return [keywords for _, keywords in encoder.calls]


@pytest.mark.parametrize(
    ("instructions", "query", "other"),
    [("own", QUERY, DOCUMENT), ("none", DOCUMENT, DOCUMENT), ("task", {"instruction": "Find it"}, DOCUMENT)],
)
def test_queries_and_documents_are_asked_for_as_the_instructions_say(instructions, query, other) -> None:
    assert asked(retrieval(), instructions=instructions) == [query, other]


@pytest.mark.parametrize("instructions", ["own", "none", "task"])
@pytest.mark.parametrize("make", [*EXACT, lambda: clusters(3)])
def test_mteb_asks_for_texts_as_our_own_scoring_does(make, instructions) -> None:
    def seen(encoder: Words) -> set[tuple[str, str]]:
        return {(text, str(keywords)) for texts, keywords in encoder.calls for text in texts}

    task, ours, theirs = make(), Words(), Words()
    score(ours, task, instructions)
    model = MtebEncoder(theirs, "test", "1", instructions)
    mteb.evaluate(model, local_task(task), cache=None, show_progress_bar=False)
    assert seen(ours) == seen(theirs)


def test_an_instruction_goes_to_both_sides_of_a_symmetric_task() -> None:
    task = StsTask(name="sts", first=["a", "b"], second=["c", "d"], scores=np.array([1.0, 2.0]), instruction="Compare")
    assert asked(task, instructions="task") == [{"instruction": "Compare"}] * 2
    assert asked(task) == [DOCUMENT] * 2


def test_instructions_of_real_tasks_are_those_of_mteb() -> None:
    from mteb.types import PromptType

    encoder = Words()
    model = MtebEncoder(encoder, "test", "1", "task")

    def instruction(name: str, prompt_type: PromptType | None) -> dict[str, str]:
        model.encode([{"text": ["x"]}], task_metadata=mteb.get_task(name).metadata, prompt_type=prompt_type)
        return encoder.calls[-1][1]

    # A prompt of the task for its queries; one for all its texts; none, so that of the task's type.
    wanted = {"instruction": "Given a claim, find documents that refute the claim"}
    assert instruction("ArguAna", PromptType.query) == wanted
    assert instruction("ArguAna", PromptType.document) == DOCUMENT
    wanted = {"instruction": "Given a online banking query, find the corresponding intents"}
    assert instruction("Banking77Classification", None) == wanted
    assert instruction("BIOSSES", None) == {"instruction": "Retrieve semantically similar text."}
    assert instruction("CQADupstackUnixRetrieval", PromptType.document) == DOCUMENT


def test_prompts_by_name_follow_the_order_that_mteb_documents() -> None:
    names = ["search-query", "search", "Retrieval-query", "Retrieval", "query", "other"]
    while len(names) > 1:
        first = {"prompt_name": names[0]}
        document = next((name for name in names if name in ("search", "Retrieval")), "document")
        assert asked(retrieval(), prompts=dict.fromkeys(names, "x")) == [first, {"prompt_name": document}]
        names.pop(0)
    assert asked(retrieval(), prompts={"other": "x"}) == [QUERY, DOCUMENT]
    assert asked(sts(), prompts={"STS": "x", "query": "y"}) == [{"prompt_name": "STS"}] * 2


def test_a_title_is_read_before_its_text_and_copies_are_encoded_once() -> None:
    from datasets import Dataset

    encoder, task = Words(), local_task(retrieval())
    task.load_data()
    task.dataset["default"]["test"]["corpus"] = Dataset.from_dict(
        {"id": ["1", "2", "3"], "title": ["Old Town", "", "Old Town"], "text": ["a river", "a mill", "a river"]}
    )
    mteb.evaluate(MtebEncoder(encoder, "test", "1"), task, cache=None, show_progress_bar=False)
    assert encoder.calls[1] == (["Old Town a river", "a mill"], DOCUMENT)
    assert [getattr(text, "parts", None) for text in encoder.calls[1][0]] == [("Old Town", "a river"), None]


def test_vectors_that_are_not_finite_are_refused() -> None:
    class Broken:
        def encode(self, texts, **asked):
            return np.full((len(texts), 2), np.nan)

    with pytest.raises(ValueError, match="nan or infinity"):
        by_mteb(Broken(), sts())


# -------------------------------------------------------------------------------------------------------------- running


def test_results_are_files_of_mteb_and_a_second_run_encodes_nothing(tmp_path: Path) -> None:
    tasks, encoder = [sts, retrieval, bitext], Words()
    first = list(run_mteb(MtebEncoder(encoder, "small", "1"), [local_task(make()) for make in tasks], tmp_path))
    assert [type(result) for result in first] == [TaskResult] * 3
    for result, make in zip(first, tasks, strict=True):
        wanted = score(Words(), make())
        assert (result.task, result.type) == (wanted.task, wanted.type)
        assert result.score == result.per_example[0] == result.metrics[result.metric]
        assert result.score == pytest.approx(wanted.score, abs=6e-6)
    assert [result.language for result in first] == ["eng", "eng", "cmn-eng"]

    (file,) = tmp_path.rglob("search.json")
    assert mteb.TaskResult.from_disk(file).get_score() == first[1].score
    assert mteb.ResultCache(tmp_path).load_results().model_results[0].model_name == "llm2enc/small"
    assert json.loads((file.parent / "model_meta.json").read_text())["revision"] == "1"

    encoder.calls.clear()
    again = list(run_mteb(MtebEncoder(encoder, "small", "1"), [local_task(make()) for make in tasks], tmp_path))
    assert not encoder.calls
    assert [result.metrics for result in again] == [result.metrics for result in first]


def test_other_weights_instructions_or_data_are_scored_anew(tmp_path: Path) -> None:
    def calls(task: Task, *options: str) -> int:
        encoder = Words()
        list(run_mteb(MtebEncoder(encoder, "small", *options), [local_task(task)], tmp_path))
        return len(encoder.calls)

    assert calls(sts(), "1") == 2
    assert calls(sts(), "1") == 0
    assert calls(sts(), "2") == 2
    assert calls(sts(), "2", "none") == 2
    other = StsTask(name="sts", first=texts(9, 3), second=texts(9, 4), scores=np.arange(9.0))
    assert calls(other, "1") == 2
    assert calls(other, "1") == 0


def test_a_data_set_that_can_not_be_loaded_is_named_and_the_others_go_on(tmp_path: Path, monkeypatch) -> None:
    def unreachable(*_, **__):
        raise ConnectionError("no route")

    (far,) = mteb_tasks(["BIOSSES"])
    monkeypatch.setattr(far, "load_data", unreachable)
    broken = local_task(sts())
    monkeypatch.setattr(broken, "evaluate", lambda *_, **__: 1 / 0)
    image = mteb.get_task("CIFAR10")
    tasks = [far, broken, image, local_task(retrieval())]
    lost, failed, refused, found = run_mteb(MtebEncoder(Words(), "small", "1"), tasks, tmp_path)
    assert isinstance(lost, Failure) and lost.task == "BIOSSES"
    for word in ("mteb/biosses-sts", "no route", "HF_HOME", "HF_HUB_OFFLINE"):
        assert word in lost.reason
    assert isinstance(failed, Failure) and failed.reason == "ZeroDivisionError: division by zero"
    assert isinstance(refused, Failure) and "ImageClassification" in refused.reason
    assert isinstance(found, TaskResult)


def test_tasks_and_benchmarks_are_found_by_name_and_each_once() -> None:
    found = [task.metadata.name for task in mteb_tasks(["NanoSciFactRetrieval", "NanoBEIR", "STS12"])]
    assert found[0] == "NanoSciFactRetrieval" and found[-1] == "STS12" and len(found) == len(set(found)) == 14
    (english,) = [task for task in mteb_tasks(["MTEB(eng, v2)"]) if task.metadata.name == "STS17"]
    assert english.hf_subsets == ["en-en"]  # a benchmark's tasks are asked in its own languages


def test_an_unknown_name_is_refused_with_similar_ones() -> None:
    with pytest.raises(ValueError, match=r"'nanobeer'; similar names: .*NanoBEIR.*available-benchmarks"):
        mteb_tasks(["STS12", "nanobeer"])
    with pytest.raises(ValueError, match=r"no task or benchmark 'qqqqq'\. `mteb available-tasks`"):
        mteb_tasks(["qqqqq"])


def test_without_mteb_the_remedy_is_named() -> None:
    code = (
        "import sys; sys.modules['mteb'] = None\n"
        "from llm2enc.evaluation.mteb_adapter import mteb_tasks\n"
        "try: mteb_tasks(['STS12'])\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "llm2enc[mteb]"' in done.stdout
