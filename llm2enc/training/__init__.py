"""Training: one loop for every objective, exact gradients at any memory, checkpoints that resume bit for bit."""

from llm2enc.training import checkpoint
from llm2enc.training.microbatch import Split, idle
from llm2enc.training.objectives import OBJECTIVES
from llm2enc.training.trainer import train

__all__ = [
    "OBJECTIVES",
    "Split",
    "checkpoint",
    "idle",
    "train",
]
