"""One LoRA adapter on the original base that does what all stages of a run did.

A run keeps an adapter per stage, each trained on the merged weights of the stage before. Merging only ever adds,

    W_n = W_0 + s_1 B_1 A_1 + ... + s_n B_n A_n = W_0 + [s_1 B_1 ... s_n B_n] [A_1; ...; A_n]

so the chain is one adapter whose rank is the sum of the ranks (LoRA: arXiv 2106.09685, eq. 3). `write` adds it
to a directory twice:

    adapter/              keys for the bare decoder (AutoModel), which `load` takes too
    adapter-causal-lm/    the same tensors under the names of the ...ForCausalLM class, what serving engines want

Both have one rank everywhere, with zero blocks where a stage left a module alone: several engines read `r` and
`lora_alpha` and no pattern per module. A chain in 16 bits was rounded after every stage, this sum never is, so their
vectors differ by that rounding.
"""

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llm2enc.artifact import METADATA_FILE, card, read_metadata, write_json
from llm2enc.errors import CannotExport, InputError, explained
from llm2enc.recipe import LoraSpec, Recipe, load_recipe
from llm2enc.storage import atomic_directory

if TYPE_CHECKING:
    import torch

    from llm2enc.model import Backbone

SUMMARY = "one LoRA adapter on the base model that equals all stages of a run (PEFT's layout)"
METADATA = "llm2enc_adapter.json"
FORMAT = 1
DECODER, CAUSAL_LM = "adapter", "adapter-causal-lm"

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<kind>lora|lora_embedding)_(?P<factor>[AB])(\.weight)?")
# Settings of PEFT under which an adapter is not s B A alone, and the value that means "not so".
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),  # others, such as PiSSA, change the weights under the adapter
    **dict.fromkeys(
        "alora_invocation_tokens alpha_pattern layer_replication lora_bias modules_to_save monteclora_config "
        "target_parameters trainable_token_indices use_bdlora use_dora use_qalora velora_config".split(),
        (None, False, {}, []),
    ),
}  # fmt: skip


def unsupported_reason(run: Path) -> str:
    """Why the run in folder `run` cannot become one adapter; empty if it can. Reads small files only."""
    if not (run / "recipe.yaml").is_file():
        return (
            f"{run} is no run of llm2enc (it has no recipe.yaml), and an encoder alone does not say what was trained: give "
            "the folder that `llm2enc convert -o` wrote"
        )
    recipe = load_recipe(str(run / "recipe.yaml"))
    if not recipe.stages:
        return f"{run} trained no stage, so there is no adapter; share the base model and the recipe"
    if recipe.head is not None and not recipe.head.training_only:
        return (
            f"{run} trained a {recipe.head.kind} head, which is no part of a LoRA adapter; share the exported directory"
        )
    if recipe.model.layers is not None:
        return (
            f"{run} keeps the first {recipe.model.layers} layers of its model, and an adapter would be loaded onto all of "
            "them; share the exported directory"
        )
    if recipe.model.weights == "random":
        return f"{run} started from random weights, which nobody can load an adapter onto; share the model itself"
    folders = _folders(run, recipe)
    unfinished = [folder.name for folder in folders if not (folder / "finished.json").is_file()]
    if unfinished:
        return f"{run} is not finished ({', '.join(unfinished)}); go on with it: llm2enc convert ... --resume"
    own = {
        folder.name: stage.trains
        for folder, stage in zip(folders, recipe.stages, strict=True)
        if stage.trainable != "lora"
    }
    if own:
        changed = ", ".join(f"{name} changed {part}" for name, part in own.items())
        return f"{run}: {changed} of the model, which no low-rank adapter holds; share the model itself"
    bare = [str(folder) for folder in folders if not (folder / "adapter" / "adapter_model.safetensors").is_file()]
    if bare:
        return f"the adapter of {', '.join(bare)} is missing; train the stage again"
    return "; ".join([*_odd_settings(folders), *_breaks(folders)])


def write(run: Path, folder: Path) -> list[Path]:
    """`folder`/adapter and `folder`/adapter-causal-lm from the stages of `run`; the files.

    raises  CannotExport if `unsupported_reason` says so; ValueError if a stage's adapter does not fit the base model, or if
            one of the two directories exists and was not written by this function
    """
    reason = unsupported_reason(run)
    if reason:
        raise CannotExport(reason)
    recipe = load_recipe(str(run / "recipe.yaml"))
    folders = _folders(run, recipe)
    _check_target(folder, _finished(folders[-1])["result"])
    # An adapter that the next stage goes on with is in that one's already.
    tensors = stack([_stage(stage) for index, stage in enumerate(folders) if not recipe.adapter_goes_on(index)])
    names = _names(recipe)
    unknown = sorted({module for module, _ in tensors} - names.decoder)
    if unknown:
        raise InputError(f"{run}: the base model {recipe.model.source} has no modules {unknown[:3]}; it has changed")
    metadata = _metadata(recipe, folders, rank=len(next(iter(tensors.values()))[0]))
    metadata["bidirectional_base"] = names.bidirectional
    files = _write_adapter(folder / DECODER, tensors, names.decoder, "", metadata | {"inside": names.inside})
    return files + _write_adapter(folder / CAUSAL_LM, tensors, names.model, names.prefix, metadata)


def load(backbone: "Backbone", folder: Path) -> None:
    """Merge the adapter of `folder` (a written `adapter` directory) into the backbone, in float32.

    raises  ValueError if the backbone's weights are not those the chain started from, or its direction is another
    """
    metadata = _read_metadata(folder)
    own = str(backbone.decoder.dtype).removeprefix("torch.")
    attention = "bidirectional" if backbone.bidirectional else "causal"
    if attention != metadata["attention"]:
        raise InputError(
            f"{folder} was trained with {metadata['attention']} attention; this model is read as {attention}"
        )
    fingerprint = backbone.fingerprint()
    if fingerprint != metadata["parent"]:
        stored = (
            "" if own == metadata["dtype"] else f". These are stored as {own}, those were loaded as {metadata['dtype']}"
        )
        raise InputError(
            f"{folder} belongs on weights {metadata['parent']}, but these are {fingerprint}: another base model or "
            f"revision{stored}"
        )
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    spec = LoraSpec(
        r=config["r"], alpha=config["lora_alpha"], dropout=0.0, targets=tuple(config["target_modules"])
    )  # fmt: skip
    backbone.add_lora(spec, seed=0)
    backbone.load_adapter(folder)
    backbone.merge_lora()
    backbone.model.requires_grad_(False)


# --------------------------------------------------------------------------------------------------------------- stages


def stack(stages: "list[dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]]") -> "dict[tuple[str, str], Any]":
    """One adapter that is the sum of several: (module, kind) -> factors (A, B), all of the same rank R.

    stages  for each stage, (module, kind) -> (A (r, inputs), s B (outputs, r)); a module may be missing
    returns A (R, inputs) and B (outputs, R) with R the sum over stages of their largest r
    """
    import torch

    ranks = [max(len(a) for a, _ in stage.values()) for stage in stages]
    stacked = {}
    for key in sorted({key for stage in stages for key in stage}):
        a, b = next(stage[key] for stage in stages if key in stage)
        whole_a, whole_b = torch.zeros(sum(ranks), a.size(1)), torch.zeros(b.size(0), sum(ranks))
        start = 0
        for stage, rank in zip(stages, ranks, strict=True):
            if key in stage:
                a, b = stage[key]
                whole_a[start : start + len(a)] = a
                whole_b[:, start : start + len(a)] = b
            start += rank
        stacked[key] = (whole_a, whole_b)
    return stacked


def _stage(folder: Path) -> "dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]":
    """(module, kind) -> (A, s B) of a stage's adapter. ValueError for a tensor that is no factor of a matrix."""
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    factors: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(folder / "adapter" / "adapter_model.safetensors").items():
        match = _KEY.fullmatch(name)
        if match is None or tensor.dim() != 2:
            raise InputError(
                f"{folder}/adapter: {name} {tuple(tensor.shape)} is no factor of a matrix; cannot be stacked"
            )
        factors.setdefault((match["module"], match["kind"]), {})[match["factor"]] = tensor.float()
    found = {}
    for key, pair in factors.items():
        rank = len(pair["A"])
        # PEFT multiplies B A with alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732).
        scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        found[key] = pair["A"], pair["B"] * scaling
    return found


def _folders(run: Path, recipe: Recipe) -> list[Path]:
    return [run / f"{index}-{stage.objective}" for index, stage in enumerate(recipe.stages)]


def _finished(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "finished.json").read_text(encoding="utf-8"))


def _odd_settings(folders: list[Path]) -> list[str]:
    """What in the adapters' configurations makes them more than s B A."""
    found = []
    for folder in folders:
        config = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
        odd = [
            f"{name}: {config[name]!r}"
            for name, plain in _PLAIN.items()
            if name in config and config[name] not in plain
        ]
        if odd:
            found.append(
                f"{folder.name} has {', '.join(odd)}, which a sum of matrices cannot hold; share the model itself"
            )
    return found


def _breaks(folders: list[Path]) -> list[str]:
    """Stages that do not stand on the result of the one before."""
    stages = [_finished(folder) for folder in folders]
    return [
        f"{folder.name} was trained on weights {after['parent'][:12]}, but the stage before it made "
        f"{before['result'][:12]}; train it again"
        for folder, before, after in zip(folders[1:], stages, stages[1:], strict=False)
        if after["parent"] != before["result"]
    ]


# ------------------------------------------------------------------------------------------------------------ base model


class _Names(NamedTuple):
    """Modules of the base model by name."""

    decoder: set[str]
    model: set[str]
    """Those of the whole causal LM."""
    prefix: str
    """What stands before the decoder's names there."""
    inside: str
    """Attribute of what AutoModel opens that is the decoder; empty where it opens just that (not so with vision)."""
    bidirectional: bool
    """Whether transformers reads the base in both directions by its own files."""


def _names(recipe: Recipe) -> _Names:
    import torch
    from transformers import AutoModelForCausalLM

    from llm2enc.model import Backbone, load_config, text_config

    config = load_config(recipe.model)
    bidirectional = getattr(text_config(config), "is_causal", None) is False
    with torch.device("meta"):  # names alone: no weight is read or made
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=recipe.model.trust_remote_code)
    decoder = Backbone(model, bidirectional=recipe.model.attention == "bidirectional").decoder
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    inner = next((name for name, module in model.base_model.named_modules() if module is decoder), "")
    own = {name for name, _ in decoder.named_modules()}
    whole = {name for name, _ in model.named_modules()}
    return _Names(own, whole, f"{prefix}.", "" if inner == prefix else inner, bidirectional)


def _targets(modules: set[str], names: set[str]) -> list[str]:
    """The shortest `target_modules` that mean these modules among `names` and no other."""
    short = {module.rpartition(".")[2] for module in modules}
    meant = {name for name in names if name.rpartition(".")[2] in short}
    return sorted(short if meant == modules else modules)


# ---------------------------------------------------------------------------------------------------------------- files


def _write_adapter(
    folder: Path, tensors: "dict[tuple[str, str], Any]", names: set[str], prefix: str, metadata: dict[str, Any]
) -> list[Path]:
    """One directory; `prefix` stands before the decoder's module names."""
    from safetensors.torch import save_file

    state, rank = {}, metadata["rank"]
    for (module, kind), (a, b) in tensors.items():
        suffix = ".weight" if kind == "lora" else ""
        state[f"base_model.model.{prefix}{module}.{kind}_A{suffix}"] = a
        state[f"base_model.model.{prefix}{module}.{kind}_B{suffix}"] = b
    config = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION" if folder.name == DECODER else "CAUSAL_LM",
        "base_model_name_or_path": metadata["base"],
        "revision": metadata["revision"],
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,  # the scalings are in B already
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _targets({prefix + module for module, _ in tensors}, names),
    }
    with atomic_directory(folder) as partial:
        save_file(state, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(partial / "adapter_config.json", config)
        write_json(partial / METADATA, {"format": FORMAT, "form": folder.name, **metadata})
        (partial / "README.md").write_text(_readme(folder.name, metadata), encoding="utf-8")
    return sorted(folder.iterdir())


def _metadata(recipe: Recipe, folders: list[Path], rank: int) -> dict[str, Any]:
    return {
        "base": card.base_model([recipe.model_dump(mode="json")]) or "",
        "revision": recipe.model.revision,
        "dtype": recipe.model.dtype,
        "attention": recipe.model.attention,
        "parent": _finished(folders[0])["parent"],
        "result": _finished(folders[-1])["result"],
        "stages": [folder.name for folder in folders],
        "rank": rank,
    }


def _readme(kind: str, metadata: dict[str, Any]) -> str:
    """How to open the adapter rightly: no file of PEFT says that the base must read in both directions."""
    base = metadata["base"]
    head = f"---\nlibrary_name: peft\n{f'base_model: {base}' + chr(10) if base else ''}tags: [llm2enc, lora]\n---\n"
    name, model = base or "path/to/the/base", "AutoModel" if kind == DECODER else "AutoModelForCausalLM"
    inside = f".{metadata['inside']}" if metadata.get("inside") else ""
    switched = metadata["attention"] == "bidirectional" and not metadata.get("bidirectional_base")
    switch = "config.get_text_config().is_causal = False\n" if switched else ""
    warning = (
        "The base must read in **both directions**. PEFT's files cannot say so: opened without the line "
        "that sets `is_causal`, or by an engine that ignores it, this adapter gives other vectors and no error. "
        "transformers 5.2 or newer is needed."
        if switch
        else f"The base stays {metadata['attention']}; nothing has to be switched."
    )
    return f"""{head}
# LoRA adapter of a text encoder

Rank {metadata["rank"]}: the sum of the stages {", ".join(metadata["stages"])} of one llm2enc run. {warning}

```python
from peft import PeftModel
from transformers import AutoConfig, {model}

config = AutoConfig.from_pretrained("{name}")
{switch}base = {model}.from_pretrained("{name}", config=config, dtype="{metadata["dtype"]}")
model = PeftModel.from_pretrained(base{inside}, "path/to/this/directory")
```

It belongs on the weights whose SHA-256 is `{metadata["parent"]}` (`{METADATA}`); `llm2enc.export.adapter.load` checks that.
Templates, pooling and normalisation are those of the encoder that the run exported beside it.
"""


def _read_metadata(folder: Path) -> dict[str, Any]:
    path = folder / METADATA
    if not path.is_file():
        raise InputError(f"{folder} is no adapter directory of llm2enc: it has no {METADATA}")
    with explained(str(path), "export the adapter again"):
        metadata = json.loads(path.read_text(encoding="utf-8"))
    if metadata.get("format") != FORMAT or metadata.get("form") != DECODER:
        raise InputError(
            f"{folder} holds {metadata.get('form')!r} in format {metadata.get('format')!r}; expected {DECODER!r} in "
            f"format {FORMAT}: give the directory `{DECODER}` beside it"
        )
    return metadata


def _check_target(folder: Path, result: str) -> None:
    """ValueError if the files would replace what is not ours, or stand beside another model than they make."""
    for path in (folder / DECODER, folder / CAUSAL_LM):
        if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / METADATA).is_file()):
            raise InputError(
                f"{path} is in use and was not written by this export (no {METADATA}); choose another directory"
            )
    if (folder / METADATA_FILE).is_file():
        there = read_metadata(folder)
        # Stored in another type, the encoder has another fingerprint; its history still names the run's.
        if result not in {there.fingerprint, *(row.result for row in there.history)}:
            raise InputError(
                f"{folder} holds an encoder with weights {there.fingerprint[:12]}, the run made {result[:12]}; choose "
                "another directory"
            )
