"""A causal language model from a directory, the hub or the package, and what is read of it before its weights."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from llm2enc.errors import CannotConvert, InputError, explained
from llm2enc.model import attention, limits
from llm2enc.model.backbone import Backbone
from llm2enc.model.families import (
    causal_by_config,
    is_bidirectional,
    text_config,
    unsupported_reason,
    with_common_direction,
)
from llm2enc.model.layers import cut
from llm2enc.model.quantized import quantization, quantized_reason
from llm2enc.model.sources import chosen, resolve
from llm2enc.model.vocabulary import check_config, with_rows
from llm2enc.model.weights import check_no_adapter, find_file, load_model
from llm2enc.recipe import ModelSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# What transformers raises over a config.json with values of the wrong kind.
_BAD_FILES = (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError)
_REMEDY = "give a causal language model whose files are whole, with weights in safetensors"


def _folder(spec: ModelSpec, weights: bool = False) -> str:
    """What transformers opens for a spec."""
    found = chosen(spec)
    return resolve(found.source, found.revision, weights)


def load_tokenizer(spec: ModelSpec) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, of which every token has a row in the embedding.

    raises  ValueError if it brings code of its own and the recipe does not trust it, if its files hold no tokenizer, or
            one with tokens that the model does not have (see `vocabulary`)
    """
    from transformers import AutoTokenizer

    folder = _folder(spec)
    check_no_adapter(folder, spec.revision)
    with naming_untrusted_code(spec.source):
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, revision=spec.revision, trust_remote_code=spec.trust_remote_code
            )
        except (OSError, ImportError):  # not found, or a package is missing: both say what to do
            raise
        except Exception as error:  # a setting of the wrong type gives any, from TypeError to the tokenizers' own
            raise InputError(
                f"the tokenizer of {folder} cannot be opened: {type(error).__name__}: {error}; look at its tokenizer.json "
                "and tokenizer_config.json"
            ) from error
    if find_file(folder, "config.json", spec.revision) is None:  # a tokenizer of no model, to look at data with
        return tokenizer
    return with_rows(tokenizer, text_config(load_config(spec)), spec.source)


def load_config(spec: ModelSpec) -> "PretrainedConfig":
    """The model's configuration, of the layers that are kept, its direction and window said as every family says them.

    raises  ValueError if it brings code of its own and the recipe does not trust it, cannot be cut, or is an adapter;
            CannotConvert if its weights are quantised
    """
    from transformers import AutoConfig

    folder = _folder(spec)
    check_no_adapter(folder, spec.revision)
    with naming_untrusted_code(spec.source):
        config = AutoConfig.from_pretrained(folder, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    how = quantization(config.to_dict())
    if how:
        raise CannotConvert(f"{spec.source} cannot be a base: {quantized_reason(spec.source, how)}")
    config = with_common_direction(without_kernels(config))
    with naming_untrusted_code(spec.source):
        return cut(config, spec.layers, spec.trust_remote_code)


@contextmanager
def naming_untrusted_code(name: str | Path) -> Iterator[None]:
    """What transformers says of a model's files, and of code that comes with them, in terms of a recipe."""
    try:
        with explained(str(name), "look at its config.json", _BAD_FILES):
            yield
    except InputError as error:
        if "trust_remote_code" not in str(error.__cause__ or error):
            raise
        raise InputError(
            f"{name} brings Python code of its own, which runs only if the recipe says `model.trust_remote_code: true`; "
            "read that code first, and set `model.revision` to the commit that you have read"
        ) from None


def without_kernels(config: "PretrainedConfig") -> "PretrainedConfig":
    """The configuration without its word on kernels, which transformers would fetch from the hub and run.

    A name such as `kernels-community/flash-attn` in a stranger's config.json is code that nobody has said yes to.
    """
    config._attn_implementation = None  # of nested configurations too
    for part in (config, text_config(config)):
        if getattr(part, "_experts_implementation", None) is not None:
            part._experts_implementation = None
    return config


def load_backbone(spec: ModelSpec, seed: int = 0, lengths: Mapping[str, int | None] | None = None) -> "Backbone":
    """The backbone of a causal LM, bidirectional if the recipe says so.

    seed     for `random` weights
    lengths  tokens of the longest inputs, by the key that asks for them
    raises   before any weight is read: CannotConvert for a known family that cannot be converted, ValueError for inputs
             that are too long for the model, for a bidirectional model that is to be causal, and for ids beyond the
             embedding; ValueError for weights that are not whole (see `load_model`)
    """
    from transformers import AutoModelForCausalLM

    config = load_config(spec)
    reason = causal_by_config(text_config(config)) if spec.attention == "bidirectional" else ""
    if reason:
        raise CannotConvert(unsupported_reason(text_config(config).model_type, reason))
    if spec.attention == "causal" and is_bidirectional(config):
        raise InputError(
            f"{spec.source} is bidirectional already, by its config.json, and a recipe with `model.attention: causal` would "
            "read it in one direction: set `model.attention: bidirectional`, or give the causal model that it was made of"
        )
    limits.check_lengths(text_config(config), lengths or {})
    check_config(text_config(config), spec.source)
    attention.register()
    kwargs = {"dtype": getattr(torch, spec.dtype), "trust_remote_code": spec.trust_remote_code}
    with explained(spec.source, _REMEDY, (ValueError, SafetensorError)):
        if spec.weights == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(config, **kwargs)
        else:
            model = load_model(AutoModelForCausalLM, _folder(spec, weights=True), config, spec.revision, **kwargs)
    return Backbone(model, bidirectional=spec.attention == "bidirectional")


def skeleton(spec: ModelSpec, config: "PretrainedConfig | None" = None) -> "PreTrainedModel":
    """The model of a spec on the meta device, from its configuration alone: names, shapes and types, no weights.

    config  instead of the one that the spec names
    """
    from transformers import AutoModelForCausalLM

    config = load_config(spec) if config is None else copy.deepcopy(config)
    with explained(spec.source, _REMEDY), torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, spec.dtype), trust_remote_code=spec.trust_remote_code
        )


def quiet() -> None:
    """Turn off the libraries' progress bars and notices, for programs that show their own."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
