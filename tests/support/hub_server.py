"""A stand-in for the Hugging Face hub on 127.0.0.1: what its client asks for a push and a download of a model.

    with HubServer("hf_...") as hub: ...     hub.url is the endpoint; hub.repos and hub.requests show what arrived

Only the HTTP interface is imitated: repositories are dictionaries of files, one per commit.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repo:
    private: bool
    commits: dict[str, Files] = field(default_factory=dict)  # by hash
    branches: dict[str, str] = field(default_factory=dict)  # name -> hash
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: Files, message: str) -> str:
        name = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        self.messages.append(message)
        return name

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.branches.get(revision, revision)]


class HubServer:
    def __init__(self, token: str):
        self.token = token
        self.repos: dict[str, Repo] = {}
        self.blobs: Files = {}  # large files by SHA-256
        self.requests: list[tuple[str, str, bytes]] = []  # method, path, body
        self.failures: dict[str, tuple[int, str]] = {}  # part of a path -> status and message of its next request

    def __enter__(self) -> "HubServer":
        hub = self

        class Handler(_Handler):
            server_state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def asked(self, method: str, part: str) -> int:
        """How many requests came whose path holds `part`."""
        return sum(name == method and part in path for name, path, _ in self.requests)


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "", url: str = ""):
        self.status, self.message, self.code, self.url = status, message, code, url


class _Handler(BaseHTTPRequestHandler):
    server_state: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self._handle(self._get)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._handle(self._post)

    def do_PUT(self) -> None:
        self._handle(self._put)

    def _handle(self, answer) -> None:
        hub = self.server_state
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append((self.command, path, body))
        try:
            for part in list(hub.failures):
                if part in path:
                    raise _Refusal(*hub.failures.pop(part))
            # Uploads of large files go to signed addresses, without the token.
            if self.command != "PUT" and self.headers.get("Authorization") != f"Bearer {hub.token}":
                raise _Refusal(401, "Invalid credentials in Authorization header")
            self._send(200, *answer(hub, path, body))
        except _Refusal as error:
            headers = {"X-Error-Message": error.message, **({"X-Error-Code": error.code} if error.code else {})}
            self._send(error.status, json.dumps({"error": error.message, "url": error.url}).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _repo(self, name: str) -> Repo:
        if name not in self.server_state.repos:
            raise _Refusal(404, "Repository not found", "RepoNotFound")
        return self.server_state.repos[name]

    def _files(self, repo: Repo, revision: str) -> Files:
        if revision not in repo.branches and revision not in repo.commits:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo.files(revision)

    # ---- answers: content and headers

    def _get(self, hub: HubServer, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        if path == "/api/whoami-v2":
            return _json({"name": "me", "type": "user"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repo, revision = self._repo(found[1]), found[2] or "main"
            names = [{"rfilename": name} for name in self._files(repo, revision)]
            sha = repo.branches.get(revision, revision)
            return _json({"id": found[1], "sha": sha, "private": repo.private, "siblings": names, "tags": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            under = f"{found[3]}/" if found[3] else ""
            files = self._files(self._repo(found[1]), found[2])
            return _json([_tree_row(name, data) for name, data in files.items() if name.startswith(under)])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo = self._repo(found[1])
            files = self._files(repo, found[2])
            commit = {"X-Repo-Commit": repo.branches.get(found[2], found[2])}
            if found[3] not in files:
                raise _Refusal(404, "Entry not found", "EntryNotFound")
            data = files[found[3]]
            return data, {**commit, "ETag": f'"{_oid(found[3], data)}"', "Content-Type": "application/octet-stream"}
        raise _Refusal(404, f"nothing at {path}")

    def _post(self, hub: HubServer, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        if path == "/api/validate-yaml":
            return _json({"warnings": [], "errors": []})
        if path == "/api/repos/create":
            return self._create(hub, json.loads(body))
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._repo(found[1])
            return _json(
                {"transfer": "basic", "objects": [self._batch_row(hub, o) for o in json.loads(body)["objects"]]}
            )
        if path == "/lfs/verify":
            asked = json.loads(body)
            if len(hub.blobs.get(asked["oid"], b"")) != asked["size"]:
                raise _Refusal(404, "the object is not there")
            return _json({})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/([^/]+)", path)
        if not found:
            raise _Refusal(404, f"nothing at {path}")
        repo, action, branch = self._repo(found[1]), found[2], found[3]
        if action == "branch":
            if branch in repo.branches:
                raise _Refusal(409, f"{branch} exists already")
            repo.branches[branch] = repo.branches["main"]
            return _json({})
        files = self._files(repo, branch)
        if action == "preupload":
            return _json({"files": [_upload_mode(row, files) for row in json.loads(body)["files"]]})
        name = repo.commit(branch, *_committed(hub, files, body))
        return _json({"commitUrl": f"{hub.url}/{found[1]}/commit/{name}", "commitOid": name, "success": True})

    def _create(self, hub: HubServer, asked: dict) -> tuple[bytes, dict[str, str]]:
        name = f"{asked['organization']}/{asked['name']}"
        if name in hub.repos:
            raise _Refusal(409, "You already created this model repo", url=f"{hub.url}/{name}")
        if asked["organization"] != "me":
            raise _Refusal(403, f'You don\'t have the rights to create a model under the namespace "{name}"')
        repo = hub.repos[name] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs"}, "initial commit")
        return _json({"url": f"{hub.url}/{name}", "name": name})

    def _batch_row(self, hub: HubServer, asked: dict) -> dict:
        row = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in hub.blobs:
            row["actions"] = {
                "upload": {"href": f"{hub.url}/lfs/{asked['oid']}"},
                "verify": {"href": f"{hub.url}/lfs/verify"},
            }
        return row

    def _put(self, hub: HubServer, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        oid = path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refusal(400, "the content is not what was announced")
        hub.blobs[oid] = body
        return b"", {}


def _committed(hub: HubServer, files: Files, body: bytes) -> tuple[Files, str]:
    """The files after a commit, whose lines say what changes, and its message."""
    files, message = dict(files), ""
    for line in body.decode().splitlines():
        row = json.loads(line)
        key, value = row["key"], row["value"]
        if key == "header":
            message = value["summary"]
        elif key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = hub.blobs[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]
        else:
            raise _Refusal(400, f"no {key} here")
    return files, message


def _upload_mode(row: dict, files: Files) -> dict:
    name = row["path"]
    oid = _oid(name, files[name]) if name in files else None
    return {"path": name, "uploadMode": "lfs" if _is_large(name) else "regular", "shouldIgnore": False, "oid": oid}


def _tree_row(name: str, data: bytes) -> dict:
    large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return {
        "type": "file", "path": name, "size": len(data), "oid": _blob(data), **({"lfs": large} if _is_large(name) else {})
    }  # fmt: skip


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".onnx", ".gguf", ".bin"))


def _oid(name: str, data: bytes) -> str:
    """How the hub names a file's content: SHA-256 of a large file, git's name of a blob else."""
    return hashlib.sha256(data).hexdigest() if _is_large(name) else _blob(data)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _json(value) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {}
