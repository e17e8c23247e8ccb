"""A push to a stand-in of the hub on this machine, opened again from there; and what is refused before or by it."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llm2enc.artifact import METADATA_FILE
from llm2enc.encoding import Encoder
from llm2enc.export import check_login, push
from llm2enc.export.hub import check_folder
from llm2enc.recipe import InputSpec, Part
from tests.support.builders import make_encoder, sentences
from tests.support.hub_server import HubServer

TOKEN = "hf_" + "StandInToken" * 3  # made up
REPO = "me/my-encoder"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "model"
    bos, text, eos = Part(special="bos", pool=True), Part(slot="text", pool=True), Part(special="eos", pool=True)
    # All of it is pooled, which is what sentence-transformers can do too.
    make_encoder(InputSpec(query=(bos, text, eos), document=(bos, text, eos), max_tokens=64)).save(folder)
    return folder


@pytest.fixture
def folder(export: Path, tmp_path: Path) -> Path:
    """A copy of the export that a test may change."""
    return Path(shutil.copytree(export, tmp_path / "model"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from huggingface_hub import constants

    with HubServer(TOKEN) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files by LFS: Xet's store is no plain HTTP
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def everything_shown(capfd, caplog) -> str:
    return "".join(capfd.readouterr()) + caplog.text


# ----------------------------------------------------------------------------------------------------------------- push


def test_a_push_brings_every_file_and_the_token_into_none(export: Path, hub: HubServer, capfd, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    url = push(export, REPO, message="First")
    assert url == f"{hub.url}/{REPO}/commit/{hub.repos[REPO].branches['main']}"
    assert hub.repos[REPO].messages == ["initial commit", "First"] and not hub.repos[REPO].private
    files = hub.repos[REPO].files()
    assert files.pop(".gitattributes") and files == contents(export)
    assert list(hub.blobs.values()) == [(export / "model.safetensors").read_bytes()]  # not inside the commit
    assert TOKEN not in everything_shown(capfd, caplog)
    assert not any(TOKEN.encode() in body for _, _, body in hub.requests)


_OPENED = """
import json, sys
from pathlib import Path
import numpy as np
from huggingface_hub import snapshot_download
from sentence_transformers import SentenceTransformer
from llm2enc import Encoder
from llm2enc.export import push

folder, repo, texts, out = json.loads(sys.argv[1])
push(Path(folder), repo, private=True)
ours = Encoder.load(snapshot_download(repo)).encode(texts)
theirs = SentenceTransformer(repo, device="cpu").encode(texts)
np.savez(out, ours=ours, theirs=theirs)
"""


def test_what_was_pushed_opens_by_its_name(export: Path, hub: HubServer, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    texts = sentences(6)
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    given = json.dumps([str(export), REPO, texts, str(tmp_path / "out.npz")])
    done = subprocess.run([sys.executable, "-c", _OPENED, given], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hub.repos[REPO].private and TOKEN not in done.stdout + done.stderr
    expected, found = Encoder.load(export).encode(texts), np.load(tmp_path / "out.npz")
    np.testing.assert_array_equal(found["ours"], expected)
    np.testing.assert_allclose(found["theirs"], expected, atol=1e-5)


def test_a_second_push_sends_what_changed_only(folder: Path, hub: HubServer) -> None:
    first = push(folder, REPO)
    assert push(folder, REPO) == first and hub.asked("POST", "/commit/") == 1
    (folder / "README.md").write_text("# Another card\n")
    second = push(folder, REPO)
    assert second != first and hub.asked("PUT", "/lfs/") == 1
    body = [body for method, path, body in hub.requests if method == "POST" and "/commit/" in path][-1]
    changed = [json.loads(line)["value"]["path"] for line in body.splitlines()[1:]]
    assert changed == ["README.md"] and hub.repos[REPO].files()["README.md"] == b"# Another card\n"


def test_forms_of_former_weights_go_and_other_files_stay(folder: Path, hub: HubServer) -> None:
    push(folder, REPO)
    hub.repos[REPO].files().update(
        {"onnx/model.onnx": b"of former weights", "LICENSE": b"text", "gguf/model-f16.gguf": b"", "mteb_model.py": b""}
    )
    push(folder, REPO)
    assert hub.repos[REPO].files().keys() == {*contents(folder), ".gitattributes", "LICENSE"}


def test_a_push_that_broke_off_is_repeated_without_sending_weights_again(export: Path, hub: HubServer) -> None:
    hub.failures["/commit/"] = (500, "out of disk")
    with pytest.raises(ValueError, match=r"fault of its own \(500\); push again later.*it says: out of disk"):
        push(export, REPO)
    assert len(hub.repos[REPO].messages) == 1 and hub.asked("PUT", "/lfs/") == 1
    push(export, REPO)
    assert hub.asked("PUT", "/lfs/") == 1
    assert contents(export).items() <= hub.repos[REPO].files().items()


def test_a_revision_is_a_branch_of_its_own(export: Path, hub: HubServer) -> None:
    for _ in range(2):
        push(export, REPO, revision="v1")
    assert METADATA_FILE in hub.repos[REPO].files("v1") and list(hub.repos[REPO].files()) == [".gitattributes"]


def test_what_should_be_private_does_not_go_into_a_public_repository(export: Path, hub: HubServer) -> None:
    push(export, "me/private", private=True)
    push(export, "me/private", private=True)
    assert hub.repos["me/private"].private
    push(export, REPO)
    with pytest.raises(ValueError, match="me/my-encoder exists already and is public"):
        push(export, REPO, private=True, message="Secret")
    assert "Secret" not in hub.repos[REPO].messages


# -------------------------------------------------------------------------------------------------------- what goes wrong


def test_a_wrong_token_is_told_without_it(export: Path, hub: HubServer, capfd, caplog) -> None:
    wrong = "hf_" + "WrongToken" * 4
    with pytest.raises(ValueError, match=r"does not accept the token \(401\)") as caught:
        push(export, REPO, token=wrong)
    assert wrong not in str(caught.value) + everything_shown(capfd, caplog) and "\n" not in str(caught.value)
    assert not hub.repos and caught.value.__cause__ is None and caught.value.__suppress_context__


def test_refusals_of_the_hub_are_one_sentence(export: Path, hub: HubServer) -> None:
    with pytest.raises(ValueError, match=r"may not write to google/my-encoder \(403\).*don't have the rights"):
        push(export, "google/my-encoder")
    for status, said in (
        (404, "no repository me/my-encoder"),
        (409, "being written"),
        (412, "in between"),
        (413, "larger than the hub takes"),
        (429, "too many requests"),
        (418, r"refuses what was sent to me/my-encoder \(418\)"),
    ):
        hub.failures["/commit/"] = (status, f"no {TOKEN}")
        with pytest.raises(ValueError, match=said) as caught:
            push(export, REPO)
        assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)


def test_no_network_is_said(export: Path, hub: HubServer, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port, where nobody listens
    with pytest.raises(ValueError, match="cannot be reached"):
        push(export, REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="while HF_HUB_OFFLINE is set"):
        push(export, REPO)


def test_without_a_token_the_remedy_is_named(export: Path, hub: HubServer, monkeypatch) -> None:
    assert check_login() == TOKEN
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="there is no token"):
        check_login()
    with pytest.raises(ValueError, match="set HF_TOKEN or run `hf auth login`"):
        push(export, REPO)
    with pytest.raises(ValueError, match="spaces or characters that no token has") as caught:
        push(export, REPO, token=f"{TOKEN} x")
    assert TOKEN not in str(caught.value) and not hub.requests


@pytest.mark.parametrize(
    "repo", ["my-encoder", "me/my/encoder", "https://huggingface.co/me/x", "me/..", "me/a b", "/x"]
)
def test_names_that_no_repository_has(export: Path, hub: HubServer, repo: str) -> None:
    with pytest.raises(ValueError, match="expected USER/NAME"):
        push(export, repo)
    assert not hub.requests


def test_what_is_no_export_is_refused(folder: Path, hub: HubServer) -> None:
    with pytest.raises(ValueError, match="is no directory"):
        push(folder / METADATA_FILE, REPO)
    (folder / "README.md").unlink()
    with pytest.raises(ValueError, match=r"no README\.md"):
        push(folder, REPO)
    (folder / METADATA_FILE).write_text("{")
    (folder / "README.md").touch()
    with pytest.raises(ValueError, match="not valid JSON"):
        push(folder, REPO)
    (folder / METADATA_FILE).unlink()
    with pytest.raises(ValueError, match=r"not an export of llm2enc .* no llm2enc\.json"):
        push(folder, REPO)
    assert not hub.requests


# -------------------------------------------------------------------------------------------------------------- secrets


# Made up, and put together here, so that no scanner of this repository takes them for real.
SECRETS = {
    "a Hugging Face token": "hf_" + "aB3" * 11,
    "a wandb key": "WANDB_API_KEY = " + "0a" * 20,
    "an AWS key": "AKIA" + "ABCD2345" * 2,
    "a GitHub token": "ghp_" + "a1" * 18,
    "an API key": "sk-" + "proj-" + "a1" * 12,
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a password in a URL": "https://me:" + "pass1@example.org/x",
    "a path into a home directory": "/home/" + "someone/data.jsonl",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_in_a_file_stops_the_push_before_any_request(folder: Path, hub: HubServer, kind: str) -> None:
    secret = SECRETS[kind]
    facts = json.loads((folder / METADATA_FILE).read_text())
    (folder / METADATA_FILE).write_text(json.dumps({**facts, "notes": [secret]}))
    with pytest.raises(ValueError, match=rf"nothing was sent: .*llm2enc.json \({kind}\)") as caught:
        push(folder, REPO)
    assert secret not in str(caught.value) and not hub.requests


def test_more_that_must_not_leave(folder: Path, hub: HubServer, monkeypatch) -> None:
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"\0\1" + str(Path.home() / "work" / "x.py").encode() + b"\0")
    (folder / ".env").write_text("A=1")
    (folder / "link.txt").symlink_to("/etc/hostname")
    (folder / "folder").symlink_to(folder / "onnx")
    monkeypatch.setenv("MY_SERVICE_API_KEY", "correct horse battery")
    (folder / "notes.txt").write_text("the key is correct horse battery")
    (folder / "config.json").write_text(json.dumps({"token": TOKEN}))
    with pytest.raises(ValueError) as caught:
        push(folder, REPO)
    for said in (
        "onnx/model.onnx (a path into a home directory)",
        ".env (a hidden file)",
        "link.txt (a link to elsewhere)",
        "folder (a link to elsewhere)",
        "notes.txt (the value of MY_SERVICE_API_KEY)",
        "config.json (a Hugging Face token)",
        "config.json (the token of this push)",
    ):
        assert said in str(caught.value)
    assert "correct horse" not in str(caught.value) and not hub.requests


def test_what_only_looks_alike_is_let_through(folder: Path) -> None:
    """Hashes, names of users in URLs, and the files that the hub's own client leaves in a folder and does not send."""
    (folder / "notes.txt").write_text(
        "revision 0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a, https://huggingface.co/me/x, git@github.com:me/x, "
        "hf_hub_download, /home page, sk-learn, wandb: a key of 12"
    )
    (folder / ".gitattributes").write_text("*.onnx filter=lfs")
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "x.metadata").write_text(SECRETS["an AWS key"])
    check_folder(folder)
