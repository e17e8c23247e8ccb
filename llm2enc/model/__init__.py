"""The decoder as an encoder's backbone: loading, bidirectional attention on packed rows, pooling, and the proof of both."""

from llm2enc.model import limits
from llm2enc.model.backbone import Backbone, evaluating
from llm2enc.model.hooks import decoder_layers, emulated
from llm2enc.model.inspection import inspect
from llm2enc.model.loading import (
    load_backbone,
    load_config,
    load_tokenizer,
    naming_untrusted_code,
    quiet,
    resolve,
    skeleton,
    text_config,
    without_kernels,
)
from llm2enc.model.pooling import POOLERS, pooled_edges
from llm2enc.model.proof import prove

__all__ = [
    "POOLERS",
    "Backbone",
    "decoder_layers",
    "emulated",
    "evaluating",
    "inspect",
    "limits",
    "load_backbone",
    "load_config",
    "load_tokenizer",
    "naming_untrusted_code",
    "pooled_edges",
    "prove",
    "quiet",
    "resolve",
    "skeleton",
    "text_config",
    "without_kernels",
]
