"""The Hugging Face hub: what a repository holds, and one commit onto it.

The protocol is `huggingface_hub`'s own (`preupload`, the LFS batch or Xet, `commit`). What it lacks is here: calls that
change nothing are tried again after faults of the hub; a commit whose answer was lost is looked for before it is sent
again, since the hub may have made it (a 500 with the commit done was seen: huggingface/datasets pull request 7708).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import quantkit
from quantkit.publish.failures import is_transient, status_of
from quantkit.publish.plan import Plan, Upload

log = logging.getLogger(__name__)

MAIN = "main"
ATTRIBUTES = ".gitattributes"
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".h5", ".index.json")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RemoteFile:
    """sha256: of LFS files. blob: git's id of the others."""

    size: int | None
    sha256: str | None
    blob: str | None

    def same_as(self, one: Upload) -> bool:
        return self.sha256 == one.sha256 if self.sha256 is not None else self.blob == one.blob


@dataclass(frozen=True)
class Remote:
    """A repository as it is. head: the commit that the branch, or the one that it will start from, is at."""

    private: bool
    head: str
    has_branch: bool
    files: dict[str, RemoteFile] = field(default_factory=dict)

    def same(self, uploads: Sequence[Upload]) -> bool:
        """Whether all of these files are there, as they are."""
        return all(one.name in self.files and self.files[one.name].same_as(one) for one in uploads)

    def stale(self, uploads: Sequence[Upload]) -> list[str]:
        """Weight files that would lie beside the new ones and belong to something else."""
        names = {one.name for one in uploads}
        return sorted(name for name in self.files if name.endswith(_WEIGHTS) and name not in names)

    def changed(self, uploads: Sequence[Upload]) -> list[str]:
        """Files that are there with other content."""
        return [one.name for one in uploads if one.name in self.files and not self.files[one.name].same_as(one)]


@dataclass(frozen=True)
class Backoff:
    """How often a call is tried, and the seconds before each further try, doubled each time."""

    tries: int = 5
    first: float = 1.0
    most: float = 30.0

    def call(self, what: Callable[[], Result]) -> Result:
        """The result, after as many tries as it takes; the last error is raised."""
        wait = self.first
        for left in range(self.tries - 1, -1, -1):
            try:
                return what()
            except Exception as error:
                if not left or not is_transient(error):
                    raise
                status = status_of(error)
                log.warning("%s; trying again in %g s", f"HTTP status {status}" if status else "connection lost", wait)
            time.sleep(wait)
            wait = min(self.most, 2 * wait)
        raise AssertionError("unreachable")


class Hub:
    """One repository of models on the hub, as `token` may use it. endpoint: HF_ENDPOINT's or the hub itself."""

    def __init__(self, repo: str, token: str, backoff: Backoff | None = None) -> None:
        from huggingface_hub import HfApi

        self.repo = repo
        self.token = token
        self.backoff = backoff or Backoff()
        self.api = HfApi(token=token, library_name="quantkit", library_version=quantkit.__version__)

    def who(self) -> dict[str, Any]:
        """The account behind the token; the cheapest way to learn that a token is no good."""
        return dict(self.backoff.call(self.api.whoami))

    def look(self, revision: str = MAIN) -> Remote | None:
        """What the repository holds at a branch, else at main; None if there is no repository."""
        from huggingface_hub import errors

        try:
            return self._remote(revision, has_branch=True)
        except errors.RevisionNotFoundError:
            return self._remote(MAIN, has_branch=False)
        except errors.RepositoryNotFoundError:
            return None

    def _remote(self, revision: str, has_branch: bool) -> Remote:
        info = self.backoff.call(lambda: self.api.model_info(self.repo, revision=revision, files_metadata=True))
        files = {one.rfilename: _remote_file(one) for one in info.siblings or []}
        return Remote(bool(info.private), str(info.sha), has_branch, files)

    def create(self, private: bool) -> None:
        """Make the repository; one that appeared meanwhile is taken."""
        self.backoff.call(
            lambda: self.api.create_repo(self.repo, repo_type="model", private=private or None, exist_ok=True)
        )

    def modes(self, uploads: Sequence[Upload], revision: str) -> dict[str, bool]:
        """Which files the hub would keep in LFS; asks, and changes nothing."""
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        asked = [{"path": one.name, "size": one.size, "sample": _sample(one)} for one in uploads]
        address = f"{self.api.endpoint}/api/models/{self.repo}/preupload/{_quoted(revision)}"

        def ask() -> Any:
            headers = build_hf_headers(token=self.token, library_name="quantkit")
            answer = get_session().post(address, headers=headers, json={"files": asked, "gitIgnore": ""})
            hf_raise_for_status(answer)
            return answer.json()

        return {one["path"]: one["uploadMode"] == "lfs" for one in self.backoff.call(ask)["files"]}

    def upload(self, added: list[Any], revision: str, pr: bool) -> None:
        """Send what goes into LFS or Xet; what the hub has is not sent again. Nothing of it shows before a commit."""
        # an empty .gitignore: one in the repository would silently keep files out
        self.api.preupload_lfs_files(
            self.repo, added, revision=revision, create_pr=pr, gitignore_content="", free_memory=False
        )

    def branch(self, name: str, start: str) -> None:
        """Make a branch; one that appeared meanwhile is taken."""
        self.backoff.call(lambda: self.api.create_branch(self.repo, branch=name, revision=start, exist_ok=True))

    def drop_branch(self, name: str) -> None:
        """Delete a branch that was made for a commit which failed; a failure of this is only logged."""
        try:
            self.api.delete_branch(self.repo, branch=name)
        except Exception as error:  # noqa: BLE001 - the commit's own error matters more
            log.warning("the empty branch %s stays (%s)", name, type(error).__name__)

    def commit(self, plan: Plan, operations: list[Any], revision: str, parent: str, pr: bool) -> Any:
        """One commit onto `parent`, refused if the branch has moved; returns its CommitInfo, or None where an
        earlier try turns out to have made it."""

        def send() -> Any:
            if tries and self._made(plan, revision, pr, known):
                return None
            tries.append(1)
            return self.api.create_commit(
                self.repo, operations, commit_message=plan.message, commit_description=plan.description,
                revision=revision, parent_commit=parent, create_pr=pr,
            )  # fmt: skip

        tries: list[int] = []
        known = self._requests(plan) if pr else []
        try:
            return self.backoff.call(send)
        except Exception:
            if len(tries) > 0 and self._made(plan, revision, pr, known):
                return None
            raise

    def _made(self, plan: Plan, revision: str, pr: bool, known: list[int]) -> bool:
        """Whether a commit is there although its answer was lost."""
        places = [f"refs/pr/{one}" for one in self._requests(plan) if one not in known] if pr else [revision]
        try:
            return any(self._remote(place, True).same(plan.uploads) for place in places)
        except Exception as error:
            if is_transient(error):
                return False
            raise

    def _requests(self, plan: Plan) -> list[int]:
        """Numbers of the open pull requests with the commit's title."""
        found = self.backoff.call(
            lambda: list(self.api.get_repo_discussions(self.repo, discussion_type="pull_request"))
        )
        return [one.num for one in found if one.title == plan.message and one.status in ("open", "draft")]

    def verify(self, plan: Plan, revision: str) -> list[str]:
        """Names of the plan's files that the hub does not have at a revision as they were sent."""
        remote = self._remote(revision, True)
        return [one.name for one in plan.uploads if not remote.same([one])]


def additions(plan: Plan) -> list[Any]:
    """The plan's files as operations of `huggingface_hub`."""
    from huggingface_hub import CommitOperationAdd

    return [CommitOperationAdd(path_in_repo=one.name, path_or_fileobj=one.source) for one in plan.uploads]


def deletions(names: Sequence[str]) -> list[Any]:
    """Files to delete, in the same way."""
    from huggingface_hub import CommitOperationDelete

    return [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in names]


def _remote_file(one: Any) -> RemoteFile:
    lfs = one.lfs
    return RemoteFile(one.size, None if lfs is None else str(lfs.sha256), one.blob_id)


def _sample(one: Upload) -> str:
    import base64

    if isinstance(one.source, bytes):
        return base64.b64encode(one.source[:512]).decode()
    with one.source.open("rb") as file:
        return base64.b64encode(file.read(512)).decode()


def _quoted(revision: str) -> str:
    from urllib.parse import quote

    return quote(revision, safe="")
