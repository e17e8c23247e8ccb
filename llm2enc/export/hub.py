"""An exported directory onto the Hugging Face hub. Nothing leaves before everything that can be checked here is.

    url = push(Path("runs/pocket/model"), "me/my-encoder", private=True)

Files go by huggingface_hub: large ones as LFS or Xet objects, so a push that broke off sends again only what the hub
does not have, and unchanged files are left out of the commit. Forms that are no longer in the directory (an ONNX graph of
former weights) go from the repository too; other files there stay.
"""

import itertools
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm2enc.artifact import METADATA_FILE, head_files, read_metadata
from llm2enc.errors import InputError
from llm2enc.storage import secrets

_CARD = "README.md"
_TOKENS_PAGE = "https://huggingface.co/settings/tokens"

_HOME = "a path into a home directory"

# What must not be published besides secrets.
_KINDS: dict[str, tuple[bytes, ...]] = {
    **secrets.KINDS,
    _HOME: (rb"/home/[\w.-]{1,64}/[\w.]", rb"/Users/[\w.-]{1,64}/[\w.]", rb":\\\\?Users\\\\?\w"),
}
# Bytes of a file of weights that are searched: what can be text stands in front.
_HEADS = {".safetensors": 2**22, ".gguf": 2**26, ".bin": 2**22}
# Forms of an encoder: where the folder has another one or none, what the hub has of them belongs to former weights.
_FORMATS = [
    "*.safetensors*", "onnx/*", "openvino/*", "gguf/*", "adapter/*", "adapter-causal-lm/*", "mteb_model.py", head_files.CODE,
]  # fmt: skip
_MAY_BE_HIDDEN = {".gitattributes", ".gitignore"}


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Write the files of an export to a repository of the hub, made if it is not there; the URL of the commit.

    repo      USER/NAME
    private   of a new repository; one that is public already is refused then
    revision  branch, made if it is not there; `main` by default
    message   of the commit
    token     with the right to write; HF_TOKEN, or what `hf auth login` stored, by default
    raises    ValueError, before anything is sent, for a folder that is no export or holds what looks like a secret;
              and for all that the hub or the network refuses, in one sentence without the token
    """
    from huggingface_hub import HfApi

    check_repo(repo)
    token = check_login(token)
    check_folder(folder, token)
    api = HfApi(token=token, library_name="llm2enc")
    with _explaining(repo, token):
        api.create_repo(repo, private=private, exist_ok=True)
        public = private and not api.model_info(repo).private
    if public:
        raise InputError(
            f"{repo} exists already and is public; make it private in its settings, or choose another name"
        )
    with _explaining(repo, token):
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message=message or "Upload by llm2enc",
            delete_patterns=_FORMATS,
        )  # fmt: skip
    return str(commit.commit_url)


def check_repo(repo: str) -> None:
    """ValueError unless `repo` is the name of a repository, USER/NAME."""
    part = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"
    if not re.fullmatch(f"{part}/{part}", repo, re.ASCII) or "--" in repo or ".." in repo or repo.endswith(".git"):
        raise InputError(
            f"{repo!r} is no name for a repository of the hub; expected USER/NAME of letters, digits, `-`, `_` and `.`, "
            "e.g. me/my-encoder"
        )


def check_login(token: str | None = None) -> str:
    """The token given, or HF_TOKEN, or what `hf auth login` stored. ValueError if there is none, or none that can be."""
    from huggingface_hub import get_token

    token = (token or get_token() or "").strip()
    if not token:
        raise InputError(
            f"there is no token for the hub; make one with the right to write at {_TOKENS_PAGE}, and set HF_TOKEN or run "
            "`hf auth login`"
        )
    if not re.fullmatch(r"[!-~]+", token):
        raise InputError(
            f"the token for the hub holds spaces or characters that no token has; copy it from {_TOKENS_PAGE}"
        )
    return token


def check_folder(folder: Path, token: str = "") -> None:
    """ValueError unless `folder` is an export of ours that may be published: it names file and kind, never the secret.

    token  must not be in any file either
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no directory; give one that `llm2enc convert` or `llm2enc export` wrote")
    for name in (METADATA_FILE, _CARD):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} is not an export of llm2enc with a model card: it has no {name}. Write it with "
                "`llm2enc convert NAME -o DIR`, and push DIR/model"
            )
    read_metadata(folder)  # a damaged one would open for nobody
    found = [
        f"{path.relative_to(folder)} ({kind})" for path in _files(folder) for kind in _why_not(path, folder, token)
    ]
    if found:
        raise InputError(
            f"nothing was sent: {folder} holds what should not be published: {', '.join(found)}. Remove it; a local path "
            "comes from the recipe, so use a relative path or a hub id there and export again"
        )


# -------------------------------------------------------------------------------------------------------------- secrets


def _files(folder: Path) -> Iterator[Path]:
    """All that huggingface_hub would send: not .git and not its own .cache."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if ".git" not in parts and parts[:2] != (".cache", "huggingface") and (path.is_file() or path.is_symlink()):
            yield path


def _why_not(path: Path, folder: Path, token: str) -> Iterator[str]:
    """Kinds of things in a file that must not be published."""
    if path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(folder.resolve())):
        yield "a link to elsewhere"
        return
    if path.name not in _MAY_BE_HIDDEN and any(part.startswith(".") for part in path.relative_to(folder).parts):
        yield "a hidden file"
    if path.stat().st_size:
        size = min(path.stat().st_size, _HEADS.get(path.suffix, 0))  # 0: all of it
        with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
            found = [kind for kind, patterns in _KINDS.items() if any(re.search(one, content) for one in patterns)]
            found += [kind for kind, value in _own_secrets(token).items() if content.find(value) >= 0]
        yield from dict.fromkeys(found)


def _own_secrets(token: str) -> dict[str, bytes]:
    """Kind -> value of what this user and this process keep secret."""
    values = secrets.of_environment()
    if len(token) >= secrets.SHORTEST:
        values["the token of this push"] = token
    home = str(Path.home()).rstrip("/\\")
    if home:
        values[_HOME] = f"{home}{os.sep}"
    return {kind: value.encode() for kind, value in values.items()}


# --------------------------------------------------------------------------------------------------------------- errors


@contextmanager
def _explaining(repo: str, token: str) -> Iterator[None]:
    """What goes wrong inside becomes a ValueError of one sentence, and no traceback that could show what was sent."""
    try:
        yield
    except Exception as error:  # the client's own kinds and those of its transports, which change between releases
        raise InputError(_explained(error, repo, token)) from None


def _explained(error: Exception, repo: str, token: str) -> str:
    """What went wrong with a push and what to do, in one sentence without the token."""
    import httpx  # what huggingface_hub sends with
    from huggingface_hub.errors import OfflineModeIsEnabled

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 20:
        chain.append(cause)
    for one in chain:
        response = getattr(one, "response", None)
        if response is not None:
            said = _first_sentence(getattr(one, "server_message", None) or "", token)
            return _of_status(response.status_code, repo) + (f" (it says: {said})" if said else "")
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return "the hub cannot be asked while HF_HUB_OFFLINE is set; unset it and push again"
    if any(isinstance(one, (httpx.TransportError, ConnectionError, TimeoutError)) for one in chain):
        return (
            "the hub cannot be reached, or broke off; look at the network (and HF_ENDPOINT, HTTPS_PROXY) and push again"
        )
    return f"the push to {repo} failed: {type(error).__name__}: {_first_sentence(str(error), token)}"


def _of_status(status: int, repo: str) -> str:
    known = {
        401: f"the hub does not accept the token (401); make one with the right to write at {_TOKENS_PAGE}",
        403: f"the token may not write to {repo} (403); use one with the right to write, and a name of your own or of an "
        "organisation that you are in",
        404: f"the hub has no repository {repo}, or not for this token (404); look at the name and at the token's rights",
        409: f"something else is being written to {repo} (409); push again",
        412: f"something else was written to {repo} in between (412); push again",
        413: f"a file is larger than the hub takes in {repo} (413); export with smaller shards",
        429: "the hub has had too many requests from you (429); push again in some minutes",
    }
    if status >= 500:
        return f"the hub has a fault of its own ({status}); push again later, what is there already is not sent again"
    return known.get(status, f"the hub refuses what was sent to {repo} ({status})")


def _first_sentence(text: str, token: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = line.replace(token, "[token]")
    for pattern in itertools.chain.from_iterable(_KINDS.values()):
        line = re.sub(pattern, b"[secret]", line.encode()).decode()
    return line[:200]
