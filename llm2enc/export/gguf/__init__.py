"""GGUF files for llama.cpp: weights, tokenizer and everything else in one file per type.

    gguf/model-f32.gguf, model-f16.gguf, model-q8_0.gguf

`{arch}.attention.causal` and `{arch}.pooling_type` make llama.cpp give our vectors; it reads both for every architecture
since March 2026. Prompts are strings that the client puts before the text, written out (`llm2enc.prompts` in the file, a
JSON object).

A whole text must fit into one physical batch, or llama.cpp stops with a failed assertion (llama-server: with an error):

    llama-server -m model-f16.gguf --embedding -c N -b N -ub N -np 1      N: max_tokens or more
    Llama(path, embedding=True, n_ctx=N, n_batch=N, n_ubatch=N).embed(text, normalize=True)
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llm2enc.artifact import Layout, Metadata, asked, layout
from llm2enc.encoding import Encoder
from llm2enc.errors import CannotExport, InputError, NoGGUF, require
from llm2enc.export.gguf import families, rope, tensors, vocabulary
from llm2enc.model import POOLERS
from llm2enc.storage import remove_stale, sync_one, temp_path

if TYPE_CHECKING:
    from gguf import GGUFWriter


SUMMARY = "GGUF files for llama.cpp: weights, tokenizer and pooling in one file, in 32, 16 or 8 bits"

# Type of the file: its suffix, and llama.cpp's number for it.
FILE_TYPES = {"float32": ("f32", 0), "float16": ("f16", 1), "q8_0": ("q8_0", 7)}
# Names by which llama.cpp changes how it tokenizes.
_MEANINGFUL_NAME = re.compile(r"phi-?3|modern-bert", re.IGNORECASE)
_SHORT_TEXTS = ("a", "The river runs through the old town.")


def unsupported_reason(encoder: Encoder, metadata: Metadata) -> str:
    """Why llama.cpp cannot give the vectors of this encoder, and what to do; empty if it can."""
    try:
        _checked(encoder, metadata)
    except NoGGUF as reason:
        return f"no GGUF: {reason}"
    return ""


def notes(encoder: Encoder, metadata: Metadata) -> list[str]:
    """What whoever serves the files should know. CannotExport as `write`."""
    _, words = _accepted(encoder, metadata)
    limit, bidirectional = encoder.max_tokens, encoder.backbone.bidirectional
    found = [
        f"Give llama.cpp a physical batch of at least {limit} tokens (-c {limit} -b {limit} -ub {limit}). Longer texts are "
        "errors there, or lose their end without the closing token; llm2enc cuts the text and keeps that token.",
        *words.notes,
    ]
    if bidirectional and families.architecture(encoder.backbone.config, True) not in ("llama-embed", "gemma-embedding"):
        found.append("llama.cpp before March 2026 reads this file as a causal model without a word.")
    if bidirectional and encoder.pooling == "last":
        found.append(
            "Start llama-server with -np 1: with pooling LAST it may split a text to fill a batch with several, and the "
            "parts would not see each other."
        )
    if not encoder.normalize:
        found.append("Vectors are not normalised; llama-server does it unless started with --embd-normalize -1.")
    return found


def write(encoder: Encoder, folder: Path, metadata: Metadata, *, dtypes: Sequence[str] = ("float16",)) -> list[Path]:
    """Write gguf/model-*.gguf into `folder`, one file per type. CannotExport if `unsupported_reason` has a reason.

    dtypes  of float32, float16, q8_0 (8 bits, a scale per 32 weights). Norms and biases are float32 in all of them
    """
    unknown = [dtype for dtype in dtypes if dtype not in FILE_TYPES]
    if unknown or not dtypes:
        raise InputError(f"dtypes is {list(dtypes)}; GGUF files are written in {', '.join(FILE_TYPES)}")
    split, words = _accepted(encoder, metadata)
    require("gguf", extra="gguf")
    import gguf

    arch = families.architecture(encoder.backbone.config, encoder.backbone.bidirectional)
    if arch not in gguf.MODEL_ARCH_NAMES.values():
        raise InputError(f"this release of gguf does not know {arch!r}: pip install -U 'llm2enc[gguf]' (0.18 or later)")
    target = folder / "gguf"
    target.mkdir(parents=True, exist_ok=True)
    return [_write(encoder, metadata, split, words, target, dtype) for dtype in dict.fromkeys(dtypes)]


# -------------------------------------------------------------------------------------------------------------- checks


def _accepted(encoder: Encoder, metadata: Metadata) -> tuple[Layout, vocabulary.Vocabulary]:
    try:
        return _checked(encoder, metadata)
    except NoGGUF as reason:
        raise CannotExport(f"no GGUF: {reason}") from None


def _checked(encoder: Encoder, metadata: Metadata) -> tuple[Layout, vocabulary.Vocabulary]:
    """How the template splits, and the tokenizer. NoGGUF if llama.cpp cannot do one of all things."""
    backbone, limit = encoder.backbone, encoder.max_tokens
    if backbone.has_adapter:
        raise NoGGUF("the encoder still carries an adapter; call encoder.backbone.merge_lora() first")
    if encoder.head is not None:
        raise NoGGUF(
            f"the encoder has {encoder.head.spec.words}, which the GGUF files that llm2enc writes cannot hold; export it to "
            "onnx or openvino, or serve the directory with sentence-transformers"
        )
    if POOLERS[encoder.pooling].gguf is None:
        known = ", ".join(name for name, pooler in POOLERS.items() if pooler.gguf is not None)
        raise NoGGUF(f"llama.cpp has no pooling {encoder.pooling!r}, only {known}; train with `pooling: mean` instead")
    families.family_of(backbone.config)
    families.check_biases(backbone.decoder)
    families.window(backbone.config, backbone.bidirectional, limit)
    rope.metadata(backbone.decoder, limit)
    split = _template(encoder, metadata)
    tokenizer: Any = encoder.input_format.tokenizer
    words = vocabulary.read(tokenizer.backend_tokenizer.to_str(), backbone.config.vocab_size)
    return split, words


def _template(encoder: Encoder, metadata: Metadata) -> Layout:
    """The split of the template, whose ends llama.cpp must be able to add: a first token and a last one."""
    if not metadata.native:
        raise NoGGUF(f"its input cannot be built outside llm2enc. {metadata.reason}")
    split = layout(encoder.input_format)
    lead, suffix = split.runs[0][: split.lead], split.runs[-1]
    if split.slots != 1 or len(lead) > 1 or len(suffix) > 1:
        raise NoGGUF(
            f"llama.cpp adds one token before the text and one after it; this template adds {len(lead)} and {len(suffix)}. "
            "Write a template of bos, text and eos in the recipe's `input`, with everything else before the text as literals"
        )
    if not _pools_what_llama_pools(encoder):
        raise NoGGUF(
            "llama.cpp pools the template's tokens too, and this encoder leaves some of them out of the vector; set "
            "`pool: true` on every part of both templates"
        )
    flagged = [
        token.content
        for token in encoder.input_format.tokenizer.added_tokens_decoder.values()
        if (token.lstrip or token.rstrip)
        and any(token.content in prompt for prompt in metadata.written_prompts.values())
    ]
    if flagged:
        raise NoGGUF(
            f"prompts contain {', '.join(flagged)}, which takes whitespace beside it along; llama.cpp does not"
        )
    return split


def _pools_what_llama_pools(encoder: Encoder) -> bool:
    """Whether the pooled tokens are all of them (mean), or the outer one (first, last), under every prompt."""
    for instruction, role in asked(encoder.input_format).values():
        for text in _SHORT_TEXTS:
            pool = encoder.input_format.pack([text], instruction, role).pool
            if not POOLERS[encoder.pooling].same_in_others(pool):
                return False
    return True


# ---------------------------------------------------------------------------------------------------------------- file


def _write(
    encoder: Encoder, metadata: Metadata, split: Layout, words: vocabulary.Vocabulary, target: Path, dtype: str
) -> Path:
    """One file, beside its place and then renamed."""
    import gguf

    backbone = encoder.backbone
    decoder, config = backbone.decoder, backbone.config
    arch = families.architecture(config, backbone.bidirectional)
    suffix, number = FILE_TYPES[dtype]
    path = target / f"model-{suffix}.gguf"
    remove_stale(path)
    partial = temp_path(path)
    writer = gguf.GGUFWriter(partial, arch)
    _add_metadata(writer, encoder, metadata)
    writer.add_file_type(number)
    if dtype == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(writer, split, words, encoder)
    try:
        makers = tensors.add(writer, list(tensors.items(decoder, arch, encoder.max_tokens)), dtype)
        if families.FAMILIES[config.model_type].head:
            makers.append(tensors.head(writer, config.vocab_size, config.hidden_size))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for make in makers:
            writer.write_tensor_data(make())
        writer.close()
        sync_one(partial)
        partial.replace(path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return path


def _add_metadata(writer: "GGUFWriter", encoder: Encoder, metadata: Metadata) -> None:
    backbone, config = encoder.backbone, encoder.backbone.config
    name = (metadata.recipe or {}).get("name") or config.model_type
    writer.add_name("encoder" if _MEANINGFUL_NAME.search(name) else name)
    writer.add_string("llm2enc.fingerprint", metadata.fingerprint)
    writer.add_string("llm2enc.prompts", json.dumps(metadata.written_prompts, ensure_ascii=False))
    # Not the model's: llama-server refuses longer texts by this number instead of reading what llm2enc would cut.
    writer.add_context_length(encoder.max_tokens)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    writer.add_key_length(families.head_width(config))
    writer.add_value_length(families.head_width(config))
    writer.add_uint32(f"{writer.arch}.pooling_type", cast(int, POOLERS[encoder.pooling].gguf))
    if backbone.bidirectional:
        writer.add_causal_attention(False)
    if config.model_type == "gpt_neox":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_parallel_residual(config.use_parallel_residual)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    window = families.window(config, backbone.bidirectional, encoder.max_tokens)
    if window is not None:
        writer.add_sliding_window(window[0])
        writer.add_sliding_window_pattern(window[1])
    for key, value in rope.metadata(backbone.decoder, encoder.max_tokens).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"{writer.arch}.rope.{key}", value)


def _add_tokenizer(writer: "GGUFWriter", split: Layout, words: vocabulary.Vocabulary, encoder: Encoder) -> None:
    tokenizer: Any = encoder.input_format.tokenizer
    lead, suffix = split.runs[0][: split.lead], split.runs[-1]
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    if words.merges is not None:
        writer.add_token_merges(words.merges)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
    if words.space_prefix is not None:
        writer.add_add_space_prefix(words.space_prefix)
    writer.add_add_bos_token(bool(lead))
    writer.add_add_eos_token(bool(suffix))
    # The tokens that the template adds, whatever the tokenizer itself calls its first and last.
    ends = {"bos": (*lead, tokenizer.bos_token_id), "eos": (*suffix, tokenizer.eos_token_id)}
    others = {"unknown": (tokenizer.unk_token_id,), "padding": (tokenizer.pad_token_id,)}
    for name, ids in (ends | others).items():
        if ids[0] is not None:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", ids[0])
