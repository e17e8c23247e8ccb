"""An embedding model of somebody else's: does it read and pad as it claims, in the programs installed here?

Everything is measured on the model itself, opened by sentence-transformers in float32 on the programs installed here:

    ids      t t t t t t x              x changes: does the state of the first t move? then layers read ahead
    right    t t t t t t x . . . .      padded: do the states of the text stay? and its vector, which is pooled of them?
    left     . . . . t t t t t t x

A claim (config.json) that the measurement denies is a problem; a model that reads in one direction and says nothing else
is not, because last-token encoders are made so.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from llm2enc.encoding import Encoder, open_encoder
from llm2enc.errors import CannotConvert, InputError
from llm2enc.text import PROBES
from llm2enc.verification.probe import MOVED, PADDING, TEXT, Probe
from llm2enc.verification.run import engine_rules

Level = Literal["fine", "mind", "problem", "unknown"]

SAME = 1e-3  # relative; what rounding of other shapes explains


@dataclass(frozen=True)
class Check:
    """A question about the model, the answer, and what it was seen in."""

    question: str
    verdict: Level
    evidence: str
    remedy: str = ""


@dataclass(frozen=True)
class ThirdPartyReport:
    """Everything that was found about a model that llm2enc did not write."""

    folder: str
    rows: list[Check]

    @property
    def agrees(self) -> bool:
        """Whether it does what it claims, here."""
        return all(row.verdict != "problem" for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return {"folder": self.folder, "agrees": self.agrees, "rows": [dataclasses.asdict(row) for row in self.rows]}


def verify_third_party(name: str | Path) -> ThirdPartyReport:
    """What a directory or hub id of sentence-transformers does here.

    raises  ValueError if it is none
    """
    name = str(name)
    if not Path(name).exists() and "/" in name and Path(name).parent.is_dir():
        # A path with a slip in it looks like a hub id, and asking the hub takes half a minute without a network.
        raise InputError(
            f"{name}: no such directory, although {Path(name).parent} is one; for a model on the hub of that "
            "name, call this from another directory"
        )
    try:
        opened = open_encoder(name)
    except (ImportError, OSError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())
        remedy = "install what the message asks for, and the releases that the model's card names"
        return ThirdPartyReport(name, [Check("opens", "problem", f"{type(error).__name__}: {why}", remedy)])
    if isinstance(opened, Encoder):
        raise InputError(f"{name} was written by llm2enc: verify compares it with its own encoder")
    model, folder = cast(Any, opened).model.float().eval(), Path(name)
    if not folder.is_dir():  # of the hub: where its files are by now
        from huggingface_hub import hf_hub_download

        folder = Path(hf_hub_download(name, "modules.json", local_files_only=True)).parent
    probe = Probe.of(model)
    rows = [
        *_requirements(folder),
        *(_padding(probe) if probe else ()),
        _batches(model),
        _lengths(model),
        _prompts(model),
    ]
    if probe is None:
        kind = type(model[0]).__name__
        direction = Check("direction", "unknown", f"{kind} has no transformer whose token states could be watched")
    else:
        direction = _direction(probe)  # after everything else: a proof of what the model could be changes it
    return ThirdPartyReport(name, [direction, *rows, *_engine_rules(folder)])


# -------------------------------------------------------------------------------------------------------------- answers


def _direction(probe: Probe) -> Check:
    """Does the first token's state depend on the last token, alone and beside padding, and does the model say so?"""
    alone, padded, behind = probe.ahead(), probe.ahead("right"), probe.behind()
    claim, claims = _claim(probe.decoder.config)
    seen = f"a changed last token moves the first token's state by {alone:.2g} alone and {padded:.2g} beside padding"
    evidence = f"{seen} (a changed first token the last by {behind:.2g}); config.json says {claim}"
    reads, reads_padded = alone > MOVED, padded > MOVED
    if reads != reads_padded:
        return Check(
            "direction", "problem", f"{evidence}: the direction depends on whether there is padding", _eager(probe)
        )
    if reads:
        layers = probe.causal_layers()
        if layers:
            return Check("direction", "mind", f"{evidence}; layers {layers} read in one direction all the same")
        every = "" if layers is None else ", in every layer"
        return Check("direction", "fine", f"reads in both directions{every}: {evidence}")
    if claims:
        return Check("direction", "problem", f"reads in one direction: {evidence}", _eager(probe))
    pooling = _pooling(probe.model)
    if pooling == "lasttoken":
        return Check("direction", "fine", f"causal, as its last-token pooling is made for: {evidence}")
    what = f"causal under {pooling or 'its'} pooling: {evidence}; the first tokens never see the rest"
    return Check("direction", "mind", what, _convertible(probe))


def _claim(config: Any) -> tuple[str, bool]:
    """What a configuration says of the direction, and whether that is: both."""
    keys = ("is_causal", "use_bidirectional_attention", "is_decoder")
    said = {key: getattr(config, key) for key in keys if getattr(config, key, None) is not None}
    architectures = getattr(config, "architectures", None) or []
    both = said.get("is_causal") is False or said.get("use_bidirectional_attention") in (True, "all")
    words = [f"{key} {value}" for key, value in said.items()] + [f"architecture {name}" for name in architectures]
    return ", ".join(words) or "nothing", both


def _eager(probe: Probe) -> str:
    """What helps a model that does not keep to its claim: its eager attention, if that does, tried here."""
    former = probe.decoder.config._attn_implementation
    try:
        probe.decoder.set_attn_implementation("eager")
        helps = min(probe.ahead(), probe.ahead("right")) > MOVED and max(probe.shift("right")) <= SAME
    except Exception:  # a family may have no eager attention, or fail in it in any way
        helps = False
    finally:
        probe.decoder.set_attn_implementation(former)
    if helps:
        return (
            f"under attn_implementation 'eager' it reads both ways (tried here; now it is {former!r}): put "
            '"model_args": {"attn_implementation": "eager"} into sentence_bert_config.json'
        )
    return (
        "this release of transformers does not honour the claim: is_causal false in config.json is the key it reads, from "
        "5.4 on; otherwise ask the authors which release they measured"
    )


def _convertible(probe: Probe) -> str:
    """Whether llm2enc could open the model to both sides, by its own proof. Changes the model."""
    from llm2enc.model import Backbone, prove

    try:
        proof = prove(Backbone(probe.decoder, bidirectional=True))
    except CannotConvert as reason:
        return f"use last-token pooling if it was trained so; llm2enc cannot open it to both sides: {reason}"
    return (
        f"right if it was trained so; if not, llm2enc convert opens all of its {proof.layers} layers to both sides (proven "
        "here), after which it needs training"
    )


def _pooling(model: Any) -> str:
    for module in model:
        if type(module).__name__ == "Pooling":
            mode = getattr(module, "pooling_mode", None) or module.get_pooling_mode_str()  # the name before release 6
            return mode if isinstance(mode, str) else "+".join(mode)
    return ""


def _padding(probe: Probe) -> Iterator[Check]:
    """Is padding harmless, on the side where the tokenizer puts it and on the other?"""
    for side in ("right", "left"):
        states, vector = probe.shift(side)
        own = side == probe.side
        seen = f"{PADDING} tokens of padding move the text's states by {states:.2g}, its vector by {vector:.2g}"
        if max(states, vector) <= SAME:
            yield Check(f"padding {side}", "fine", seen)
        elif states > SAME:
            level: Level = "problem" if own else "mind"
            other = "left" if side == "right" else "right"
            why = "the tokenizer pads there" if own else "the tokenizer pads on the other side"
            remedy = f"pad on the {other}: padding_side in tokenizer_config.json" if own else f"never pad on the {side}"
            yield Check(f"padding {side}", level, f"{seen}; {why}", remedy)
        else:
            remedy = "pool over the attention mask"
            yield Check(
                f"padding {side}", "problem" if own else "mind", f"{seen}: the pooling counts the padding", remedy
            )


def _batches(model: Any) -> Check:
    """Does a vector depend on the texts beside it, or their order?"""
    texts = list(PROBES.values())
    alone = np.stack([_encode(model, [text])[0] for text in texts])
    together = {
        "a batch of all": _encode(model, texts),
        "the same in reverse": _encode(model, texts[::-1])[::-1],
        "a batch with a text three times as long": np.stack([_encode(model, [text, text * 3])[0] for text in texts]),
        "a batch with itself": np.stack([_encode(model, [text, text])[0] for text in texts]),
    }
    far = {}
    for name, vectors in together.items():
        shift = np.linalg.norm(vectors - alone, axis=1) / np.linalg.norm(alone, axis=1).clip(1e-12)
        far[name] = (float(shift.max()), list(PROBES)[int(shift.argmax())])
    bad = {name: found for name, found in far.items() if found[0] > SAME}
    if not bad:
        largest = max(found[0] for found in far.values())
        return Check("batches", "fine", f"{len(texts)} texts have one vector in any company, within {largest:.1g}")
    seen = "; ".join(f"in {name} by up to {shift:.2g} ({kind})" for name, (shift, kind) in bad.items())
    remedy = "see direction and padding; until then encode with batch_size=1"
    return Check("batches", "problem", f"a text's vector moves {seen}, against the text alone", remedy)


def _lengths(model: Any) -> Check:
    lengths = np.linalg.norm(_encode(model, list(PROBES.values())), axis=1)
    if abs(lengths - 1).max() <= SAME:
        return Check("length", "fine", "vectors have length 1: dot product and cosine are the same")
    seen = f"vectors are {lengths.min():.3g} to {lengths.max():.3g} long; its similarity is {model.similarity_fn_name}"
    if model.similarity_fn_name == "cosine":
        return Check("length", "mind", seen, "normalise them for an index that uses dot products")
    return Check("length", "fine", seen)


def _prompts(model: Any) -> Check:
    """Which prompts there are, and whether they do something."""
    prompts = {name: prompt for name, prompt in model.prompts.items() if prompt}
    if not prompts:
        return Check("prompts", "fine", "it has none: queries and documents are read alike")
    plain = _encode(model, [TEXT])[0]
    idle = [
        name for name, prompt in prompts.items() if np.allclose(_encode(model, [TEXT], prompt)[0], plain, atol=1e-6)
    ]
    default = model.default_prompt_name
    seen = f"{', '.join(f'{name} ({prompt!r})' for name, prompt in prompts.items())}; default: {default or 'none'}"
    if idle:
        return Check("prompts", "mind", f"{seen}; without effect: {', '.join(idle)}", "the pooling may leave them out")
    remedy = "" if default else "other programs put none before a text: give it yourself"
    return Check("prompts", "fine", seen, remedy)


def _requirements(folder: Path) -> Iterator[Check]:
    """Do the installed releases satisfy what config_sentence_transformers.json asks for? Releases of sentence-transformers
    before 6.0 don't look."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    path = folder / "config_sentence_transformers.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, entry in content.get("requirements", {}).items():
        wanted = entry["specifier"] if isinstance(entry, dict) else entry
        try:
            here = version(name)
            satisfied = SpecifierSet(wanted).contains(here, prereleases=True)
        except PackageNotFoundError:
            here, satisfied = "none", False
        except InvalidSpecifier:
            yield Check("requirements", "unknown", f"{name}: {wanted!r} names no releases")
            continue
        level: Level = "fine" if satisfied else "problem"
        remedy = "" if satisfied else f"pip install '{name}{wanted}'"
        yield Check("requirements", level, f"it asks for {name}{wanted}; {here} is installed", remedy)


def _encode(model: Any, texts: list[str], prompt: str = "") -> np.ndarray:
    return model.encode(texts, prompt=prompt, batch_size=len(texts), show_progress_bar=False)


def _engine_rules(folder: Path) -> list[Check]:
    """What engines that are not run here make of its files."""
    levels: dict[str, Level] = {"should agree": "fine", "should differ": "mind", "unsupported": "mind"}
    try:
        rows = engine_rules(folder)
    except ValueError as error:  # no transformer, so nothing that those engines open
        return [Check("other engines", "unknown", str(error))]
    return [
        Check(f"{row.engine} {row.version}", levels.get(row.verdict, "unknown"), row.note, row.remedy) for row in rows
    ]
