"""The directory that comes out: sentence-transformers' layout, written so that every engine reads the same model.

    model.safetensors, config.json     the bare decoder, without head or prefix, and both keys for bidirectional attention
    tokenizer.json, ...                with the input template as post-processor
    modules.json, 1_Pooling/, 2_.../ (the head, if any), 2_ or 3_Normalize/
    sentence_bert_config.json, config_sentence_transformers.json
    llm2enc.json                       everything `read` needs, how the model was made, and what differs elsewhere
    README.md                          model card

The directory is written beside its place and renamed into it. Old releases of sentence-transformers and transformers,
which would open the model as causal without a word, stop with an error.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2enc.artifact import card as model_card
from llm2enc.artifact import config as decoder_config
from llm2enc.artifact import head_files
from llm2enc.artifact import prompt_masking as rules
from llm2enc.artifact import tokenizer as exported
from llm2enc.artifact.files import check_target, write_json
from llm2enc.artifact.integrity import changed, check_fingerprint, check_golden, check_weights, digests, unproven
from llm2enc.artifact.metadata import (
    FORMAT,
    Difference,
    Golden,
    HistoryRow,
    MergeRecord,
    Metadata,
    ProofRecord,
    read_metadata,
    write_metadata,
)
from llm2enc.artifact.parts import Parts
from llm2enc.errors import InputError, explained
from llm2enc.model import POOLERS, Proof, installed, prove, proven, weights_fingerprint
from llm2enc.storage import atomic_directory

if TYPE_CHECKING:
    from llm2enc.recipe import Pooling, Recipe

_log = logging.getLogger(__name__)

GOLDEN = ("The river runs through the old town.", "def area(r): return 3.14 * r ** 2", "Zürich, 東京 & Москва")

DTYPES = ("float32", "bfloat16", "float16")

# The releases that give our vectors. sentence-transformers checks them itself from 6.0 on.
REQUIREMENTS = {"transformers": ">=5.4", "sentence-transformers": ">=5.5"}


def write(
    parts: Parts,
    folder: Path,
    vectors_of: Callable[[Parts, list[str]], np.ndarray],
    *,
    recipe: "Recipe | None" = None,
    history: Sequence[HistoryRow | dict[str, Any]] = (),
    merge: MergeRecord | None = None,
    card: str | None = None,
    dtype: str | None = None,
) -> None:
    """Write an encoder's parts to `folder`. One process calls it.

    vectors_of  what an encoder built from parts makes of texts, (B, D): the golden vectors
    history  measurements of the run, for the card; a dict has the fields of HistoryRow
    merge    what `llm2enc.merging.merge` returns, of an encoder that was merged from others
    card     text of README.md; made from the metadata by default
    dtype    storage type, one of DTYPES; that of the weights by default. Fingerprint and golden vectors are those of what
             was written
    raises   ValueError if an adapter is not merged, if `folder` holds something that is not an older export, or for a
             type that cannot hold the weights
    """
    if dtype not in (None, *DTYPES):
        raise InputError(f"dtype is {dtype!r}; weights are written as one of {', '.join(DTYPES)}")

    if parts.backbone.has_adapter:
        raise InputError(
            "the encoder still carries an adapter, which other programs would open without our attention; call "
            "encoder.backbone.merge_lora() first"
        )
    check_target(folder)
    proof = proven(parts.backbone) if dtype is None else None
    with atomic_directory(folder) as partial:
        notes = decoder_config.write(parts, partial, dtype)
        sentence_transformers = _write_modules(parts, partial)
        notes += sentence_transformers.pop("notes")
        known = {
            "format": FORMAT,
            "attention": "bidirectional" if parts.backbone.bidirectional else "causal",
            "pooling": parts.pooling,
            "normalize": parts.normalize,
            "input": parts.input_format.spec,
            **sentence_transformers,
            "notes": notes,
            "model_type": parts.backbone.config.model_type,
            "dimensions": parts.backbone.width if parts.head is None else parts.head.dimensions,
            **({"head": parts.head.spec} if parts.head else {}),
            "versions": installed("llm2enc", "torch", "transformers", "tokenizers", "peft"),
            "history": list(history),
            "recipe": recipe.model_dump(mode="json") if recipe else None,
            **({"merge": merge} if merge else {}),
        }
        written = parts if proof else _open(partial, Metadata.model_construct(**known))
        metadata = Metadata(
            **known,
            proof=ProofRecord(**dataclasses.asdict(proof or prove(written.backbone))),
            files=digests(partial),
            fingerprint=weights_fingerprint(written.backbone, written.head),
            golden=Golden(texts=list(GOLDEN), vectors=_golden(vectors_of(written, list(GOLDEN)))),
        )
        write_metadata(partial, metadata)
        text = model_card.render(metadata, parts.input_format, REQUIREMENTS) if card is None else card
        (partial / "README.md").write_text(text, encoding="utf-8")


def read(folder: Path, dtype: str = "auto", full_proof: bool = False) -> Parts:
    """The parts that `write` wrote, which give the vectors that it wrote.

    The proof that the directory records stands as long as its files, torch, transformers, tokenizers and llm2enc are those
    it was measured with; otherwise it runs again, and a warning says why.

    full_proof  run it in any case and compare nothing, so that changed weights open too: for `verify`, which compares
    raises      ValueError if `folder` is no such directory, for changed weights (by file), or if the first golden vector is
                not reached; CannotConvert if the model reads in the wrong direction
    """
    metadata = read_metadata(folder)
    other = [] if full_proof else changed(folder, metadata)
    parts = _open(folder, metadata, dtype, other)
    reason = "" if full_proof else unproven(metadata, other)
    if not full_proof and metadata.files is None and dtype == "auto":  # an early release: no file's digest to compare
        check_fingerprint(parts, metadata, folder)
    if full_proof or reason:
        prove(parts.backbone)
    else:
        parts.backbone.proof = Proof(**metadata.proof.model_dump(include={f.name for f in dataclasses.fields(Proof)}))
    if reason:
        _log.warning("%s: %s; the full proof ran again and holds", folder, reason)
    if not full_proof:
        check_golden(parts, metadata, folder)
    return parts


def _open(folder: Path, metadata: Metadata, dtype: str = "auto", other: Sequence[str] = ()) -> Parts:
    """The parts, unproven. `other`: files that have changed, which must not be weights."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer

    from llm2enc.model import Backbone, check_config, limits, load_model, naming_untrusted_code, with_rows
    from llm2enc.text import InputFormat

    config = decoder_config.read(folder)
    limits.check_lengths(config, {"input.max_tokens": metadata.input.max_tokens})
    check_config(config, str(folder))
    check_weights(folder, other)
    with naming_untrusted_code(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer = with_rows(tokenizer, config, str(folder))
    if metadata.tokenizer:
        tokenizer = rules.restore(tokenizer, metadata.tokenizer)
    input_format = InputFormat(metadata.input, tokenizer)
    with explained(f"the weights of {folder}", "write or download the directory again", (ValueError, SafetensorError)):
        model = load_model(AutoModel, str(folder), config, trust_remote_code=False, dtype=dtype)
    backbone = Backbone(model, bidirectional=metadata.attention == "bidirectional")
    if torch.cuda.is_available():
        backbone.to("cuda")
    head = head_files.read(folder, backbone.width, metadata.head).to(backbone.device) if metadata.head else None
    return Parts(backbone, input_format, metadata.pooling, metadata.normalize, head)


# ------------------------------------------------------------------------------------------------------------- modules


def _write_modules(parts: Parts, folder: Path) -> dict[str, Any]:
    """Tokenizer and sentence-transformers' files; what they can say of this encoder and what not."""
    input_format, pooling = parts.input_format, parts.pooling
    split = exported.layout(input_format)
    rows = parts.backbone.decoder.get_input_embeddings().num_embeddings
    written = exported.write(input_format, split, folder, pooling, rows)
    differences = exported.telling(written.differences)
    # A prompt that gives other ids for a plain text is left out: an error that names it is better than a wrong vector.
    broken = {d.prompt for d in differences if d.kind == "prompt" or (d.kind == "ids" and d.probe == "a plain text")}
    prompts = {name: prompt for name, prompt in written.prompts.items() if prompt is not None and name not in broken}
    modules = _modules(parts)
    write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", _pooling(parts.backbone.width, pooling, written.include_prompt))
    if parts.head is not None:
        head_files.write(parts.head, parts.backbone.width, folder)
    if parts.normalize:
        place = folder / modules[-1]["path"]
        place.mkdir()
        write_json(place / "config.json", {})  # an empty folder would not survive git
    write_json(
        folder / "sentence_bert_config.json",
        _transformer(exported.max_seq_length(input_format, split), decoder_config.model_args(parts)),
    )
    write_json(folder / "config_sentence_transformers.json", _top(prompts))
    return {
        "native": not differences,
        "reason": _reason(differences, parts, written.rules is not None) if differences else "",
        "prompts": prompts,
        "prefixes": {name: written.prefixes[name] for name in prompts},
        "tokenizer": written.changed,
        "differences": differences,
        "notes": _notes(written, parts),
    }


def _notes(written: exported.Written, parts: Parts) -> list[str]:
    """What a user of other programs should know, although it is no difference or a rare one."""
    notes = []
    input_format, pooling = parts.input_format, parts.pooling
    if parts.head is not None and parts.head.reads_states:
        notes.append(
            f"`{head_files.CODE}` computes what stands between transformer and pooling. llm2enc does not run this file, "
            "sentence-transformers does, with `trust_remote_code=True`, and ONNX and OpenVINO files hold it in their graph. "
            "vLLM, text-embeddings-inference and llama.cpp cannot compute it: their vectors are others."
        )
    if len(exported.telling(written.differences)) < len(written.differences):
        notes.append("An empty text has a vector here; other programs give it another one, or fail.")
    if not written.include_prompt:
        notes.append(
            "The prompt is not pooled. Only sentence-transformers knows this rule (include_prompt: false); vLLM and "
            "text-embeddings-inference pool the prompt too and give other vectors for texts with one. To be exact "
            "there, train with `pool: true` on every part of both templates."
        )
    slots = {part.slot for part in (*input_format.spec.query, *input_format.spec.document)}
    if "title" in slots:
        notes.append(
            "The prompt of documents reads every document as one without title. llm2enc reads one with a title, "
            "encode(Passage(title, text)) from llm2enc.text; for other programs write the title into the prompt."
        )
    if "examples" in slots:
        notes.append(
            "In-context examples are read by llm2enc alone, encode(..., examples=[(query, document), ...]); for other "
            "programs write them into the prompt."
        )
    if written.rules is not None:
        notes.append(
            f"`{rules.MARK}` in a prompt marks where the text begins. The tokenizer puts in its place what the template "
            "has there; `prefixes` in llm2enc.json has it written out, for programs with a tokenizer of their own."
        )
    rare = exported.rare(input_format, written, pooling)
    if rare:
        notes.append(f"Other programs read these texts a little differently: {', '.join(rare)}.")
    if exported.cuts_inside_characters(input_format, written.tokenizer, written.prompts["document"] or ""):
        notes.append(
            "A text beyond the limit is cut at a whole character by llm2enc, and inside one by other programs, if the "
            "limit falls inside a character of several tokens (emoji): up to three tokens differ."
        )
    return notes


def _modules(parts: Parts) -> list[dict[str, Any]]:
    """modules.json with the class paths that vLLM and text-embeddings-inference compare with; new releases know both."""
    theirs = "sentence_transformers.models"
    modules = [(f"{theirs}.Transformer", ""), (f"{theirs}.Pooling", "1_Pooling")]
    if parts.head is not None:
        own = head_files.module(parts.head.spec), head_files.place(parts.head.spec)
        modules.insert(1 if parts.head.reads_states else 2, own)
    if parts.normalize:
        modules.append((f"{theirs}.Normalize", f"{len(modules)}_Normalize"))
    return [
        {"idx": number, "name": str(number), "path": path, "type": kind} for number, (kind, path) in enumerate(modules)
    ]


def _pooling(width: int, pooling: "Pooling", include_prompt: bool) -> dict[str, Any]:
    """1_Pooling/config.json in the new schema, and with the old keys that vLLM and text-embeddings-inference read.

    Not with `word_embedding_dimension`: no engine needs it, and sentence-transformers would call it deprecated.
    """
    others = dict.fromkeys(("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens"), False)
    return {
        "embedding_dimension": width,
        **{f"pooling_mode_{pooler.flag}": name == pooling for name, pooler in POOLERS.items()},
        **others,
        "pooling_mode": POOLERS[pooling].mode,
        "include_prompt": include_prompt,
    }


def _transformer(limit: int, model_args: dict[str, Any]) -> dict[str, Any]:
    """sentence_bert_config.json. Releases before 5.4, which may run a causal model, stop at `transformer_task` and on."""
    return {
        **({"model_args": model_args} if model_args else {}),
        "max_seq_length": limit,
        "do_lower_case": False,
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
    }


def _top(prompts: dict[str, str]) -> dict[str, Any]:
    """config_sentence_transformers.json."""
    return {
        "model_type": "SentenceTransformer",
        "__version__": installed("torch", "transformers"),
        "prompts": prompts,
        # Without it, `encode(texts)` would leave out what the document template has before the text.
        "default_prompt_name": "document" if prompts.get("document") else None,
        "similarity_fn_name": "cosine",
        "requirements": {
            name: {"specifier": specifier, "reason": "Older releases may run this model with causal attention."}
            for name, specifier in REQUIREMENTS.items()
        },
    }


def _reason(differences: list[Difference], parts: Parts, ruled: bool) -> str:
    """What sentence-transformers cannot do as we do, and what in the recipe would change that.

    ruled  whether the prompts are left out of the pool by rules, so that only what depends on the text is left
    """
    sentences = []
    unsaid = _names(d.prompt for d in differences if d.kind == "prompt")
    if unsaid:
        sentences.append(
            f"the prompts {unsaid} are left out: what they change is not a prefix of the text, so only llm2enc can build "
            "their input. Give both templates the same parts after the text, and Echo templates no instruction"
        )
    pooled = [d for d in differences if d.kind == "pool"]
    if pooled and ruled:
        sentences.append(
            f"whether the whitespace in front of the text is a token of its own, and left out of the pool, depends on the "
            f"text ({_names(d.probe for d in pooled)}; prompts {_names(d.prompt for d in pooled)}), and it leaves out one "
            "number of tokens for all; to make it exact, write that whitespace as a part of its own that is pooled, "
            '`{literal: " ", pool: true}`'
        )
    elif pooled and _is_echo(parts):
        sentences.append(
            "it pools both copies of the text, and we the second alone, which is what makes Echo work; use "
            "llm2enc.Encoder.load for this directory, or train with `pooling: last` and a pooled EOS"
        )
    elif pooled:
        remedy = {"last": "the last part", "first": "the first part"}.get(parts.pooling, "every part")
        sentences.append(
            f"it pools tokens that our template reads only ({_names(d.prompt for d in pooled)}); to make it exact, set "
            f"`pool: true` on {remedy} of both templates"
        )
    ids = [d for d in differences if d.kind == "ids"]
    if ids:
        spec = parts.input_format.spec
        why = [
            text
            for text, true in (
                ("`strip: outer` removes whitespace at the ends", spec.strip == "outer"),
                ("`tokenize: pieces` splits the prompt from the text", spec.tokenize == "pieces"),
                ("`max_text_tokens` counts the text alone", spec.max_text_tokens is not None),
            )
            if true
        ]
        sentences.append(
            f"token ids differ for {_names(d.probe for d in ids)} (prompts {_names(d.prompt for d in ids)})"
            + (f"; {' and '.join(why)}" if why else "; the tokenizer joins the text with what stands beside it")
        )
    return "sentence-transformers cannot do all of it: " + ". And ".join(sentences) + "."


def _is_echo(parts: Parts) -> bool:
    return sum(part.slot == "text" for part in parts.input_format.spec.document) > 1


def _names(items: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(items))


# ----------------------------------------------------------------------------------------------------- golden vectors


def _golden(vectors: np.ndarray) -> list[list[float]]:
    """Vectors of the golden texts (N, D), six decimals, for whoever opens the directory with another program."""
    return np.round(vectors.astype(np.float64), 6).tolist()
