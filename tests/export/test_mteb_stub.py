"""mteb_model.py: mteb itself loads the model by it, and its vectors are ours."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from llm2enc.artifact import read_metadata
from llm2enc.encoding import Encoder
from llm2enc.evaluation import RetrievalTask, score
from llm2enc.evaluation.mteb_local import local_task
from llm2enc.export import mteb as stub
from llm2enc.recipe import InputSpec, Part, load_recipe
from tests.support.builders import INPUT, make_encoder, sentences

mteb = pytest.importorskip("mteb")
pytest.importorskip("sentence_transformers")

BOS, TEXT, ASK = Part(special="bos", pool=True), Part(slot="text", pool=True), Part(slot="instruction", pool=True)
# All of it pooled, so that sentence-transformers can do it; the text only, so that it cannot.
NATIVE = InputSpec(
    query=(BOS, ASK, Part(literal=": ", pool=True), TEXT),
    document=(BOS, TEXT),
    max_tokens=64,
    prompts={"query": "Find the answer"},
)
OURS = INPUT.model_copy(update={"prompts": {"query": "Find the answer"}})


def written(folder: Path, spec: InputSpec, **options) -> tuple[Encoder, dict]:
    """An encoder on disk with its mteb_model.py, and what that file defines."""
    make_encoder(spec).save(folder)
    encoder = Encoder.load(folder)
    assert stub.unsupported_reason(encoder, read_metadata(folder)) == ""
    assert stub.write(encoder, folder, read_metadata(folder), **options) == [folder / "mteb_model.py"]
    return encoder, runpy.run_path(str(folder / "mteb_model.py"))


def task() -> RetrievalTask:
    texts = sentences(12)
    return RetrievalTask(
        name="search",
        queries={f"q{number}": " ".join(texts[number].split()[:3]) for number in range(4)},
        documents={f"d{number}": text for number, text in enumerate(texts)},
        qrels={f"q{number}": {f"d{number}": 1} for number in range(4)},
    )


@pytest.mark.parametrize("spec", [NATIVE, OURS], ids=["by sentence-transformers", "by llm2enc"])
@pytest.mark.filterwarnings("ignore:Model prompts specified")
def test_mteb_loads_the_model_and_scores_it_as_we_do(tmp_path: Path, spec: InputSpec) -> None:
    encoder, defined = written(tmp_path / "model", spec)
    assert read_metadata(tmp_path / "model").native is (spec is NATIVE)
    model = defined["model_meta"].load_model(device="cpu")
    assert type(model).__name__ == ("SentenceTransformerEncoderWrapper" if spec is NATIVE else "MtebEncoder")

    local, texts = local_task(task()), sentences(5)
    for side in ("query", "document"):
        found = model.encode(
            [{"text": texts[:2]}, {"text": texts[2:]}] if spec is OURS else batches(texts),
            task_metadata=local.metadata, hf_split="test", hf_subset="default",
            prompt_type=mteb.types.PromptType(side), show_progress_bar=False,
        )  # fmt: skip
        np.testing.assert_allclose(np.asarray(found), encoder.encode(texts, prompt_name=side), atol=1e-5)
    assert np.abs(encoder.encode(texts, prompt_name="query") - encoder.encode(texts)).max() > 1e-3

    result = mteb.evaluate(model, local, cache=None, co2_tracker=False, show_progress_bar=False)
    ours = score(encoder, task(), instructions="own")
    assert result.task_results[0].get_score() == pytest.approx(ours.metrics["ndcg@10"], abs=1e-5)


def batches(texts: list[str]):
    """Batches as mteb makes them."""
    from datasets import Dataset
    from torch.utils.data import DataLoader

    return DataLoader(Dataset.from_dict({"text": texts}), batch_size=2)


def test_the_metadata_are_those_of_the_model(tmp_path: Path) -> None:
    encoder, defined = written(tmp_path / "model", NATIVE, name="me/my-encoder")
    meta = defined["model_meta"]
    assert (meta.name, meta.max_tokens, meta.embed_dim, meta.similarity_fn_name.value) == (
        "me/my-encoder", 64, 32, "cosine",
    )  # fmt: skip
    assert meta.revision == encoder.fingerprint()[:40]
    assert meta.n_embedding_parameters == 320 * 32
    # 2 layers of q, o (32 x 32), k, v (32 x 16), three of 32 x 48 and two norms; embeddings and the last norm
    assert meta.n_parameters == 320 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 32
    assert meta.memory_usage_mb == round(meta.n_parameters * 4 / 2**20, 1)
    assert meta.use_instructions is True and meta.framework[0] == "Sentence Transformers"
    assert defined["model_prompts"] == {"query": "Find the answer: ", "document": ""}
    assert meta.license is meta.languages is meta.adapted_from is None
    assert meta.training_datasets is None  # saved without a recipe: trained on nobody knows what
    assert [path.name for path in (tmp_path / "model").glob("*mteb*")] == ["mteb_model.py"]


def test_training_data_are_told_by_the_names_of_mteb_and_the_others_left_to_the_author(tmp_path: Path) -> None:
    recipe = load_recipe("mistral-7b")
    make_encoder(NATIVE).save(tmp_path)
    metadata = read_metadata(tmp_path).model_copy(update={"recipe": recipe.model_dump(mode="json")})
    stub.write(Encoder.load(tmp_path), tmp_path, metadata)
    meta = runpy.run_path(str(tmp_path / "mteb_model.py"))["model_meta"]
    assert meta.name == "your-name/mistral-7b" and meta.adapted_from == recipe.model.name
    assert meta.training_datasets == {
        "DuRetrieval", "FEVER", "HotpotQA", "MIRACLRetrieval", "MIRACLReranking", "MrTidyRetrieval", "MSMARCO", "NQ",
        "QuoraRetrieval", "T2Retrieval", "T2Reranking", "XQuADRetrieval",
    }  # fmt: skip
    source = (tmp_path / "mteb_model.py").read_text()
    named = [line.split("#   ")[1] for line in source.splitlines() if line.startswith("    #   ")]
    assert named == ["'allnli.jsonl'", "'eli5_question_answer.jsonl'", "'trivia_qa.jsonl'"]


def test_names_of_data_sets() -> None:
    def found(**data) -> tuple[list[str], list[str]]:
        source = {"kind": "files", "name": None} | data
        return stub.training_tasks([{"stages": [{"data": [source]}]}])

    assert found(path="/home/me/sets/NQ-train.jsonl.gz") == (["NQ"], [])
    assert found(kind="hub", path="sentence-transformers/natural-questions") == (["NQ"], [])
    assert found(path=["a/msmarco_passage.parquet", "b/own.txt"]) == (["MSMARCO"], ["own.txt"])
    assert found(path="part-1.jsonl", name="HotpotQA") == (["HotpotQA"], [])
    assert found(kind="hub", path="me/things") == ([], ["me/things"])
    assert found(kind="docstrings") == ([], []) == stub.training_tasks([{"stages": []}])
    merged = [{"stages": [{"data": [{"kind": "files", "name": name, "path": "x.txt"}]}]} for name in ("NQ", "fever")]
    assert stub.training_tasks(merged) == (["FEVER", "NQ"], [])
    assert stub.training_tasks([*merged, None]) == (["FEVER", "NQ"], [stub._UNRECORDED])


def test_every_task_named_is_one_of_mteb() -> None:
    known = {task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)}
    assert {name for names in stub._TASKS.values() for name in names} <= known
    assert stub._tasks([], ["x"]) == "None"  # mteb would take an empty set for `trained on none of them`
