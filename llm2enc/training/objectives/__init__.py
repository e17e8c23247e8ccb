"""What a stage trains for. An objective is three functions and one line in `OBJECTIVES`:

batches(stage, input_format, seed, start)      the rows of each global batch, from step `start` on
collate(rows, stage, input_format, seed)       this process's part of a batch, on the CPU, in a background thread
backward(encoder, batch, stage)                leaves this process's part of the gradient of the GLOBAL batch in the
                                               trained parameters (`distributed.sum_gradients` completes it) and
                                               returns what to log; `loss` is the value of the global batch
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llm2enc.data import RowBatch
from llm2enc.encoding import Encoder
from llm2enc.text import InputFormat
from llm2enc.training.objectives import clm, contrastive, mntp, simcse


@dataclass(frozen=True)
class Objective:
    batches: Callable[[Any, InputFormat, int, int], Iterator[RowBatch]]
    collate: Callable[[RowBatch, Any, InputFormat, int], Any]
    backward: Callable[[Encoder, Any, Any], dict[str, Tensor]]


OBJECTIVES: dict[str, Objective] = {
    "clm": Objective(clm.batches, clm.collate, clm.backward),
    "mntp": Objective(mntp.batches, mntp.collate, mntp.backward),
    "simcse": Objective(simcse.batches, simcse.collate, simcse.backward),
    "contrastive": Objective(contrastive.batches, contrastive.collate, contrastive.backward),
}
