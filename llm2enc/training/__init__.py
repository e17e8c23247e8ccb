"""Training: one loop for every objective, exact gradients at any memory, checkpoints that resume bit for bit."""

from llm2enc.training import checkpoint
from llm2enc.training.gradcache import kept_activations
from llm2enc.training.microbatch import BatchPartition, idle
from llm2enc.training.objectives import OBJECTIVES
from llm2enc.training.objectives.token_loss import head_gradient
from llm2enc.training.origin import origin
from llm2enc.training.precision import settled
from llm2enc.training.prepare import check_stages, load_kept, prepare, prepare_backbone
from llm2enc.training.teachers import Teachers
from llm2enc.training.trainer import train

__all__ = [
    "OBJECTIVES",
    "BatchPartition",
    "Teachers",
    "check_stages",
    "checkpoint",
    "head_gradient",
    "idle",
    "kept_activations",
    "load_kept",
    "origin",
    "prepare",
    "prepare_backbone",
    "settled",
    "train",
]
