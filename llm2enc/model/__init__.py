"""The decoder as an encoder's backbone: loading, bidirectional attention on packed rows, pooling, and the proof of both."""

from llm2enc.model import limits
from llm2enc.model.backbone import Backbone, evaluating
from llm2enc.model.families import is_bidirectional, with_common_direction
from llm2enc.model.gguf_tokenizer import SPLITS
from llm2enc.model.heads import Head, fresh_head, head_outline, orthogonal, vectors_of, weights_fingerprint
from llm2enc.model.hooks import decoder_layers, emulated
from llm2enc.model.inspection import inspect
from llm2enc.model.loading import (
    load_backbone,
    load_config,
    load_tokenizer,
    naming_untrusted_code,
    quiet,
    skeleton,
    text_config,
    without_kernels,
)
from llm2enc.model.pooling import POOLERS, Pooler, pooled_edges
from llm2enc.model.proof import TOLERANCE, Proof, installed, prove, proven, spot_check
from llm2enc.model.shapes import published_config
from llm2enc.model.sources import choices, chosen, copy_notices, is_here, resolve
from llm2enc.model.vocabulary import check_config, with_rows
from llm2enc.model.weights import check_tensors, load_model, tensor_shapes

__all__ = [
    "POOLERS",
    "SPLITS",
    "TOLERANCE",
    "Backbone",
    "Head",
    "Pooler",
    "Proof",
    "check_config",
    "check_tensors",
    "choices",
    "chosen",
    "copy_notices",
    "decoder_layers",
    "emulated",
    "evaluating",
    "fresh_head",
    "head_outline",
    "inspect",
    "installed",
    "is_bidirectional",
    "is_here",
    "limits",
    "load_backbone",
    "load_config",
    "load_model",
    "load_tokenizer",
    "naming_untrusted_code",
    "orthogonal",
    "pooled_edges",
    "prove",
    "proven",
    "published_config",
    "quiet",
    "resolve",
    "skeleton",
    "spot_check",
    "tensor_shapes",
    "text_config",
    "vectors_of",
    "weights_fingerprint",
    "with_common_direction",
    "with_rows",
    "without_kernels",
]
