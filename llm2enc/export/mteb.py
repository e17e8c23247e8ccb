"""DIR/mteb_model.py: the encoder as mteb knows models (`ModelMeta`), to run it there or to send it to mteb's repository.

    from mteb_model import model_meta
    mteb.evaluate(model_meta.load_model(), mteb.get_tasks(["STS12"]))

sentence-transformers runs it where that gives our vectors, llm2enc otherwise. What only the author can know is None.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm2enc.artifact import Metadata, base_model
from llm2enc.encoding import Encoder
from llm2enc.storage import replace_text

SUMMARY = "how mteb runs the model and what it should know of it (mteb_model.py)"
FILE = "mteb_model.py"

# Names that data sets of recipes go by, in small letters and digits, and the tasks of mteb made of the same data; mteb
# adds their translations, subsets and harder versions itself. Where the task has another name than the set, mteb's own
# entries say so: XQuADRetrieval of E5 (SQuAD), T2Reranking of LLM2Vec (T2Ranking). An empty tuple: in no task.
_TASKS: dict[str, tuple[str, ...]] = {
    "arguana": ("ArguAna",),
    "banking77": ("Banking77Classification",),
    "climatefever": ("ClimateFEVER",),
    "codesearchnet": ("CodeSearchNetRetrieval",),
    "datasetsforsimcse": (),
    "dbpedia": ("DBPedia",),
    "dureader": ("DuRetrieval",),
    "fever": ("FEVER",),
    "fiqa": ("FiQA2018",),
    "hotpotqa": ("HotpotQA",),
    "miracl": ("MIRACLRetrieval", "MIRACLReranking"),
    "mrtydi": ("MrTidyRetrieval",),
    "msmarco": ("MSMARCO",),
    "msmarcodocument": ("MSMARCO",),
    "msmarcopassage": ("MSMARCO",),
    "naturalquestions": ("NQ",),
    "nfcorpus": ("NFCorpus",),
    "nq": ("NQ",),
    "quora": ("QuoraRetrieval",),
    "quoraduplicates": ("QuoraRetrieval",),
    "scidocs": ("SCIDOCS",),
    "scifact": ("SciFact",),
    "squad": ("XQuADRetrieval",),
    "stsb": ("STSBenchmark",),
    "stsbenchmark": ("STSBenchmark",),
    "t2ranking": ("T2Retrieval", "T2Reranking"),
    "wikitext": (),
}
_UNRECORDED = "whatever this encoder saw in training: it was saved without a recipe"


def unsupported_reason(encoder: Encoder, metadata: Metadata) -> str:
    """Nothing: what sentence-transformers cannot run, llm2enc runs."""
    return ""


def write(encoder: Encoder, folder: Path, metadata: Metadata, *, name: str | None = None) -> list[Path]:
    """Write mteb_model.py into `folder`, the exported directory.

    name  USER/NAME on the hub; `your-name/` and the recipe's name by default
    """
    path = folder / FILE
    replace_text(path, _source(encoder, folder, metadata, name))
    return [path]


def _source(encoder: Encoder, folder: Path, metadata: Metadata, name: str | None) -> str:
    recipe = metadata.recipe
    decoder: Any = encoder.backbone.decoder
    parameters = list(decoder.parameters())
    embeddings = decoder.get_input_embeddings().weight
    known, unknown = training_tasks(metadata.recipes)
    fields = {
        "loader": "load",
        "name": repr(name or f"your-name/{recipe['name'] if recipe else 'my-encoder'}"),
        "revision": f"{encoder.fingerprint()[:40]!r},  # of all that vectors depend on; on the hub, the commit",
        "release_date": "None",
        "languages": 'None,  # such as ["eng-Latn"]: what the training data were in',
        "n_parameters": str(sum(p.numel() for p in parameters)),
        "n_embedding_parameters": str(embeddings.numel()),
        "memory_usage_mb": str(round(sum(p.numel() * p.element_size() for p in parameters) / 2**20, 1)),
        "max_tokens": str(metadata.input.max_tokens),
        "embed_dim": str(metadata.dimensions),
        "license": "None",
        "open_weights": "None",
        "public_training_code": "None",
        "public_training_data": "None",
        "framework": repr(_frameworks(folder, metadata.native)),
        "similarity_fn_name": "ScoringFunction.COSINE",
        "use_instructions": str(_reads_instructions(encoder, metadata)),
        "adapted_from": repr(base_model(metadata.recipes)),
        "training_datasets": f"{_tasks(known, unknown)}{_comments(unknown)}",
    }
    lines = [f"    {key}={value}" + ("" if "  #" in value else ",") for key, value in fields.items()]
    # By side as lines of Python, without those names of the recipe that mteb would not know.
    prompts = {side: metadata.prompts[side] for side in ("query", "document") if side in metadata.prompts}
    written = "".join(f"    {side!r}: {prompt!r},\n" for side, prompt in prompts.items())
    trust = ", trust_remote_code=True" * metadata.needs_code  # of a file of the directory
    head = _NATIVE.format(prompts="{\n" + written + "}", trust=trust) if metadata.native else _OURS
    return _HEAD + head + "\n\nmodel_meta = ModelMeta(\n" + "\n".join(lines) + "\n)\n"


_HEAD = '''"""This model for mteb. Written by llm2enc; what it could not know is None.

    from mteb_model import model_meta
    mteb.evaluate(model_meta.load_model(), mteb.get_tasks(["STS12"]))
"""

from pathlib import Path

'''

_NATIVE = '''from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

# By side; an entry for one task (`NQ`, `NQ-query`) or one type of tasks (`STS`) goes before them.
model_prompts = {prompts}


def load(name, revision=None, **options):
    """The model of the directory that this file is in.

    In mteb's own repository, where the model comes from the hub by name and revision, write
    loader=SentenceTransformerEncoderWrapper, loader_kwargs=dict(model_prompts=model_prompts) instead.
    """
    folder = Path(__file__).resolve().parent
    return SentenceTransformerEncoderWrapper(str(folder), model_prompts=model_prompts{trust}, **options)
'''

_OURS = '''from mteb.models.model_meta import ModelMeta, ScoringFunction


def load(name, revision=None, **_):
    """The model of the directory that this file is in, by llm2enc: sentence-transformers gives other vectors."""
    from llm2enc import Encoder
    from llm2enc.evaluation import MtebEncoder

    encoder = Encoder.load(Path(__file__).resolve().parent)
    return MtebEncoder(encoder, name, revision, prompts=encoder.prompts)
'''


def training_tasks(recipes: Sequence[dict[str, Any] | None]) -> tuple[list[str], list[str]]:
    """Tasks of mteb that the recipes train on, and names of data of which that is not known (a recipe of None's too)."""
    known: dict[str, None] = {}
    unknown = dict.fromkeys([_UNRECORDED] if None in recipes else [])
    for label, names in itertools.chain.from_iterable(_data_sets(recipe) for recipe in recipes if recipe):
        found = [_TASKS[name] for name in names if name in _TASKS]
        known |= dict.fromkeys(task for tasks in found for task in tasks)
        if not found:
            unknown[label] = None
    return sorted(known), list(unknown)


def _data_sets(recipe: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Each data set of the stages by its label, a file's without its folder, and the names it may be known by."""
    for source in (data for stage in recipe["stages"] for data in stage["data"]):
        if source["kind"] == "docstrings":  # of installed packages: in no task
            continue
        paths = [source["path"]] if isinstance(source["path"], str) else source["path"]
        for path in paths:
            last = re.split(r"[/\\]", path)[-1]
            label = path if source["kind"] == "hub" else last
            # `nq.jsonl.gz`, `NQ-train.parquet` and `sentence-transformers/natural-questions` alike
            plain = re.sub(r"[^a-z0-9]|[-_.]train\b", "", last.split(".")[0].lower().removesuffix("train"))
            given = re.sub(r"[^a-z0-9]", "", (source["name"] or "").lower())
            yield label, [plain, given]


def _tasks(known: list[str], unknown: list[str]) -> str:
    """training_datasets; None, which mteb reads as not known, where nothing is."""
    if known:
        return "{" + ", ".join(map(repr, known)) + "}"
    return "None" if unknown else "set()"


def _comments(unknown: list[str]) -> str:
    """What the author has to look up, below the field."""
    if not unknown:
        return ""
    lines = ["    # Trained on these too; add the tasks of mteb with the same data, if there are any:"]
    return ",  # see below\n" + "\n".join([*lines, *(f"    #   {label!r}" for label in unknown)])


def _frameworks(folder: Path, native: bool) -> list[str]:
    """mteb's names of what runs the model."""
    formats = {"onnx": "ONNX", "openvino": "OpenVINO", "gguf": "GGUF"}
    found = ["PyTorch", "safetensors", *(name for place, name in formats.items() if (folder / place).is_dir())]
    return ["Sentence Transformers", *found] if native else found


def _reads_instructions(encoder: Encoder, metadata: Metadata) -> bool:
    """Whether a query's input is another than a document's."""
    inputs = [encoder.cache_key(prompt_name=side) for side in ("query", "document")]
    return inputs[0] != inputs[1] or any(metadata.prompts.values())
