"""A Hugging Face hub for tests, on this machine: it speaks the upload protocol and holds real commits.

Written against what `huggingface_hub` 2.4 sends (`hf_api.py`, `_commit_api.py`, `lfs.py`): whoami, repositories,
branches, `preupload`, the LFS batch (single and multipart uploads to signed addresses, with a verification), `commit`
as NDJSON, pull requests. Faults are given as rules; every request is kept.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "secretTokenOfTheTests0" * 2
LFS_SUFFIXES = (".safetensors", ".gguf")


@dataclass(frozen=True)
class File:
    """content: of a regular file. sha256: of one in LFS, whose bytes are in the store."""

    content: bytes = b""
    sha256: str | None = None
    size: int = 0

    @property
    def blob(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    files: dict[str, File]
    title: str = "initial commit"
    description: str = ""
    parent: str | None = None


@dataclass
class Repo:
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    requests: dict[int, tuple[str, list[Commit]]] = field(default_factory=dict)  # number -> title, commits

    def ref(self, revision: str) -> list[Commit] | None:
        """The commits of a branch, a pull request or up to a commit."""
        if revision in self.branches:
            return self.branches[revision]
        number = re.fullmatch(r"refs/pr/(\d+)", revision)
        if number and int(number[1]) in self.requests:
            return self.requests[int(number[1])][1]
        lines = [*self.branches.values(), *(commits for _, commits in self.requests.values())]
        return next((line[: i + 1] for line in lines for i, one in enumerate(line) if one.oid == revision), None)


@dataclass
class Fault:
    """What to do instead of (or, with `after`, behind) the answer to so many requests that match.

    action: a status; "drop", closing the connection inside the request's body; or a call with the hub, which may change
    it and lets the request go on.
    """

    method: str
    path: str
    action: int | str | Callable[[Hub], None]
    times: int = 1
    after: bool = False
    body: str = '{"error": "a fault of the test"}'


@dataclass
class Request:
    method: str
    path: str
    authorization: str | None
    size: int


class Hub:
    """The state, and the address once it is served. part: bytes of an LFS part, None for uploads in one piece."""

    def __init__(self) -> None:
        self.url = ""
        self.repos: dict[str, Repo] = {}
        self.store: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.tokens = {TOKEN: "write"}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.part: int | None = None
        self.largest: int | None = None
        self.lock = threading.RLock()
        self.numbers = itertools.count(1)

    def add_repo(self, name: str, files: dict[str, bytes] | None = None, private: bool = False) -> Repo:
        """A repository with one commit."""
        contents = {".gitattributes": b"*.safetensors filter=lfs\n"} | (files or {})
        made = {path: self.stored(path, content) for path, content in contents.items()}
        self.repos[name] = Repo(private, {"main": [self.commit_of(made)]})
        return self.repos[name]

    def stored(self, path: str, content: bytes) -> File:
        if not path.endswith(LFS_SUFFIXES):
            return File(content, None, len(content))
        sha256 = hashlib.sha256(content).hexdigest()
        self.store[sha256] = content
        return File(b"", sha256, len(content))

    def commit_of(self, files: dict[str, File], **more: Any) -> Commit:
        seed = f"{next(self.numbers)}{sorted(files)}{more.get('parent')}"
        return Commit(hashlib.sha1(seed.encode()).hexdigest(), files, **more)

    def push(self, name: str, path: str, content: bytes) -> None:
        """Somebody else's commit onto main."""
        line = self.repos[name].branches["main"]
        files = line[-1].files | {path: self.stored(path, content)}
        line.append(self.commit_of(files, title="somebody else's", parent=line[-1].oid))

    def content(self, name: str, path: str, revision: str = "main") -> bytes:
        """The bytes of a file."""
        line = self.repos[name].ref(revision)
        assert line is not None
        found = line[-1].files[path]
        return found.content if found.sha256 is None else self.store[found.sha256]

    def sent(self, method: str, pattern: str) -> list[Request]:
        """The requests that match."""
        return [one for one in self.requests if one.method == method and re.search(pattern, one.path)]


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """Serves an empty hub on the loopback address."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    # ---- one request ----

    def _answer(self, method: str) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        with self.hub.lock:
            self.hub.requests.append(Request(method, self.path, self.headers.get("Authorization"), size))
            faults = [one for one in self.hub.faults if one.method == method and re.search(one.path, self.path)]
            fault = next((one for one in faults if one.times), None)
            if fault is not None:
                fault.times -= 1
        if fault is not None and fault.action == "drop" and not fault.after:
            self.rfile.read(size // 2)
            self._hang_up()
            return
        body = self.rfile.read(size)
        if callable(getattr(fault, "action", None)):
            fault.action(self.hub)  # type: ignore[union-attr, operator]
            fault = None
        if fault is not None and not fault.after:
            self._send(int(fault.action), fault.body.encode())  # type: ignore[call-overload]
            return
        try:
            with self.hub.lock:
                status, content, headers = self._route(method, body)
        except _Refused as refused:
            extra = {"X-Error-Message": str(refused)} | ({"X-Error-Code": refused.code} if refused.code else {})
            status, content, headers = refused.status, json.dumps({"error": str(refused)}).encode(), extra
        if fault is not None and fault.action == "drop":
            self._hang_up()
        elif fault is not None:
            self._send(int(fault.action), fault.body.encode())  # type: ignore[call-overload]
        else:
            self._send(status, content, headers)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _route(self, method: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        place = urlsplit(self.path)
        for known, pattern, handle in _ROUTES:
            match = re.fullmatch(pattern, place.path)
            if known == method and match:
                if not place.path.startswith("/lfs/"):
                    self._role()
                arguments = [unquote(one) for one in match.groups()]
                found = handle(self, parse_qs(place.query), body, *arguments)
                headers = found.pop("_headers", {}) if isinstance(found, dict) else {}
                return 200, json.dumps(found).encode(), headers
        raise _Refused(404, f"no such address: {method} {place.path}", "EntryNotFound")

    def _role(self) -> str:
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if given not in self.hub.tokens:
            raise _Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[given]

    def _writer(self) -> None:
        if self._role() != "write":
            raise _Refused(403, "you need write access")

    def _repo(self, name: str) -> Repo:
        if name not in self.hub.repos:
            raise _Refused(404, "Repository not found", "RepoNotFound")
        return self.hub.repos[name]

    def _line(self, name: str, revision: str) -> list[Commit]:
        line = self._repo(name).ref(revision)
        if line is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return line

    # ---- the addresses ----

    def whoami(self, _query: dict, _body: bytes) -> dict:
        return {"type": "user", "name": "tester", "auth": {"accessToken": {"role": self._role()}}}

    def create(self, _query: dict, body: bytes) -> dict:
        self._writer()
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            raise _Refused(409, "You already created this model repo")
        self.hub.add_repo(name, private=asked.get("visibility") == "private")
        return {"url": f"{self.hub.url}/{name}", "name": name}

    def info(self, _query: dict, _body: bytes, name: str, revision: str = "main") -> dict:
        head = self._line(name, revision)[-1]
        siblings = []
        for path, one in head.files.items():
            lfs = {"sha256": one.sha256, "size": one.size, "pointerSize": 134} if one.sha256 else None
            siblings.append({"rfilename": path, "size": one.size, "blobId": one.blob, "lfs": lfs})
        return {"id": name, "modelId": name, "sha": head.oid, "private": self._repo(name).private, "siblings": siblings}

    def validate(self, _query: dict, body: bytes) -> dict:
        found = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        try:
            assert found and isinstance(yaml.safe_load(found[1]), dict)
        except (AssertionError, yaml.YAMLError) as error:
            raise _Refused(400, "bad metadata") from error
        return {"errors": [], "warnings": []}

    def preupload(self, query: dict, body: bytes, name: str, revision: str) -> dict:
        if not query.get("create_pr"):
            self._writer()
        files = self._line(name, revision)[-1].files
        asked = json.loads(body)
        ignored = asked.get("gitIgnore")
        if ignored is None:
            ignored = files[".gitignore"].content.decode() if ".gitignore" in files else ""
        answer = []
        for one in asked["files"]:
            path, there = one["path"], files.get(one["path"])
            mode = "lfs" if path.endswith(LFS_SUFFIXES) or one["size"] > 10_000_000 else "regular"
            oid = None if there is None else there.sha256 or there.blob
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": path in ignored.split(), "oid": oid})
        return {"files": answer}

    def batch(self, _query: dict, body: bytes, name: str) -> dict:
        self._repo(name)
        return {"transfer": "basic", "objects": [self._object(one) for one in json.loads(body)["objects"]]}

    def _object(self, one: dict) -> dict:
        oid, size = one["oid"], one["size"]
        if self.hub.largest is not None and size > self.hub.largest:
            return {**one, "error": {"code": 422, "message": "Your push was rejected because the file is too large"}}
        if oid in self.hub.store:
            return one
        signed, header = "X-Amz-Signature=s1gn4ture", {}
        href = f"{self.hub.url}/lfs/{oid}?{signed}"
        if self.hub.part is not None and size > self.hub.part:
            count = -(-size // self.hub.part)
            header = {"chunk_size": str(self.hub.part)}
            header |= {str(n): f"{self.hub.url}/lfs/{oid}/{n}?{signed}" for n in range(1, count + 1)}
            href = f"{self.hub.url}/lfs/{oid}/complete?{signed}"
        actions = {"upload": {"href": href, "header": header}}
        return {**one, "actions": actions | {"verify": {"href": f"{self.hub.url}/api/lfs-verify", "header": {}}}}

    def put(self, _query: dict, body: bytes, oid: str) -> dict:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "the bytes are not those of the oid")
        self.hub.store[oid] = body
        return {}

    def put_part(self, _query: dict, body: bytes, oid: str, number: str) -> dict:
        self.hub.parts.setdefault(oid, {})[int(number)] = body
        return {"_headers": {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}}

    def complete(self, query: dict, body: bytes, oid: str) -> dict:
        numbers = [one["partNumber"] for one in json.loads(body)["parts"]]
        return self.put(query, b"".join(self.hub.parts[oid][number] for number in numbers), oid)

    def verify(self, _query: dict, body: bytes) -> dict:
        asked = json.loads(body)
        if len(self.hub.store.get(asked["oid"], b"")) != asked["size"]:
            raise _Refused(404, "not uploaded")
        return {}

    def commit(self, query: dict, body: bytes, name: str, revision: str) -> dict:
        repo, line = self._repo(name), self._line(name, revision)
        proposal = bool(query.get("create_pr"))
        if not proposal:
            self._writer()
        lines = [json.loads(text) for text in body.splitlines()]
        header = next(one["value"] for one in lines if one["key"] == "header")
        parent = header.get("parentCommit")
        if parent and parent != line[-1].oid and not proposal:
            raise _Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(line[-1].files)
        for one in lines:
            self._apply(files, one["key"], one["value"])
        made = self.hub.commit_of(
            files, title=header["summary"], description=header["description"], parent=line[-1].oid
        )
        answer = {"commitUrl": f"{self.hub.url}/{name}/commit/{made.oid}", "commitOid": made.oid}
        if proposal:
            number = len(repo.requests) + 1
            repo.requests[number] = (header["summary"], [*line, made])
            return answer | {"pullRequestUrl": f"{self.hub.url}/{name}/discussions/{number}"}
        line.append(made)
        return answer

    def _apply(self, files: dict[str, File], key: str, value: dict) -> None:
        if key == "file":
            content = base64.b64decode(value["content"])
            files[value["path"]] = File(content, None, len(content))
        elif key == "lfsFile":
            if value["oid"] not in self.hub.store:
                raise _Refused(400, f"LFS pointer points to a file that does not exist: {value['path']}")
            files[value["path"]] = File(b"", value["oid"], len(self.hub.store[value["oid"]]))
        elif key == "deletedFile":
            if value["path"] not in files:
                raise _Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            del files[value["path"]]

    def make_branch(self, _query: dict, body: bytes, name: str, branch: str) -> dict:
        self._writer()
        repo = self._repo(name)
        if branch in repo.branches:
            raise _Refused(409, "Reference already exists")
        repo.branches[branch] = list(self._line(name, json.loads(body).get("startingPoint", "main")))
        return {}

    def delete_branch(self, _query: dict, _body: bytes, name: str, branch: str) -> dict:
        self._writer()
        del self._repo(name).branches[branch]
        return {}

    def discussions(self, _query: dict, _body: bytes, name: str) -> dict:
        found = [
            {"title": title, "num": number, "author": {"name": "tester"}, "createdAt": "2026-11-01T00:00:00.000Z",
             "status": "open", "repo": {"name": name, "type": "model"}, "isPullRequest": True}
            for number, (title, _) in self._repo(name).requests.items()
        ]  # fmt: skip
        return {"discussions": found, "count": len(found), "start": 0}


_NAME = r"([^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", f"/api/models/{_NAME}", _Handler.info),
    ("GET", f"/api/models/{_NAME}/revision/(.+)", _Handler.info),
    ("POST", f"/api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    ("POST", f"/{_NAME}\\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/lfs/([0-9a-f]{64})", _Handler.put),
    ("PUT", r"/lfs/([0-9a-f]{64})/(\d+)", _Handler.put_part),
    ("POST", "/lfs/([0-9a-f]{64})/complete", _Handler.complete),
    ("POST", "/api/lfs-verify", _Handler.verify),
    ("POST", f"/api/models/{_NAME}/commit/(.+)", _Handler.commit),
    ("POST", f"/api/models/{_NAME}/branch/(.+)", _Handler.make_branch),
    ("DELETE", f"/api/models/{_NAME}/branch/(.+)", _Handler.delete_branch),
    ("GET", f"/api/models/{_NAME}/discussions", _Handler.discussions),
]
