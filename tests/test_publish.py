"""`quantkit publish` against a hub on this machine: what goes, in one commit, and what happens when things break."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, Fault, Hub, hub_server
from processes import refused

from quantkit.errors import QuantkitError
from quantkit.publish.hub import Backoff
from quantkit.publish.run import PublishOptions, publish
from quantkit.publish.secrets import redacted
from quantkit.verify.ggufset import file_fingerprint, files_run
from quantkit.verify.report import Report

Run = Callable[..., tuple[int, str, str]]
REPO = "someone/tiny-AWQ"
WEIGHTS = "model.safetensors"
QUICK = Backoff(first=0.01)


class Stderr:
    """Wherever error output goes at the time."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub in this process talks to, and nothing else: any other address is refused."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    connect = socket.socket.connect
    for handler in logging.getLogger("huggingface_hub").handlers:  # it keeps the stream of the test that came first
        monkeypatch.setattr(handler, "stream", Stderr())

    def guarded(self: socket.socket, address: Any) -> None:
        assert address[0] == "127.0.0.1", f"contacted {address}"
        connect(self, address)

    with hub_server() as served:
        monkeypatch.setattr(socket.socket, "connect", guarded)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(_http.time, "sleep", lambda _seconds: None)
        yield served


@pytest.fixture
def variant(verified_awq: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(verified_awq, tmp_path / "tiny-AWQ"))


def options(**more: Any) -> PublishOptions:
    return PublishOptions(REPO, backoff=QUICK, **more)


def damage(path: Path) -> None:
    """Change one weight, in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def set_verdict(folder: Path, status: str, **more: Any) -> None:
    report = json.loads((folder / "report.json").read_text())
    report["verdict"]["status"] = status
    (folder / "report.json").write_text(json.dumps(report | more))


# ---- one commit ---------------------------------------------------------------------------------------------------


def test_publishes_all_of_it_in_one_commit(run: Run, hub: Hub, variant: Path) -> None:
    code, text, _ = run("publish", variant, "--repo", REPO)
    assert code == 0, text
    assert "published: " in text and "compared with the hub's checksums" in text
    line = hub.repos[REPO].branches["main"]
    assert len(line) == 2 and line[1].title.startswith("tiny-AWQ: AWQ, 4 bit, group 128 (quantkit ")
    assert not hub.repos[REPO].private
    names = set(line[1].files) - {".gitattributes"}
    assert names == {
        WEIGHTS, "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
        "video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "quantkit.json", "report.json", "report.md", "report.html", "README.md", "README_zh.md", "SHA256SUMS",
    }  # fmt: skip
    for name in names - {"SHA256SUMS"}:
        assert hub.content(REPO, name) == (variant / name).read_bytes(), name
    assert line[1].files[WEIGHTS].sha256 is not None and line[1].files["config.json"].sha256 is None
    assert f"SHA256SUMS: {hashlib.sha256(hub.content(REPO, 'SHA256SUMS')).hexdigest()}" in line[1].description


def test_the_checksums_are_what_sha256sum_reads(run: Run, hub: Hub, variant: Path, tmp_path: Path) -> None:
    assert run("publish", variant, "--repo", REPO)[0] == 0
    there = tmp_path / "there"
    there.mkdir()
    for name in hub.repos[REPO].branches["main"][-1].files:
        (there / name).write_bytes(hub.content(REPO, name))
    checked = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=there, capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout.count(": OK") == 15
    damage(there / WEIGHTS)
    assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=there, capture_output=True).returncode == 1


def test_what_was_published_can_be_verified_again(run: Run, hub: Hub, variant: Path, tmp_path: Path) -> None:
    assert run("publish", variant, "--repo", REPO)[0] == 0
    there = tmp_path / "there"
    there.mkdir()
    for name in hub.repos[REPO].branches["main"][-1].files:
        (there / name).write_bytes(hub.content(REPO, name))
    for _ in range(2):  # the second time report.json is another than that of SHA256SUMS
        code, text, _err = run("verify", "tiny", there, "--quick")
        assert code == 0 and "checked: checksums" in text, text


def test_the_file_where_autogptq_looks_goes_too(hub: Hub, variant: Path) -> None:
    """GPTQ's layout has a second place for its settings."""
    content = json.dumps({"bits": 4, "quant_method": "gptq"}).encode()
    (variant / "quantize_config.json").write_bytes(content)
    publish(variant, options())
    assert hub.content(REPO, "quantize_config.json") == content
    assert b"  quantize_config.json\n" in hub.content(REPO, "SHA256SUMS")


def test_private_and_a_second_branch(hub: Hub, variant: Path) -> None:
    publish(variant, options(private=True, revision="w4"))
    repo = hub.repos[REPO]
    assert repo.private and [len(repo.branches[name]) for name in ("main", "w4")] == [1, 2]
    assert WEIGHTS in repo.branches["w4"][-1].files and WEIGHTS not in repo.branches["main"][-1].files


def test_private_does_not_hide_what_is_public(run: Run, hub: Hub, variant: Path) -> None:
    hub.add_repo(REPO)
    refused(run("publish", variant, "--repo", REPO, "--private"), "is there already, and public")
    assert len(hub.repos[REPO].branches["main"]) == 1


def test_a_pull_request(run: Run, hub: Hub, variant: Path) -> None:
    refused(run("publish", variant, "--repo", REPO, "--pr"), "does not exist")
    hub.add_repo(REPO, {"config.json": b"another"})
    hub.tokens[TOKEN] = "contributor"  # may not write, but propose
    code, text, _ = run("publish", variant, "--repo", REPO, "--pr")
    assert code == 0 and f"{hub.url}/{REPO}/discussions/1" in text
    assert len(hub.repos[REPO].branches["main"]) == 1
    title, commits = hub.repos[REPO].requests[1]
    assert title == commits[-1].title and WEIGHTS in commits[-1].files


def test_nothing_to_do_the_second_time(run: Run, hub: Hub, variant: Path) -> None:
    assert run("publish", variant, "--repo", REPO)[0] == 0
    code, text, _ = run("publish", variant, "--repo", REPO)
    assert code == 0 and "nothing to do: all 16 files are there already" in text
    assert len(hub.repos[REPO].branches["main"]) == 2 and len(hub.sent("PUT", "/lfs/")) == 1


def test_another_content_is_replaced_when_asked(run: Run, hub: Hub, variant: Path) -> None:
    hub.add_repo(REPO, {"config.json": b"{}", "model-00001-of-00002.safetensors": b"old", "photo.png": b"a picture"})
    refused(run("publish", variant, "--repo", REPO), "holds another config.json and 1 more", "--overwrite")
    assert len(hub.repos[REPO].branches["main"]) == 1
    code, text, _ = run("publish", variant, "--repo", REPO, "--overwrite")
    assert code == 0 and "1 deleted" in text
    line = hub.repos[REPO].branches["main"]
    assert len(line) == 2  # replacing and deleting is one commit
    assert "model-00001-of-00002.safetensors" not in line[-1].files and "photo.png" in line[-1].files
    assert hub.content(REPO, "config.json") == (variant / "config.json").read_bytes()


def test_a_gitignore_of_the_repository_keeps_nothing_out(hub: Hub, variant: Path) -> None:
    hub.add_repo(REPO, {".gitignore": b"config.json\nmodel.safetensors\n"})
    publish(variant, options())
    assert {"config.json", WEIGHTS} <= set(hub.repos[REPO].branches["main"][-1].files)


# ---- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "whoami"), ("POST", "repos/create"), ("GET", "/api/models/someone/tiny-AWQ"), ("POST", "preupload"),
        ("POST", "objects/batch"), ("PUT", "/lfs/"), ("POST", "lfs-verify"), ("POST", "/commit/"),
        ("POST", "validate-yaml"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("action", [500, "drop"])
def test_two_faults_of_the_hub_are_waited_out(hub: Hub, variant: Path, method: str, path: str, action: Any) -> None:
    hub.faults.append(Fault(method, path, action, times=2, body="<html>an error page</html>"))
    publish(variant, options())
    assert hub.faults[0].times == 0
    assert len(hub.repos[REPO].branches["main"]) == 2
    assert hub.content(REPO, WEIGHTS) == (variant / WEIGHTS).read_bytes()


def test_a_hub_that_stays_broken(run: Run, hub: Hub, variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.publish.hub.time.sleep", lambda _seconds: None)
    hub.faults.append(Fault("PUT", "/lfs/", 503, times=1000))
    code, _, err = run("publish", variant, "--repo", REPO)
    assert code == 2 and "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"error: {REPO}: the hub answers with HTTP status 503") and "nothing was published" in last
    assert len(hub.repos[REPO].branches["main"]) == 1, "an empty repository is all that is left"
    hub.faults.clear()
    hub.part = 1 << 20  # what was sent to the hub before is not sent again, whatever its size
    assert run("publish", variant, "--repo", REPO)[0] == 0


def test_parts_and_resuming(hub: Hub, variant: Path) -> None:
    hub.part = 1 << 20
    hub.faults += [Fault("PUT", "/lfs/[0-9a-f]+/3", "drop"), Fault("POST", "/commit/", 403)]
    with pytest.raises(QuantkitError, match=r"may not write there \(a fault of the test\)"):
        publish(variant, options())
    sent = hub.sent("PUT", "/lfs/")
    assert len(sent) == 1 + -(-(variant / WEIGHTS).stat().st_size // hub.part) and len(hub.store) == 1
    publish(variant, options())
    assert len(hub.sent("PUT", "/lfs/")) == len(sent), "what the hub has is not sent again"
    assert hub.content(REPO, WEIGHTS) == (variant / WEIGHTS).read_bytes()


@pytest.mark.parametrize("action", [500, "drop"])
@pytest.mark.parametrize("pr", [False, True])
def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: Hub, variant: Path, action: Any, pr: bool) -> None:
    hub.add_repo(REPO)
    hub.faults.append(Fault("POST", "/commit/", action, after=True))
    done = publish(variant, options(pr=pr))
    repo = hub.repos[REPO]
    assert done.made and len(hub.sent("POST", "/commit/")) == 1
    assert (len(repo.branches["main"]), len(repo.requests)) == ((1, 1) if pr else (2, 0))


def test_somebody_else_commits_meanwhile(run: Run, hub: Hub, variant: Path) -> None:
    hub.add_repo(REPO)
    hub.faults.append(Fault("POST", "objects/batch", lambda served: served.push(REPO, "notes.txt", b"theirs")))
    refused(run("publish", variant, "--repo", REPO), "somebody else changed it meanwhile", "nothing was published")
    line = hub.repos[REPO].branches["main"]
    assert [one.title for one in line] == ["initial commit", "somebody else's"]
    assert run("publish", variant, "--repo", REPO)[0] == 0
    assert {"notes.txt", WEIGHTS} <= set(line[-1].files)


def test_a_branch_made_for_a_commit_that_fails_goes_again(hub: Hub, variant: Path) -> None:
    hub.add_repo(REPO)
    hub.faults.append(Fault("POST", "/commit/", 409))
    with pytest.raises(QuantkitError, match="somebody else"):
        publish(variant, options(revision="w4"))
    assert set(hub.repos[REPO].branches) == {"main"}


def test_an_expired_token(run: Run, hub: Hub, variant: Path) -> None:
    hub.tokens.clear()
    refused(run("publish", variant, "--repo", REPO), "expired or revoked", "`hf auth login`", "HF_TOKEN")
    assert not hub.repos


def test_a_token_that_expires_on_the_way(run: Run, hub: Hub, variant: Path) -> None:
    hub.faults.append(Fault("POST", "lfs-verify", lambda served: served.tokens.clear()))
    refused(run("publish", variant, "--repo", REPO), "expired or revoked", "nothing was published")
    assert len(hub.repos[REPO].branches["main"]) == 1


def test_tokens_that_may_not(run: Run, hub: Hub, variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.tokens[TOKEN] = "read"
    refused(run("publish", variant, "--repo", REPO), "this token may only read", "`hf auth login`")
    assert not hub.sent("PUT", "") and not hub.repos
    monkeypatch.setenv("HF_TOKEN", "two words")
    refused(run("publish", variant, "--repo", REPO), "characters that no token has")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(variant / "no such file"))
    refused(run("publish", variant, "--repo", REPO), "not logged in; run `hf auth login`, or set HF_TOKEN")


def test_a_file_that_the_hub_finds_too_large(run: Run, hub: Hub, variant: Path) -> None:
    hub.largest = 1000
    refused(run("publish", variant, "--repo", REPO), "refuses the size", "too large", "nothing was published")


def test_a_hub_without_xet(run: Run, hub: Hub, variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    refused(run("publish", variant, "--repo", REPO), "sending through Xet failed", "HF_HUB_DISABLE_XET=1")
    assert len(hub.repos[REPO].branches["main"]) == 1


def test_offline(run: Run, hub: Hub, variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(run("publish", variant, "--repo", REPO), "HF_HUB_OFFLINE is set")
    assert not hub.requests and not (variant / "README.md").exists()


def test_a_hub_that_stored_something_else(hub: Hub, variant: Path) -> None:
    hub.add_repo(REPO)
    hub.faults.append(Fault("GET", f"{REPO}/revision/[0-9a-f]{{40}}", lambda one: one.push(REPO, "x", b""), times=9))
    publish(variant, options())
    hub.faults.clear()

    def spoil(served: Hub) -> None:
        head = served.repos[REPO].branches["main"][-1]
        head.files["config.json"] = served.stored("config.json", b"{}")

    (variant / "quantkit.json").write_text("{}")
    hub.faults.append(Fault("GET", f"{REPO}/revision/[0-9a-f]{{40}}", spoil))
    with pytest.raises(QuantkitError, match=r"the hub has config\.json otherwise than it was sent"):
        publish(variant, options(overwrite=True))


# ---- secrets ------------------------------------------------------------------------------------------------------


def test_no_token_and_no_signature_in_any_output(run: Run, hub: Hub, variant: Path, tmp_path: Path) -> None:
    """At debug level, with retries and a failure, of every library, on both streams and in every file."""
    log = tmp_path / "debug.log"
    handler = logging.FileHandler(log)
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in ("huggingface_hub", "httpx2", "httpcore2", "quantkit"))]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.DEBUG)
        one.addHandler(handler)
    try:
        hub.faults += [Fault("PUT", "/lfs/", 500), Fault("PUT", "/lfs/", "drop"), Fault("POST", "/commit/", 403)]
        failed = run("publish", variant, "--repo", REPO)
        hub.tokens.clear()
        expired = run("publish", variant, "--repo", REPO)
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.removeHandler(handler)
            one.setLevel(level)
    assert failed[0] == expired[0] == 2
    written = log.read_text()
    assert "/lfs/" in written and "Retrying in" in written, "the log has the requests, else this shows nothing"
    for text in (written, *failed[1:], *expired[1:], *(path.read_text() for path in variant.glob("*.md"))):
        assert TOKEN not in text and "s1gn4ture" not in text
    assert any(TOKEN in (one.authorization or "") for one in hub.requests)
    assert not any(one.authorization for one in hub.sent("PUT", "/lfs/")), "signed addresses need no token"


def test_redacted() -> None:
    other = "hf_" + "Aa0" * 11
    text = redacted(f"Bearer {TOKEN}, {other}, https://x.y/z?X-Amz-Signature=abc&d=e and https://x.y/w", TOKEN)
    assert text == "Bearer ***, ***, https://x.y/z?*** and https://x.y/w"
    odd = "no/token of the hub's"
    assert redacted(f"{odd} {odd!r} no%2Ftoken%20of%20the%20hub%27s", odd) == '*** "***" ***'


# ---- without the tests' hands: a process of its own ---------------------------------------------------------------


def test_the_command_in_a_process_of_its_own(hub: Hub, variant: Path) -> None:
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_DEBUG": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "quantkit", "publish", str(variant), "--repo", REPO]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/{REPO}/commit/" in done.stdout
    assert TOKEN not in done.stdout + done.stderr and "s1gn4ture" not in done.stdout + done.stderr
    assert len(hub.repos[REPO].branches["main"]) == 2
    again = [sys.executable, "-X", "importtime", *command[1:]]
    imported = subprocess.run(again, env=environment, capture_output=True, text=True).stderr
    assert re.search(r"\| +huggingface_hub$", imported, re.MULTILINE)
    assert not re.search(r"\| +torch$", imported, re.MULTILINE), "torch takes seconds to import, and is not needed"


# ---- what is refused ----------------------------------------------------------------------------------------------


def test_refuses_without_a_passing_report(run: Run, hub: Hub, variant: Path) -> None:
    def stopped(*words: str, more: tuple[str, ...] = ()) -> None:
        refused(run("publish", variant, "--repo", REPO, *more), *words)

    set_verdict(variant, "measured")
    stopped("no gate was set", "--ungated")
    set_verdict(variant, "fail")
    stopped("the variant failed", more=("--ungated",))
    set_verdict(variant, "measured", engines=[])
    stopped("nothing was measured", more=("--ungated",))
    (variant / "report.json").unlink()
    stopped("no report of it; run quantkit verify tiny", "--max-kl")
    assert not hub.requests and not (variant / "README.md").exists()


def test_a_named_report_must_be_of_these_files(run: Run, hub: Hub, variant: Path, tmp_path: Path) -> None:
    other = Report.load(variant)
    other.candidate.fingerprint = "0" * 64
    other.save(tmp_path / "other.json")
    more = ("--report", tmp_path / "other.json")
    refused(run("publish", variant, "--repo", REPO, *more), "other.json: is about other files")
    (variant / "report-other.json").write_text((tmp_path / "other.json").read_text())
    code, text, _ = run("publish", variant, "--repo", REPO)
    assert code == 0 and "left out: report-other.json (no report of these files)" in text


def test_a_link_beside_a_named_report_is_refused(run: Run, hub: Hub, variant: Path, tmp_path: Path) -> None:
    shutil.move(variant / "report.json", tmp_path / "report.json")
    (tmp_path / "report.md").symlink_to("/etc/hostname")
    refused(run("publish", variant, "--repo", REPO, "--report", tmp_path), "report.md: a link")


def test_a_hub_that_does_not_say_who(hub: Hub, variant: Path) -> None:
    """As for the short-lived tokens of a CI job."""
    hub.faults.append(Fault("GET", "whoami", 403))
    assert publish(variant, options()).made


def test_ungated(hub: Hub, variant: Path) -> None:
    set_verdict(variant, "measured")
    assert publish(variant, options(ungated=True)).made


def test_refuses_files_that_the_report_is_not_of(run: Run, hub: Hub, variant: Path) -> None:
    """The fingerprint is computed from the files, and SHA256SUMS sees what a sample of the bytes does not."""
    config = json.loads((variant / "config.json").read_text())
    (variant / "config.json").write_text(json.dumps(config | {"changed": 1}))
    refused(run("publish", variant, "--repo", REPO), "report.json: is about other files", "verify again")
    (variant / "config.json").write_text(json.dumps(config))
    damage(variant / WEIGHTS)
    code, _, err = run("publish", variant, "--repo", REPO)
    assert code == 2 and ("does not match SHA256SUMS" in err or "is about other files" in err)
    assert not hub.requests


def test_refuses_a_loss_against_another_model(run: Run, hub: Hub, variant: Path) -> None:
    report = Report.load(variant)
    report.reference.fingerprint = "0" * 64
    report.save(variant)
    refused(run("publish", variant, "--repo", REPO), "measured against tiny (000000000000), but made of tiny")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "weights.bin").write_bytes(b"x"), "weights.bin: a pickle"),
        (lambda folder: (folder / "sub").mkdir() or (folder / "sub/x.PT").write_bytes(b"x"), "x.PT: a pickle"),
        (lambda folder: (folder / "link.json").symlink_to("config.json"), "link.json: a link"),
        (lambda folder: (folder / "link").symlink_to("/"), "link: a link"),
    ],
)
def test_refuses_links_and_pickles(
    run: Run, hub: Hub, variant: Path, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(variant)
    refused(run("publish", variant, "--repo", REPO), words)
    assert not hub.requests


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--repo", "tiny-AWQ"), "--repo 'tiny-AWQ': write ORG/NAME"),
        (("--repo", "a/b/c"), "write ORG/NAME"),
        (("--repo", "../x"), "write ORG/NAME"),
        (("--repo", REPO, "--revision", "refs/pr/3"), "name a branch"),
        (("--repo", REPO, "--revision", "a..b"), "name a branch"),
        (("--repo", REPO, "--revision", "w4", "--pr"), "leave out --revision"),
        (("--repo", REPO, "--keep-card"), "has no README.md"),
        (("--repo", REPO, "--license", "GPL 3"), "--license 'GPL 3'"),
    ],
)
def test_refuses_what_makes_no_sense(run: Run, hub: Hub, variant: Path, more: tuple[str, ...], words: str) -> None:
    refused(run("publish", variant, *more), words)
    assert not hub.requests


def test_stays_at_home(run: Run, hub: Hub, variant: Path) -> None:
    """Hidden files, caches, statistics and what nobody foresaw; a runtimes.json of other files."""
    (variant / ".statistics").mkdir()
    (variant / ".statistics/model.safetensors").write_bytes(b"x")
    (variant / ".env").write_text("SECRET")
    (variant / "__pycache__").mkdir()
    (variant / "__pycache__/x.pyc").write_bytes(b"x")
    (variant / "notes.txt").write_text("mine")
    (variant / "model.py").write_text("import os")
    (variant / "extra.safetensors").write_bytes(b"x")
    (variant / "stats").mkdir()
    (variant / "stats/config.json").write_text("{}")
    (variant / "runtimes.json").write_text(json.dumps({"format": 1, "fingerprint": "0", "runs": []}))
    (variant / "LICENSE").write_text("Apache License\n   Version 2.0, January 2004\n")
    code, text, _ = run("publish", variant, "--repo", REPO)
    assert code == 0
    names = set(hub.repos[REPO].branches["main"][-1].files)
    assert len(names) == 18 and "LICENSE" in names
    for name in ("notes.txt", "model.py", "extra.safetensors", "stats/config.json", "runtimes.json"):
        assert f"left out: {name} (" in text and name not in names
    assert "left out: extra.safetensors (no part of the variant)" in text
    assert b"license: apache-2.0" in hub.content(REPO, "README.md")


# ---- dry run ------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_what_would_go(run: Run, hub: Hub, variant: Path) -> None:
    before = sorted(path.name for path in variant.iterdir())
    code, text, _ = run("publish", variant, "--repo", REPO, "--dry-run")
    assert code == 0 and "the repository does not exist yet" in text and "dry run: nothing was sent" in text
    assert sorted(path.name for path in variant.iterdir()) == before
    assert not hub.repos and {one.method for one in hub.requests} == {"GET"}
    shown = {row.split()[0]: row.split()[1:] for row in text.splitlines() if row.endswith(" new")}
    assert run("publish", variant, "--repo", REPO)[0] == 0
    files = {name: one for name, one in hub.repos[REPO].branches["main"][-1].files.items() if name != ".gitattributes"}
    assert set(shown) == set(files)
    for name, (size, stored, sha256, _) in shown.items():
        content = hub.content(REPO, name)
        assert int(size) == len(content) and sha256 == hashlib.sha256(content).hexdigest(), name
        assert stored == ("LFS" if files[name].sha256 else "-"), name
    head = hub.repos[REPO].branches["main"][-1]
    assert f"commit: {head.title}" in text and head.description.splitlines()[1] in text


def test_a_dry_run_against_what_is_there(run: Run, hub: Hub, variant: Path) -> None:
    hub.add_repo(REPO, {"config.json": b"{}", "tokenizer.json": (variant / "tokenizer.json").read_bytes(),
                        "old.gguf": b"old"})  # fmt: skip
    code, text, _ = run("publish", variant, "--repo", REPO, "--dry-run")
    states = {row.split()[0]: row.split()[-1] for row in text.splitlines() if len(row.split()) == 5}
    assert code == 0 and states["config.json"] == "changed" and states["tokenizer.json"] == "same"
    assert states[WEIGHTS] == "new" and "old.gguf" in text and "deleted" in text
    assert f"onto {hub.repos[REPO].branches['main'][-1].oid[:12]}" in text
    assert len(hub.repos[REPO].branches["main"]) == 1 and not hub.store.keys() - {hashlib.sha256(b"old").hexdigest()}


def test_a_dry_run_without_a_login_or_a_hub(run: Run, hub: Hub, variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.append(Fault("GET", "", 401, times=99))
    code, text, _ = run("publish", variant, "--repo", REPO, "--dry-run")
    assert code == 0 and "the hub was not asked" in text and "LFS  " in text
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "the hub was not asked" in run("publish", variant, "--repo", REPO, "--dry-run")[1]


# ---- cards that somebody edited -----------------------------------------------------------------------------------


def test_an_edited_card_is_not_lost(run: Run, hub: Hub, variant: Path) -> None:
    assert run("card", variant, "--repo", REPO)[0] == 0
    path = variant / "README.md"
    path.write_text(path.read_text().replace("# tiny-AWQ", "# Mine"))
    refused(run("publish", variant, "--repo", REPO), "README.md: was edited by hand", "--keep-card")
    refused(run("card", variant), "was edited by hand", "--overwrite")
    assert run("publish", variant, "--repo", REPO, "--keep-card")[0] == 0
    assert b"# Mine" in hub.content(REPO, "README.md")
    path.write_text("---\nlicense: mit\n---\nsomebody's\n")
    refused(run("publish", variant, "--repo", REPO), "was not written by quantkit")
    assert run("card", variant, "--overwrite")[0] == 0
    assert "license: mit" in path.read_text()


# ---- GGUF ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two text models, one of them in parts, and a vision file."""
    from quantkit.gguf.quantize import quantize_gguf
    from quantkit.recipe import GgufOptions

    folder = tmp_path_factory.mktemp("gguf") / "tiny-GGUF"
    quantize_gguf(GgufOptions(model="tiny", type=("Q8_0", "Q4_K_M"), solver="rtn", split_max_size="2500KB", out=folder))
    return folder


def gguf_report(verified: Path, target: Path, mmproj: Path | None = None) -> Report:
    """The report of another variant, as a verification of these files would have begun it."""
    report = Report.load(verified)
    files = files_run(target, mmproj)
    report.candidate.name = target.name
    report.candidate.fingerprint = file_fingerprint(files)
    report.candidate.quantization = {"quant_method": "gguf", "files": [file.name for file in files]}
    return report


def test_gguf_needs_a_report_of_every_text_model(
    run: Run, hub: Hub, gguf_folder: Path, verified_awq: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(gguf_folder, tmp_path / "tiny-GGUF"))
    texts = sorted(path.name for path in folder.glob("tiny-*.gguf"))
    assert len(texts) == 3 and "of-00002" in texts[1], texts
    repo = "someone/tiny-GGUF"
    refused(run("publish", folder, "--repo", repo), "no report of it; run quantkit verify tiny")
    gguf_report(verified_awq, folder / texts[0]).save(tmp_path / "first.json")
    one = ("--report", tmp_path / "first.json")
    refused(run("publish", folder, "--repo", repo, *one), f"{texts[1]}: no report of it", "--report")
    gguf_report(verified_awq, folder / texts[1]).save(folder / "report-second.json")
    code, text, err = run("publish", folder, "--repo", repo, *one)
    assert code == 0, err
    names = set(hub.repos[repo].branches["main"][-1].files)
    stem = texts[1].removesuffix(".gguf")
    assert {*texts, "mmproj-tiny-F16.gguf", "Modelfile-Q8_0", "report-tiny-Q4_K_M.json", f"report-{stem}.json"} <= names
    assert "report-second.json" not in names and "left out" not in text
    damage(folder / texts[2])  # the second part: the report is of both
    card = hub.content(repo, "README.md").decode()
    assert f"`report-{stem}.html`" in card and card.count("quantkit verify tiny tiny-GGUF/") == 2
    refused(run("publish", folder, "--repo", repo, *one), "no report of it")


def test_gguf_vision_files_are_covered_too(
    run: Run, hub: Hub, gguf_folder: Path, verified_awq: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "GGUF"
    folder.mkdir()
    for name in ("tiny-Q4_K_M.gguf", "mmproj-tiny-F16.gguf", "quantkit.json"):
        shutil.copyfile(gguf_folder / name, folder / name)
    second = folder / "mmproj-tiny-4x-F16.gguf"
    shutil.copyfile(folder / "mmproj-tiny-F16.gguf", second)
    text = folder / "tiny-Q4_K_M.gguf"
    gguf_report(verified_awq, text, folder / "mmproj-tiny-F16.gguf").save(folder / "report.json")
    refused(run("publish", folder, "--repo", "a/b"), f"{second.name}: no report of it", "--mmproj")
    second.unlink()
    assert run("publish", folder, "--repo", "a/b")[0] == 0


def test_verify_reads_the_fingerprint_of_what_it_runs(run: Run, gguf_folder: Path, tmp_path: Path) -> None:
    part = sorted(gguf_folder.glob("*-00001-of-00002.gguf"))[0]
    assert run("verify", "tiny", part, "--quick", "--report", tmp_path)[0] == 0
    model = Report.load(tmp_path).candidate
    names = model.quantization["files"] if model.quantization else []
    assert [name[-13:] for name in names] == ["01-of-00002.gguf"[-13:], "02-of-00002.gguf"[-13:], "tiny-F16.gguf"]
    assert model.bytes == sum((gguf_folder / name).stat().st_size for name in names)
