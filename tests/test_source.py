"""Where a checkpoint comes from: folders, and a hub that is a cache on disk or a small server on this machine."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from quantkit import source
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
from quantkit.source import resolve

REPO, COMMIT = "org/some-model", "0123456789abcdef0123456789abcdef01234567"
OPEN = """
import sys
from quantkit.checkpoint import open_checkpoint
from quantkit.errors import QuantkitError
for model, revision in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        checkpoint = open_checkpoint(model, revision=revision or None)
        print(checkpoint.name, checkpoint.revision, len(checkpoint.tensor_names), len(checkpoint.verify_checksums()))
        print(sorted(path.name for path in checkpoint.path.iterdir()))
    except QuantkitError as error:
        print(error)
"""


def open_models(home: Path, *models: tuple[str, str], **environment: str) -> list[str]:
    """Open models in a process of its own, whose hub settings are these; return what it printed, one line each."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    variables |= {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    words = [word for model in models for word in model]
    result = subprocess.run([sys.executable, "-c", OPEN, *words], capture_output=True, text=True, env=variables)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def make_cache(home: Path, tmp_path: Path) -> Path:
    """A cache in the hub's layout: blobs named by their checksums, a snapshot of links; returns the snapshot."""
    repository = home / "hub" / "models--org--some-model"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for path in write_checkpoint(tmp_path / "origin", shards=2).iterdir():
        content = path.read_bytes()
        lfs = path.suffix == ".safetensors"
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        name = hashlib.sha256(content).hexdigest() if lfs else git
        (repository / "blobs" / name).write_bytes(content)
        (snapshot / path.name).symlink_to(f"../../blobs/{name}")
    return snapshot


# ---- folders ------------------------------------------------------------------------------------------------------


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "org" / "name")
    (tmp_path / "here").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for model in (folder, str(folder), "org/name", "./org/name", "~/org/name", "~/here", "org/name/"):
        checkpoint = open_checkpoint(model)
        assert checkpoint.path.resolve() == folder
        assert checkpoint.name == "name"
        assert checkpoint.revision is None
    monkeypatch.chdir(folder)
    assert open_checkpoint(".").name == "name"


@pytest.mark.parametrize(
    "model", ["./gone", "../gone", "/gone/x", "~/gone", "gone/gone/gone", "gone\\gone", "gone/", Path("a/b")]
)
def test_a_path_is_never_sent_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str | Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source, "_download", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(
        QuantkitError, match=r"no such folder; name a folder, a hub id such as openbmb/MiniCPM-V-4\.6, or tiny"
    ):
        resolve(model)


@pytest.mark.parametrize("model", ["MiniCPM", "", "org/na me", "http://x/y"])
def test_neither_path_nor_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source, "_download", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(QuantkitError, match=r"no such folder; name a folder, a hub id .* or tiny"):
        resolve(model)


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    with pytest.raises(QuantkitError, match=r"x\.gguf: a file; give the folder"):
        resolve(tmp_path / "x.gguf")


def test_tiny_is_the_bundled_folder_even_beside_one_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("tiny").path == Path(source.__file__).parent / "data" / "tiny"
    assert resolve("./tiny").path.resolve() == tmp_path / "tiny"


# ---- the hub's cache, offline -------------------------------------------------------------------------------------


def test_cache_offline(tmp_path: Path) -> None:
    make_cache(tmp_path / "home", tmp_path)
    models = [(REPO, ""), (REPO, COMMIT), ("org/other", ""), (REPO, "v2")]
    lines = open_models(tmp_path / "home", *models, HF_HUB_OFFLINE="1")
    assert lines[0] == lines[2] == f"{REPO} {COMMIT} 4 8"
    assert lines[1] == lines[3]
    hub = tmp_path / "home" / "hub"
    assert lines[4] == (
        f"org/other: not (completely) in the cache {hub}, and HF_HUB_OFFLINE is set; unset it to download"
    )
    assert lines[5].startswith(f"{REPO} at revision v2: not (completely) in the cache {hub}")
    assert len(lines) == 6


def test_links_of_a_cache_are_side_files(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_cache(tmp_path / "home", tmp_path))
    assert len(checkpoint.side_files()) == 5
    target = tmp_path / "copy"
    target.mkdir()
    for path in checkpoint.copy_side_files(target):
        assert not path.is_symlink()
        assert path.read_bytes() == (tmp_path / "origin" / path.name).read_bytes()


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "chat_template.jinja", "config.json"])
def test_damaged_blob(tmp_path: Path, name: str) -> None:
    snapshot = make_cache(tmp_path / "home", tmp_path)
    content = (snapshot / name).read_bytes()
    blob = (snapshot / name).resolve()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if name != "config.json" else content + b" ")
    with pytest.raises(QuantkitError, match=rf"{name}: damaged or changed, its bytes do not match the hub's checksum"):
        open_checkpoint(snapshot)
    open_checkpoint(snapshot, verify_checksums=False)


def test_cache_whose_blob_is_gone(tmp_path: Path) -> None:
    snapshot = make_cache(tmp_path / "home", tmp_path)
    (snapshot / "generation_config.json").resolve().unlink()
    with pytest.raises(QuantkitError, match=r"generation_config\.json: a link to a file that is not there"):
        open_checkpoint(snapshot)


# ---- a hub on this machine ----------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for one repository; org/gated is gated, org/broken fails, everything else is unknown."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self.answer(200, (self.folder / path.rpartition("/")[2]).read_bytes())
        elif path in (
            f"/api/models/{REPO}",
            f"/api/models/{REPO}/revision/main",
            f"/api/models/{REPO}/revision/{COMMIT}",
        ):
            self.answer(200, {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.names()]})
        elif path.startswith(f"/api/models/{REPO}/tree/"):
            self.answer(200, [self.entry(name) for name in self.names()])
        elif path.startswith(f"/api/models/{REPO}/revision/"):
            self.answer(404, {"error": "no revision"}, "RevisionNotFound")
        elif path.startswith("/api/models/org/gated"):
            self.answer(403, {"error": "gated"}, "GatedRepo")
        elif path.startswith("/api/models/org/broken"):
            self.answer(418, {"error": "a teapot\nand more"})
        else:
            self.answer(401, {"error": "unknown"}, "RepoNotFound")

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def entry(self, name: str) -> dict[str, object]:
        content = (self.folder / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        entry = {"type": "file", "path": name, "size": len(content), "oid": digest[:40]}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 100}
        return entry

    def answer(self, status: int, content: object, code: str | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A running hub: its address, the folder it serves, the paths that were asked of it."""
    folder = write_checkpoint(tmp_path / "served", shards=2)
    handler = type("ThisHub", (Hub,), {"folder": folder, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder, handler.asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_download(hub: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    address, folder, asked = hub
    for name in ("pytorch_model.bin", "modeling_x.py", "README.md", "LICENSE"):
        (folder / name).write_text(name)
    models = [(REPO, ""), (REPO, "v2"), ("org/gated", ""), ("org/unknown", ""), ("org/broken", "")]
    lines = open_models(tmp_path / "home", *models, HF_ENDPOINT=address, HF_HUB_DISABLE_XET="1")
    assert lines[0] == f"{REPO} {COMMIT} 4 9"
    left_out = ("pytorch_model.bin", "modeling_x.py", "README.md")
    assert lines[1] == str(sorted(path.name for path in folder.iterdir() if path.name not in left_out))
    assert not any(path.endswith(left_out) for path in asked)
    assert lines[2] == f"{REPO}: the hub has no revision v2; give a branch, tag or commit of that repository"
    assert lines[3] == "org/gated: gated; accept its terms on the hub, then `hf auth login` or set HF_TOKEN"
    assert lines[4].startswith("org/unknown: no such folder, and the hub has no such model (if it is private")
    assert lines[5] == "org/broken: not in the cache, and the hub answers with HTTP status 418; try again later"
    assert len(lines) == 6


def test_no_network(tmp_path: Path) -> None:
    lines = open_models(tmp_path, (REPO, ""), HF_ENDPOINT="http://127.0.0.1:9")
    said = "no such folder, not in the hub's cache, and the hub cannot be reached; check the name and the network"
    assert lines == [f"{REPO}: {said}"]
