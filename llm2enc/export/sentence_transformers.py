"""The directory that comes out: sentence-transformers' layout, written so that every engine reads the same model.

    model.safetensors, config.json     the bare trunk, without head or prefix, and both keys for bidirectional attention
    tokenizer.json, ...                with the input template as post-processor
    modules.json, 1_Pooling/, 2_Normalize/, sentence_bert_config.json, config_sentence_transformers.json
    llm2enc.json                       everything `read` needs, how the model was made, and what differs elsewhere
    README.md                          model card

The directory is written beside its place and renamed into it. Old releases of sentence-transformers and transformers,
which would open the model as causal without a word, stop with an error.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2enc.export import card as model_card
from llm2enc.export import tokenizer as exported
from llm2enc.export.tokenizer import Difference

if TYPE_CHECKING:
    from llm2enc.encoder import Encoder
    from llm2enc.recipe import Pooling, Recipe

FACTS = "llm2enc.json"
FORMAT = 1
GOLDEN = ("The river runs through the old town.", "def area(r): return 3.14 * r ** 2", "Zürich, 東京 & Москва")

POOLING_MODES: dict["Pooling", str] = {
    "mean": "mean",
    "weighted_mean": "weightedmean",
    "last": "lasttoken",
    "first": "cls",
}
# The releases that give our vectors. sentence-transformers checks them itself from 6.0 on.
REQUIREMENTS = {"transformers": ">=5.4", "sentence-transformers": ">=5.5"}

# Families for which text-embeddings-inference reads this key instead of is_causal; transformers ignores it there.
_BIDIRECTIONAL_KEY = ("llama", "mistral", "qwen2", "qwen3", "phi3")
# Families in which a layer's type decides its mask and nothing else, so that an unused window may be taken out. In
# others it decides rotary settings too (Gemma 3, Cohere 2).
_WINDOW_IS_ONLY_A_MASK = ("mistral", "mixtral", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "starcoder2")


def write(
    encoder: "Encoder",
    folder: Path,
    *,
    recipe: "Recipe | None" = None,
    history: list[dict[str, Any]] | None = None,
    card: str | None = None,
) -> None:
    """Write `encoder` to `folder`, in the storage type its weights have. One process calls it.

    history  rows {"stage", "scores", "seconds"}: measurements of the run, for the card
    card     text of README.md; made from the facts by default
    raises   ValueError if an adapter is not merged, or if `folder` holds something that is not an older export
    """
    from llm2enc.proof import prove

    if encoder.backbone.has_adapter:
        raise ValueError(
            "the encoder still carries an adapter, which other programs would open without our attention; call "
            "encoder.backbone.merge_lora() first"
        )
    if encoder.layer is not None or encoder.causal not in (None, not encoder.backbone.bidirectional):
        raise ValueError(
            "the encoder is a variant that reads another layer or direction than its model, which no directory can say; "
            "save the encoder that it was made of"
        )
    _check_target(folder)
    proof = prove(encoder.backbone)
    with _beside(folder) as partial:
        notes = _write_trunk(encoder, partial)
        sentence_transformers = _write_modules(encoder, partial)
        notes += sentence_transformers.pop("notes")
        facts = {
            "format": FORMAT,
            "attention": "bidirectional" if encoder.backbone.bidirectional else "causal",
            "pooling": encoder.pooling,
            "normalize": encoder.normalize,
            "input": encoder.input_format.spec.model_dump(mode="json"),
            **sentence_transformers,
            "notes": notes,
            "model_type": encoder.backbone.config.model_type,
            "dimensions": encoder.backbone.width,
            "fingerprint": encoder.backbone.fingerprint(),
            "proof": dataclasses.asdict(proof),
            "golden": {"texts": list(GOLDEN), "vectors": _golden(encoder)},
            "versions": _versions(),
            "history": history or [],
            "recipe": recipe.model_dump(mode="json") if recipe else None,
        }
        _write_json(partial / FACTS, facts)
        text = model_card.render(facts, encoder.input_format, REQUIREMENTS) if card is None else card
        (partial / "README.md").write_text(text, encoding="utf-8")


def read(folder: Path, dtype: str = "auto") -> "Encoder":
    """The encoder that `write` wrote, proven again. ValueError if `folder` is not such a directory."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    from llm2enc.backbone import Backbone
    from llm2enc.encoder import Encoder
    from llm2enc.proof import prove
    from llm2enc.recipe import InputSpec
    from llm2enc.tokens import InputFormat

    facts = _read_facts(folder)
    spec = InputSpec.model_validate_json(json.dumps(facts["input"]))
    input_format = InputFormat(spec, AutoTokenizer.from_pretrained(folder))
    config = AutoConfig.from_pretrained(folder)
    if _is_gemma3(config.model_type) and config.use_bidirectional_attention:
        # Our own switch is is_causal. Both together would widen the window by one; see _attention_keys.
        config.use_bidirectional_attention = False
        config.sliding_window -= 1
    model = AutoModel.from_pretrained(folder, config=config, use_safetensors=True, dtype=dtype)
    backbone = Backbone(model, bidirectional=facts["attention"] == "bidirectional")
    if torch.cuda.is_available():
        backbone.to("cuda")
    prove(backbone)
    return Encoder(backbone, input_format, facts["pooling"], facts["normalize"]).eval()


# --------------------------------------------------------------------------------------------------------------- trunk


def _write_trunk(encoder: "Encoder", folder: Path) -> list[str]:
    """Weights and config.json; what a reader should know about them."""
    trunk = encoder.backbone.trunk
    former = {name: getattr(trunk.config, name) for name in ("architectures", "dtype")}
    trunk.save_pretrained(folder)
    for name, value in former.items():  # saving sets both on the live model
        setattr(trunk.config, name, value)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    window, notes = _unused_window(config, encoder.input_format.spec.max_tokens)
    config |= window
    config |= _legacy_rope(config)
    config |= _attention_keys(config, encoder.backbone.bidirectional)
    if not encoder.backbone.bidirectional or _is_gemma3(config["model_type"]):
        config.pop("is_causal", None)
    _write_json(folder / "config.json", config)
    return notes


def _attention_keys(config: dict[str, Any], bidirectional: bool) -> dict[str, Any]:
    """The keys by which engines know the direction."""
    if not bidirectional:
        return {}
    if _is_gemma3(config["model_type"]):
        # Engines read only this key here, and transformers then halves the window and counts it exclusively: twice the
        # window makes |i - j| <= W, which is what is_causal=False means everywhere else.
        return {"use_bidirectional_attention": True, "sliding_window": 2 * config["sliding_window"]}
    key = {"use_bidirectional_attention": True} if config["model_type"] in _BIDIRECTIONAL_KEY else {}
    return {"is_causal": False, **key}


def _is_gemma3(model_type: str) -> bool:
    return model_type == "gemma3_text"


def _unused_window(config: dict[str, Any], max_tokens: int) -> tuple[dict[str, Any], list[str]]:
    """Changes that take out a sliding window no input can reach, and what to say about one that stays.

    Engines disagree about a window by one token, so none is better than one without effect.
    """
    window, family = config.get("sliding_window"), config["model_type"]
    if window is None:
        return {}, []
    if window < max_tokens:
        return {}, [
            f"Some layers read {window} tokens to either side. Flash-attention kernels count one token less than eager "
            f"and SDPA do, so vectors of texts beyond {window} tokens differ a little between them."
        ]
    if family not in _WINDOW_IS_ONLY_A_MASK:
        return {}, [f"config.json keeps a sliding window of {window} tokens, which no input of this model reaches."]
    changes: dict[str, Any] = {"sliding_window": None}
    if "use_sliding_window" in config:
        changes["use_sliding_window"] = False
    if config.get("layer_types"):
        changes["layer_types"] = ["full_attention"] * len(config["layer_types"])
    return changes, []


def _legacy_rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings under the names that transformers 4 and other engines know; they ignore `rope_parameters`."""
    parameters = config.get("rope_parameters") or {}
    if _is_gemma3(config["model_type"]):
        return {
            **_flat_rope(parameters["full_attention"]),
            "rope_local_base_freq": parameters["sliding_attention"]["rope_theta"],
        }
    return _flat_rope(parameters) if "rope_theta" in parameters else {}


def _flat_rope(parameters: dict[str, Any]) -> dict[str, Any]:
    scaling = {key: value for key, value in parameters.items() if key not in ("rope_theta", "partial_rotary_factor")}
    partial = {key: parameters[key] for key in ("partial_rotary_factor",) if key in parameters}
    scaled = parameters.get("rope_type", "default") != "default"
    return {"rope_theta": parameters["rope_theta"], **partial, "rope_scaling": scaling if scaled else None}


# ------------------------------------------------------------------------------------------------------------- modules


def _write_modules(encoder: "Encoder", folder: Path) -> dict[str, Any]:
    """Tokenizer and sentence-transformers' files; what they can say of this encoder and what not."""
    from transformers import AutoTokenizer

    input_format, pooling = encoder.input_format, encoder.pooling
    split = exported.layout(input_format)
    exported.save(input_format, split, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)  # as others open it: a family's own class could change it
    by_name = exported.prompts(input_format, split)
    found = {include: exported.compare(input_format, tokenizer, by_name, pooling, include) for include in (True, False)}
    include_prompt = len(found[True]) <= len(found[False])
    differences = [difference for difference in found[include_prompt] if difference.probe != "an empty text"]
    # A prompt that gives other ids for a plain text is left out: an error that names it is better than a wrong vector.
    broken = {d.prompt for d in differences if d.kind == "prompt" or (d.kind == "ids" and d.probe == "a plain text")}
    prompts = {name: prompt for name, prompt in by_name.items() if prompt is not None and name not in broken}
    _write_json(folder / "modules.json", _modules(encoder.normalize))
    (folder / "1_Pooling").mkdir()
    _write_json(folder / "1_Pooling" / "config.json", _pooling(encoder.backbone.width, pooling, include_prompt))
    if encoder.normalize:
        (folder / "2_Normalize").mkdir()
        _write_json(folder / "2_Normalize" / "config.json", {})  # an empty folder would not survive git
    _write_json(folder / "sentence_bert_config.json", _transformer(exported.max_seq_length(input_format, split)))
    _write_json(folder / "config_sentence_transformers.json", _top(prompts))
    notes = []
    if len(differences) < len(found[include_prompt]):
        notes.append(
            "An empty text is one token here, so that it has a vector; other programs may give it none, and fail."
        )
    if not include_prompt:
        notes.append(
            "The prompt is not pooled. Only sentence-transformers knows this rule (include_prompt: false); vLLM and "
            "text-embeddings-inference pool the prompt too and give other vectors for texts with one."
        )
    if exported.cuts_inside_characters(input_format, tokenizer, by_name["document"] or ""):
        notes.append(
            "A text beyond the limit is cut at a whole character by llm2enc, and inside one by other programs, if the "
            "limit falls inside a character of several tokens (emoji): up to three tokens differ."
        )
    return {
        "native": not differences,
        "reason": _reason(differences, encoder) if differences else "",
        "prompts": prompts,
        "differences": [dataclasses.asdict(difference) for difference in differences],
        "notes": notes,
    }


def _modules(normalize: bool) -> list[dict[str, Any]]:
    """modules.json with the class paths that vLLM and text-embeddings-inference compare with; new releases know both."""
    rows = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    return [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (path, name) in enumerate(rows)
    ]


def _pooling(width: int, pooling: "Pooling", include_prompt: bool) -> dict[str, Any]:
    """1_Pooling/config.json in the old and the new schema."""
    mode = POOLING_MODES[pooling]
    old = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens": "weightedmean",
        "pooling_mode_lasttoken": "lasttoken",
    }
    return {
        "word_embedding_dimension": width,
        "embedding_dimension": width,
        **{key: name == mode for key, name in old.items()},
        "pooling_mode": mode,
        "include_prompt": include_prompt,
    }


def _transformer(limit: int) -> dict[str, Any]:
    """sentence_bert_config.json. Releases before 5.4, which may run a causal model, stop at the last three keys."""
    return {
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
        "__version__": {name: value for name, value in _versions().items() if name in ("transformers", "torch")},
        "prompts": prompts,
        # Without it, `encode(texts)` would leave out what the document template has before the text.
        "default_prompt_name": "document" if prompts.get("document") else None,
        "similarity_fn_name": "cosine",
        "requirements": {
            name: {"specifier": specifier, "reason": "Older releases may run this model with causal attention."}
            for name, specifier in REQUIREMENTS.items()
        },
    }


def _reason(differences: list[Difference], encoder: "Encoder") -> str:
    """What sentence-transformers can't do as we do, and what in the recipe would change that."""
    sentences = []
    unsaid = _names(d.prompt for d in differences if d.kind == "prompt")
    if unsaid:
        sentences.append(
            f"the prompts {unsaid} are left out: what they change is not a prefix of the text, so only llm2enc can build "
            "their input. Give both templates the same parts after the text, and Echo templates no instruction"
        )
    pooled = [d for d in differences if d.kind == "pool"]
    if pooled:
        echo = "; for Echo that is another method, so use `pooling: last` with a pooled EOS instead"
        remedy = {"last": "the last part", "first": "the first part"}.get(encoder.pooling, "every part")
        sentences.append(
            f"it pools tokens that our template reads only ({_names(d.prompt for d in pooled)}); to make it exact, set "
            f"`pool: true` on {remedy} of both templates" + (echo if _is_echo(encoder) else "")
        )
    ids = [d for d in differences if d.kind == "ids"]
    if ids:
        spec = encoder.input_format.spec
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
    return "sentence-transformers can't do all of it: " + ". And ".join(sentences) + "."


def _is_echo(encoder: "Encoder") -> bool:
    return sum(part.slot == "text" for part in encoder.input_format.spec.document) > 1


def _names(items: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(items))


# ------------------------------------------------------------------------------------------------------ facts and files


def _golden(encoder: "Encoder") -> list[list[float]]:
    """Vectors of the golden texts, six decimals, for whoever opens the directory with another program."""
    return np.round(encoder.encode(list(GOLDEN)).astype(np.float64), 6).tolist()


def _versions() -> dict[str, str]:
    found = {}
    for name in ("llm2enc", "torch", "transformers", "tokenizers", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a source tree that was never installed
            found[name] = "unknown"
    return found


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS
    if not path.is_file():
        raise ValueError(
            f"{folder} is not a directory written by llm2enc: it has no {FACTS}. Convert a model first: "
            "llm2enc convert NAME -o DIR"
        )
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {facts.get('format')!r}, this llm2enc reads format {FORMAT}; install the release that "
            f"wrote it ({facts.get('versions', {}).get('llm2enc', 'unknown')}), or a newer one"
        )
    return facts


def _check_target(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a directory")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FACTS).is_file():
        raise ValueError(
            f"{folder} is not empty and no export of llm2enc ({FACTS} is missing); choose another directory"
        )


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """An empty directory beside `folder` that takes its place in the end, or is removed if anything goes wrong."""
    folder = folder.absolute()
    partial, former = (folder.with_name(f".{folder.name}.{state}-{os.getpid()}") for state in ("partial", "former"))
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(former)
        try:
            partial.rename(folder)
        except OSError:
            if former.exists():
                former.rename(folder)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
