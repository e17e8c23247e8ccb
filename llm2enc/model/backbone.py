"""The causal language model under an encoder: load, convert or refuse, adapt, merge, hidden states, logits.

The only file that knows the names transformers and PEFT give to things. No model file is subclassed or copied: a model
is made bidirectional by `config.is_causal = False`, the switch that transformers and the serving engines read, and packed
rows go through the attention function of `attention.py`.

Legend: B texts, T tokens of the packed row, D width, V vocabulary, R rows.
"""

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm2enc import distributed
from llm2enc.errors import InputError
from llm2enc.model import attention
from llm2enc.model.adapters import left_out, lora_config
from llm2enc.model.attention import NAME, Packing, allowed, packed_call
from llm2enc.model.families import causal_by_config, decoder_of, families, text_config
from llm2enc.model.hooks import Float32Arithmetic, LastLayerPruning, LayerStates, decoder_layers, emulated
from llm2enc.model.proof_record import Proof, Route
from llm2enc.model.trainable import Part, check_float32, parameters_of
from llm2enc.model.weights import check_tensors
from llm2enc.recipe import LoraSpec
from llm2enc.storage import replace_text
from llm2enc.text import Tokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ADAPTER = "default"  # the name PEFT gives to the only adapter we keep


# Where a model comes from, how it is stored, and its direction, which an encoder may override.
_NO_SETTINGS = {
    "_name_or_path", "architectures", "dtype", "is_causal", "pruned_heads", "transformers_version",
    "use_bidirectional_attention", "use_cache",
}  # fmt: skip


class Backbone(nn.Module):
    """A transformers model that reads packed rows. `model` may have a language-model head or be a bare decoder."""

    def __init__(self, model: "PreTrainedModel", bidirectional: bool):
        super().__init__()
        attention.register()
        self.model = model
        self.bidirectional = bidirectional
        self.proof: Proof | None = None  # the last one, which is of the weights it names
        self._peft: list[Any] = []  # PEFT's wrapper while an adapter trains; in a list, so that it is no submodule
        self._outline: list[Backbone] = []  # this backbone without its layers' weights, while processes share them
        self._convert()
        self.route = self._choose_route()
        self._pruning = LastLayerPruning(self.decoder) if self.route == "packed" else None
        self._float32 = Float32Arithmetic(self.decoder)

    # ---- facts

    @property
    def decoder(self) -> "PreTrainedModel":
        """The text model without its head; what is exported and what adapters live in."""
        return decoder_of(self.model)

    @property
    def config(self) -> "PretrainedConfig":
        return text_config(self.model.config)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def width(self) -> int:
        return self.config.hidden_size

    @property
    def has_head(self) -> bool:
        return self.decoder is not self.model and self.model.get_output_embeddings() is not None

    @property
    def has_adapter(self) -> bool:
        return bool(self._peft)

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that get a gradient, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def fingerprint(self, adapter: bool = False) -> str:
        """SHA-256 of the decoder's weights: what an adapter's parent is recognised by.

        adapter  include the weights of the adapter itself, if there is one
        """
        return digest(self.decoder.state_dict() if adapter and self.has_adapter else _plain_state(self.decoder))

    def settings(self) -> dict[str, Any]:
        """The configuration, without what says nothing of the states of given ids in a given direction."""
        return {name: value for name, value in self.config.to_dict().items() if name not in _NO_SETTINGS}

    # ---- forward

    def hidden(self, tokens: Tokens, causal: bool | None = None, queries: Tensor | None = None) -> Tensor:
        """Last-layer states after the final norm: (T, D).

        causal   overrides the model's own direction for this call (a clm stage in a bidirectional model)
        queries  (T,) bool: only these states are needed. Others come out undefined, and the last layer skips them.
        """
        causal = not self.bidirectional if causal is None else causal
        # Never in training: a gradient cache runs once without a graph, and then again with one, and both must agree.
        encoding = not (self.training or torch.is_grad_enabled())
        widen = encoding and emulated(next(self.decoder.parameters()).dtype, self.device)
        with self._float32.active(widen):
            if self.route == "alone":
                return self._alone(tokens)
            row: dict[str, Any] = {
                "input_ids": tokens.ids[None],
                "position_ids": tokens.positions[None],
                "use_cache": False,
            }
            if self.route == "mask":
                return self._masked(tokens, row, causal)
            wanted = None if queries is None or bool(queries.all()) else queries.cpu()
            packing = Packing.of(tokens, causal)
            last = packing if wanted is None else Packing.of(tokens, causal, wanted)
            with packed_call():
                return self.decoder(**row, packing=packing, last_packing=last).last_hidden_state[0]

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(decoder_layers(self.decoder))

    def layers(self, tokens: Tokens, causal: bool | None = None) -> list[Tensor]:
        """States (T, D) of every layer: 0 is what the first layer is given, the last one what `hidden` returns.

        raises  ValueError for models whose layers hand on something else than one row of states
        """
        states, final = self._read_layers(tokens, causal)
        return [*(found[0] for found in states.found[:-1]), final]

    def cut_states(
        self, tokens: Tokens, layers: Sequence[int], causal: bool | None = None, queries: Tensor | None = None
    ) -> list[Tensor]:
        """States (T, D) of the model cut to each of `layers` (`model.layers`), 1 to `depth`, in one forward pass.

        What a layer hands on, through the final norm. Arguments and errors as of `hidden` and `layers`.
        """
        states, final = self._read_layers(tokens, causal, queries)
        ending = states.ending(final)
        if ending is None:
            raise InputError(
                f"{self.config.model_type} does more than a norm behind its last layer: a vector of its last layer only"
            )

        def ended(state: Tensor) -> Tensor:
            for module in ending:
                state = module(state)
            return state[0]

        return [final if layer == self.depth else ended(states.found[layer]) for layer in layers]

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (R, V) of last-layer states (R, D), with the family's scaling, bias and soft cap."""
        return self._head(inputs_embeds=hidden[None]).logits[0]

    @cached_property
    def plain_head(self) -> bool:
        """Whether logits are one linear layer, whose backward pass does not read them: they may be overwritten.

        A soft cap (Gemma 2) is no such head: its backward pass needs what came out.
        """
        layer = self.model.get_output_embeddings()
        if type(layer) is not nn.Linear:
            return False
        # Large, so that a cap of small logits shows too.
        probe = torch.linspace(-100, 100, layer.in_features, device=self.device, dtype=layer.weight.dtype)[None]
        with torch.no_grad():
            return torch.equal(self.logits(probe), layer(probe))

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        if on:
            # Reentrant checkpointing gives no gradient at all if the first input (a frozen embedding) needs none.
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.model.gradient_checkpointing_disable()

    def set_attention_dropout(self, rate: float) -> None:
        """Set the dropout on attention weights. ValueError if the family has none and `rate` is not zero."""
        found = 0
        for module in self.decoder.modules():
            for name in ("attention_dropout", "attn_dropout", "attn_pdrop"):
                value = getattr(module, name, None)
                if isinstance(value, nn.Dropout):
                    value.p, found = rate, found + 1
                elif isinstance(value, int | float) and not isinstance(value, bool):
                    setattr(module, name, rate)
                    found += 1
        if rate and not found:
            raise InputError(
                f"{self.config.model_type} has no attention dropout to set to {rate}; set `attention_dropout: 0` and "
                "rely on `lora.dropout` for noise"
            )

    # ---- adapters

    def add_lora(self, spec: LoraSpec, seed: int) -> None:
        """A fresh adapter on the decoder's linear layers; everything else is frozen. Its weights are float32.

        raises  InputError for targets that cannot be adapted
        """
        from peft import get_peft_model

        config = lora_config(spec, self.decoder)
        self.model.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # PEFT puts its layers into the decoder itself; keeping its wrapper out of our modules keeps names clean.
            self._peft = [get_peft_model(self.decoder, config)]
        for layer in self._lora_layers():
            if spec.dora:
                with _in_float32(layer):  # lengths that were measured in 16 bits would change the model at once
                    layer.lora_variant[ADAPTER].init(layer, ADAPTER)
            elif isinstance(layer.get_base_layer(), nn.Linear):
                layer.forward = partial(_lora_linear, layer)
        self.train(self.training)  # PEFT's new layers come in training mode, their dropout included

    def check_lora(self, spec: LoraSpec) -> None:
        """InputError for a shape that `add_lora` would refuse; nothing is changed."""
        lora_config(spec, self.decoder)

    @property
    def adapter_leaves_out(self) -> str:
        """The share of the layers' weights that the adapter is on, and what it is not on; empty if it is on all."""
        return left_out(self.decoder) if self.has_adapter else ""

    def continue_lora(self) -> None:
        """Train the adapter that is there on; everything else is frozen. ValueError if there is none."""
        if not self.has_adapter:
            raise InputError("`lora: continue` has nothing to go on with: the model carries no adapter")
        self.model.requires_grad_(False)
        for name, parameter in self.decoder.named_parameters():
            parameter.requires_grad_(".lora_" in name)

    def train_everything(self, head: bool) -> None:
        """All weights get a gradient; those of an untied head only with `head`."""
        check_float32(self.decoder.parameters(), "full training")
        self.model.requires_grad_(head)
        self.decoder.requires_grad_(True)

    def train_part(self, part: Part) -> None:
        """Some of the decoder's weights get a gradient, and no others. InputError for a part that it does not have."""
        chosen = parameters_of(part, self.decoder)
        self.model.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)

    def merge_lora(self) -> None:
        """Add the adapter to the weights under it, in float32, and remove it."""
        for layer in self._lora_layers():
            # One rounding, at the end: merged in bfloat16, a delta below 2**-9 of the weight would vanish.
            with _in_float32(layer), torch.no_grad():
                layer.merge(adapter_names=[ADAPTER])
        self._peft.pop().unload()

    def save_adapter(self, folder: Path) -> None:
        """The adapter in PEFT's own layout."""
        self._peft[0].save_pretrained(folder, save_embedding_layers=False)
        # PEFT writes a set, whose order is another one in every process; equal runs leave equal files.
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["target_modules"] = sorted(config["target_modules"])
        replace_text(path, json.dumps(config, indent=2, sort_keys=True))

    def load_adapter(self, folder: Path) -> None:
        """Weights saved by `save_adapter` into the adapter that `add_lora` made; every tensor must match."""
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load_file

        path = folder / "adapter_model.safetensors"
        own = get_peft_model_state_dict(self._peft[0], save_embedding_layers=False)
        shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
        check_tensors(path, shapes, "this model's adapter", "it was trained with another LoRA shape or another model")
        set_peft_model_state_dict(self._peft[0], load_file(path))

    # ---- several processes

    @property
    def sharded(self) -> bool:
        """Whether this process holds only a part of each layer's weights."""
        return bool(self._outline)

    def shard(self) -> None:
        """Spread the layers' own weights over the processes, until `unshard`; adapters and all else stay whole.

        From here on every process must run the model equally often.

        raises  ValueError for a torch or a model that cannot be spread
        """
        distributed.check_sharding()
        if self.route == "alone":
            raise InputError(
                f"`strategy: fsdp` needs every process to call the layers equally often, but {self.config.model_type} "
                "reads texts by length, one call each; use `strategy: ddp`"
            )
        layers = [layer for _, layer in decoder_layers(self.decoder)]
        own = {id(p) for layer in layers for name, p in layer.named_parameters() if ".lora_" not in name}
        # What two layers share, or a layer and the head, belongs to no single layer and stays whole.
        uses = Counter(id(parameter) for _, parameter in self.named_parameters(remove_duplicate=False))
        own = {parameter for parameter in own if uses[parameter] == 1}
        # FSDP cannot be taken off a module again, so what we go on with afterwards is set aside now.
        memo = {id(p): _without_memory(p) if id(p) in own else p for p in self.parameters()}
        outline = copy.deepcopy(self, memo)
        memo.clear()
        distributed.shard_layers(self.decoder, layers, {p for p in self.parameters() if id(p) not in own})
        self._outline.append(outline)

    def unshard(self) -> None:
        """Take all weights back into every process."""
        outline = self._outline.pop()
        for name, parameter in self.named_parameters():
            if distributed.is_sharded(parameter):
                path, _, last = name.rpartition(".")
                full = distributed.full_tensor(parameter.detach())
                setattr(outline.get_submodule(path), last, nn.Parameter(full, parameter.requires_grad))
        self.__dict__ = outline.__dict__

    # ---- internals

    def _read_layers(
        self, tokens: Tokens, causal: bool | None, queries: Tensor | None = None
    ) -> tuple[LayerStates, Tensor]:
        """What `hidden` returns, and the states on the way. InputError where a layer hands on something else."""
        states = LayerStates(self.decoder)
        with states:
            final = self.hidden(tokens, causal, queries)
        shape = (1, *final.shape)
        if len(states.found) != self.depth + 1 or any(found.shape != shape for found in states.found):
            raise InputError(
                f"the layers of {self.config.model_type} cannot be read one by one: a vector of its last layer only"
            )
        return states, final

    def _lora_layers(self) -> list[nn.Module]:
        from peft.tuners.lora import LoraLayer

        return [module for module in self.decoder.modules() if isinstance(module, LoraLayer)]

    def _convert(self) -> None:
        causal = not self.bidirectional
        for config in {id(c): c for c in (self.model.config, self.config, self.decoder.config)}.values():
            config.use_cache = False
            if self.bidirectional:
                config.is_causal = False
        for module in self.model.modules():
            if isinstance(getattr(module, "is_causal", None), bool):
                module.is_causal = causal

    def _choose_route(self) -> Route:
        """How packed rows are read; a few families bypass transformers' attention interface."""
        if not self.bidirectional and causal_by_config(self.config):
            return "alone"
        known = families().get(self.config.model_type, {})
        if known.get("packed", True) and self.model._can_set_attn_implementation():
            self.model.set_attn_implementation(NAME)
            return "packed"
        return "mask"

    def _masked(self, tokens: Tokens, row: dict[str, Any], causal: bool) -> Tensor:
        """The same states by a block-diagonal (1, 1, T, T) mask, for families without the attention interface."""
        packing = Packing.of(tokens, causal)
        dtype = torch.float32 if self._float32.on else next(self.decoder.parameters()).dtype
        kinds = set(getattr(self.config, "layer_types", None) or ["full_attention"])
        masks = {}
        for kind in kinds:
            mask = allowed(packing, self.config.sliding_window if kind == "sliding_attention" else None)
            additive = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            masks[kind] = additive.masked_fill(~mask, torch.finfo(dtype).min)[None, None]
        # Models with several kinds of layers take one mask per kind; one mask for all would narrow the others.
        mask = masks if len(masks) > 1 else masks.popitem()[1]
        return self.decoder(**row, attention_mask=mask).last_hidden_state[0]

    def _alone(self, tokens: Tokens) -> Tensor:
        """The same states from one call per length, without masks: recurrent layers have no other border of a text."""
        states: Tensor | None = None
        for group in Packing.of(tokens, causal=True).groups:
            found = self.decoder(input_ids=tokens.ids[group.keys], use_cache=False).last_hidden_state  # (N, L, D)
            if states is None:
                states = found.new_zeros(len(tokens.ids), found.size(-1))
            states = states.index_copy(0, group.keys.reshape(-1), found.flatten(0, 1))
        return states

    @cached_property
    def _head(self) -> nn.Module:
        """The model with a stub in place of its decoder: its own code turns given states into logits.

        Scaling (Cohere, Granite), bias (Phi), soft caps (Gemma 2) and pre-head layers stay exactly as the family has
        them. Weights are shared, not copied.
        """
        head = copy.copy(self.model)
        head.__dict__ = dict(self.model.__dict__)
        head._modules = dict(self.model._modules)
        name = next(name for name, module in head._modules.items() if self.decoder in module.modules())
        head._modules[name] = _GivenStates()
        return head


class _GivenStates(nn.Module):
    """A decoder whose last-layer states are the embeddings it is given."""

    @property
    def decoder(self) -> nn.Module:
        return self  # OPT's head asks a part of its decoder

    def forward(self, *args, inputs_embeds: Tensor, **kwargs) -> "_States":
        return _States(inputs_embeds)


class _States:
    """A decoder's output of any family: the states, and nothing else that a head may ask for."""

    def __init__(self, states: Tensor):
        self.last_hidden_state = states

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]


def _lora_linear(layer: nn.Module, inputs: Tensor) -> Tensor:
    """W x + scaling * B A x of PEFT's layer, with the sum inside of the last matrix product.

    Written as a product, a scaling and a sum, it would pass over outputs of full width twice more, and again backwards.
    """
    output = layer.base_layer(inputs)
    factor_a, factor_b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    autocast = torch.is_autocast_enabled(inputs.device.type)
    low = factor_a(layer.lora_dropout[ADAPTER](inputs if autocast else inputs.to(factor_a.weight.dtype)))
    wide = output if autocast else output.to(low.dtype)
    total = torch.addmm(wide.flatten(0, -2), low.flatten(0, -2), factor_b.weight.T, alpha=layer.scaling[ADAPTER])
    return total.view_as(output).to(output.dtype)


@contextmanager
def _in_float32(layer: nn.Module) -> Iterator[None]:
    """The weight under an adapter in float32, and in its own type afterwards."""
    weight = layer.get_base_layer().weight
    dtype = weight.dtype
    weight.data = weight.data.float()
    yield
    weight.data = weight.data.to(dtype)


def digest(state: dict[str, Tensor]) -> str:
    """SHA-256 of tensors and their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _without_memory(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)


def _plain_state(decoder: nn.Module) -> dict[str, Tensor]:
    """The decoder's weights by the names they have without an adapter."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in decoder.state_dict().items()
        if ".lora_" not in name
    }


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and the former mode afterwards."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)
