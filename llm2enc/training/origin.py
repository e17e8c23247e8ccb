"""What a stage is trained from, by content: so that no other weights, template, tokenizer or data slip under a run."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from llm2enc import distributed
from llm2enc.data import content_digest, source_name
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.recipe import MergeStage, Stage
from llm2enc.training.objectives import OBJECTIVES
from llm2enc.training.teachers import teacher_digest

_log = logging.getLogger(__name__)


def origin(encoder: Encoder, stage: Stage | MergeStage) -> dict[str, str]:
    """Digests of the input template, of the tokenizer and of each data source and teacher of a stage, by names for messages.

    The bytes of files count, not their time stamps. What cannot be had is left out, with a warning.
    """
    found: dict[str, str] = {}
    if distributed.is_main():
        template, *tokenizer = json.loads(encoder.input_format.identity())
        found = {"input template": _digest(template), "tokenizer": _digest(tokenizer)}
        specs = [spec for part in stage.parts for spec in part.data]
        contents: dict[str, Callable[[], str]] = {
            f"data source {number} ({source_name(spec)})": partial(content_digest, spec)
            for number, spec in enumerate(specs)
        }
        for spec in (spec for part in stage.parts for spec in OBJECTIVES[part.objective].teachers(part)):
            contents[f"teacher {spec.model}"] = partial(teacher_digest, spec)
        for name, digest in contents.items():
            try:
                found[name] = digest()
            except InputError as error:
                _log.warning("%s cannot be compared with what the stage was begun with: %s", name, error)
    return distributed.broadcast(found)


def check_origin(folder: Path, begun: Mapping[str, str], now: Mapping[str, str]) -> None:
    """InputError that names what is not what the stage in `folder` was begun with; what only one of them knows passes."""
    changed = [name for name in begun if name in now and begun[name] != now[name]]
    if changed:
        raise InputError(
            f"{folder} was begun with other contents of: {', '.join(changed)}. To go on would mix two runs. Put back what "
            f"was there; or delete {folder} and the stages behind it, to train them again on what is there now; or start "
            "all over with --overwrite"
        )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
