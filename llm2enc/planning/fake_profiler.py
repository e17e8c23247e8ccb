"""What one micro-batch of a stage takes: the backbone that trains, on tensors without contents (`cost_counter.py`).

A deep model is not run in full. Layers are sorted into kinds (same class, shapes and type of attention). Two of each
kind run, then three of one kind, and the difference counts for all others of it. Peaks are noted layer by layer: which
layer is at the peak may change with the depth, but what is alive at a given layer grows by the same amount with each
further one.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.losses import Layout
from llm2enc.model import POOLERS, decoder_layers
from llm2enc.planning.cost_counter import CostCounter, as_on_cuda
from llm2enc.planning.layers import Layers
from llm2enc.recipe import Pooling, Stage
from llm2enc.text import Tokens
from llm2enc.training import OBJECTIVES, head_gradient

GROUPS = 4  # lengths a micro-batch is given; more would cost time here and change next to nothing


@dataclass(frozen=True)
class Costs:
    """Of one micro-batch, on one process. Bytes beside the weights and their gradients, and operations."""

    graph: float = 0
    """What autograd keeps between the forward and the backward pass: the activations."""
    evaluated: float = 0
    """The most during a pass without a graph."""
    logits: float = 0
    """The most while logits and their gradient are made, the graph included; 0 without a head."""
    backward: float = 0
    """The most during forward and backward of the layers, the graph included."""
    casts: float = 0
    """16-bit copies of trained weights that autocast keeps for the whole step; contained in the others."""
    forward_flops: float = 0
    forward_attention: float = 0
    flops: float = 0
    """Forward and backward, and what checkpointing computes again."""
    attention: float = 0

    @property
    def peak(self) -> float:
        """The most at any moment."""
        return max(self.backward, self.logits)


@dataclass(frozen=True)
class StepConfig:
    """How a micro-batch runs."""

    autocast: bool
    cuda: bool
    causal: bool | None
    """None: in the model's own direction."""
    pooling: Pooling | None
    """How states become vectors; None for token prediction."""
    targets: float = 0.0
    """Share of the tokens that are predicted."""
    logit_rows: int = 1
    gradients: bool = True
    """Whether gradients of earlier micro-batches exist already."""
    evaluate: bool = False
    """Whether to look at a pass without a graph too."""


@dataclass
class _RunRecord:
    """What one run took."""

    peaks: dict[tuple[str, int], float] = field(default_factory=dict)
    """The most alive by phase of the step and number of the layer at work."""
    sums: dict[str, float] = field(default_factory=dict)

    def extended(self, longer: list[tuple["_RunRecord", int, int, int]]) -> "_RunRecord":
        """This run with more layers of some kinds.

        longer  for each kind: the run with one more layer of it, the layer's number, that of the layer before it of
                the same kind, and how many there are more
        """
        found = _RunRecord()
        for name, value in self.sums.items():
            found.sums[name] = value + sum(times * (run.sums[name] - value) for run, _, _, times in longer)
        for place, value in self.peaks.items():
            found.peaks[place] = value + sum(times * (run.peaks[place] - value) for run, _, _, times in longer)
        for run, new, kin, times in longer:
            for phase in {phase for phase, layer in run.peaks if layer == new}:
                # The last of its kind: in the shorter run that was the layer before.
                own = self.peaks[phase, kin]
                others = sum(
                    count * (other.peaks[phase, kin] - own) for other, _, _, count in longer if other is not run
                )
                found.peaks[phase, new] = own + times * (run.peaks[phase, new] - own) + others
        return found

    def peak(self, *phases: str) -> float:
        return max((value for (phase, _), value in self.peaks.items() if phase in phases), default=0)


class FakeProfiler:
    """Profiles steps of an encoder on fake tensors. The encoder is changed for good: only for counting."""

    def __init__(self, encoder: Encoder):
        self.encoder, self.backbone = encoder, encoder.backbone
        self.counter = CostCounter()
        self.counter.adopt(encoder)
        self.known: dict[Any, Costs] = {}
        self._phase = ""
        self._record = _RunRecord()
        for number, (_, layer) in enumerate(decoder_layers(self.backbone.decoder)):
            layer.register_forward_pre_hook(partial(self._enter, number), with_kwargs=True)

    def costs(self, lengths: Tensor, config: StepConfig) -> Costs:
        """Of a micro-batch of texts with these lengths (B,)."""
        lengths = representative(lengths)
        key = (tuple(lengths.tolist()), config)
        if key not in self.known:
            try:
                record = self._all_layers(lengths, config)
            except RuntimeError as error:  # torch's, for operations whose shape depends on contents
                raise InputError(
                    f"{self.backbone.config.model_type} cannot be planned: its layers do what the contents of their inputs "
                    f"say, or they don't run on outlines ({' '.join(str(error).split())[:200]})"
                ) from error
            self.known[key] = Costs(
                evaluated=record.peak("evaluate"),
                logits=record.peak("logits"),
                backward=record.peak("forward", "backward"),
                **record.sums,
            )
        return self.known[key]

    def loss(self, texts: int, stage: Stage) -> tuple[float, float, float]:
        """Bytes of all vectors of a step while micro-batches run a second time, the most during the contrastive loss, and
        its operations."""
        counter, width, queries = self.counter, self.encoder.dimensions, stage.batch_size
        start = counter.live
        counter.restart()
        parts = counter.like(torch.empty(texts, width, device="meta"))
        everything = parts.clone().requires_grad_()
        layout = Layout(torch.arange(queries), torch.arange(texts - queries) % queries)
        value = OBJECTIVES[stage.objective].similarities(stage, layout)(everything[:queries], everything[queries:])
        torch.autograd.backward(value)
        return counter.live - start, counter.peak - start, counter.flops

    def _all_layers(self, lengths: Tensor, config: StepConfig) -> _RunRecord:
        layers = Layers(self.backbone.decoder)
        if not layers.repeated:
            return self._run(lengths, config)
        with layers.only(layers.first):
            base = self._run(lengths, config)
        longer = []
        for number, kin, times in layers.repeated:
            with layers.only(sorted([*layers.first, number], key=layers.order.index)):
                longer.append((self._run(lengths, config), number, kin, times))
        return base.extended(longer)

    def _run(self, lengths: Tensor, config: StepConfig) -> _RunRecord:
        counter = self.counter
        tokens, queries = _tokens(lengths, config)
        trained = list(self.encoder.trained().values())
        for parameter in trained:
            parameter.grad = counter.like(parameter) if config.gradients else None
        overwrite = config.pooling is None and self._plain_head
        self._start, self._record = counter.live, _RunRecord()
        sums = self._record.sums
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=config.autocast)
        with autocast, as_on_cuda() if config.cuda else nullcontext():
            if config.evaluate:
                with self._during("evaluate"), torch.no_grad():
                    self._states(tokens, queries, config)
            with self._during("forward"):
                states = self._states(tokens, queries, config)
            sums["forward_flops"], sums["forward_attention"] = counter.flops, counter.attention
            sums["graph"] = counter.live - self._start
            with self._during("logits"):
                if config.pooling is None:
                    targets = torch.zeros(len(states), dtype=torch.long)
                    gradient = head_gradient(self.backbone, states, targets, 1.0, config.logit_rows, overwrite)[1]
                else:
                    gradient = torch.ones_like(states)
            head_flops = counter.flops
            with self._during("backward"):
                torch.autograd.backward(states, gradient)
                del states, gradient
            sums["flops"] = sums["forward_flops"] + head_flops + counter.flops
            sums["attention"] = sums["forward_attention"] + counter.attention
            sums["casts"] = counter.live - self._start if config.gradients else 0
        for parameter in trained:
            parameter.grad = None
        return self._record

    @contextmanager
    def _during(self, phase: str) -> Iterator[None]:
        self.counter.restart()
        self._phase, self._layer = phase, -1
        yield
        self._note(self._layer)
        self._phase = ""

    def _note(self, layer: int) -> None:
        """The peak since the last note belongs to this layer."""
        self._record.peaks[self._phase, layer] = self.counter.peak - self._start
        self.counter.peak = self.counter.live

    def _enter(self, number: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._phase not in ("evaluate", "forward"):  # a layer that is computed again
            return
        self._note(self._layer)
        self._layer = number
        states = args[0] if args else kwargs["hidden_states"]
        if states.requires_grad:
            states.register_hook(lambda gradient: self._note(number))

    def _states(self, tokens: Tokens, queries: Tensor, config: StepConfig) -> Tensor:
        """What the rest of the step is given: vectors, or the states that predict."""
        if config.pooling is None:
            return self.backbone.hidden(tokens, config.causal, queries)[queries.nonzero()[:, 0]]
        return self.encoder(tokens)

    @cached_property
    def _plain_head(self) -> bool:
        """`Backbone.plain_head`, which looks at values, without any."""
        head: Any = self.backbone.model.get_output_embeddings()
        weight = head.weight
        states = self.counter.like(weight[:1].detach()).requires_grad_()
        return _is_linear(self.backbone.logits(states))


def representative(lengths: Tensor) -> Tensor:
    """As many texts with about as many tokens, of `GROUPS` lengths at most: each quarter of them gets its mean."""
    ordered = torch.sort(lengths, descending=True).values
    if len(torch.unique(ordered)) <= GROUPS:
        return ordered
    return torch.cat([torch.full_like(part, round(part.double().mean().item())) for part in ordered.chunk(GROUPS)])


def _tokens(lengths: Tensor, config: StepConfig) -> tuple[Tokens, Tensor]:
    """Tokens of the lengths, and which of their states are needed."""
    total = int(lengths.sum())
    tokens = Tokens(
        torch.zeros(total, dtype=torch.long),
        lengths,
        torch.ones(total, dtype=torch.bool),
        torch.zeros(len(lengths)).bool(),
    )
    if config.pooling is not None:
        return tokens, POOLERS[config.pooling].needed(tokens.pool, lengths)
    # Evenly spread: every text of a length then asks the same number of states.
    place = torch.arange(total, dtype=torch.double)
    return tokens, torch.floor((place + 1) * config.targets) > torch.floor(place * config.targets)


def _is_linear(logits: Tensor) -> bool:
    """Whether nothing but one matrix product made the logits, so that they may be overwritten (Backbone.plain_head)."""
    moves = {"View", "UnsafeView", "Select", "Slice", "Squeeze", "Unsqueeze", "T", "Transpose", "ToCopy"}
    node = logits.grad_fn
    while node is not None:
        kind = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
        if kind in ("Mm", "Addmm"):
            return True
        if kind not in moves:
            return False
        node = node.next_functions[0][0]
    return False
