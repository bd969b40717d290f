"""The steps of a publication in their order; what a hub may refuse comes as late, and changes as little, as can be."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.card.facts import Facts, gather
from quantkit.card.files import card_texts, check_cards, write_cards
from quantkit.card.texts import LANGUAGES
from quantkit.card.variant import part
from quantkit.errors import QuantkitError
from quantkit.publish.check import check_evidence
from quantkit.publish.failures import LOGIN, NOTHING, explain, status_of
from quantkit.publish.hub import ATTRIBUTES, MAIN, Backoff, Hub, Remote, additions, deletions
from quantkit.publish.plan import Plan, make_plan
from quantkit.publish.secrets import redacted_logs

log = logging.getLogger(__name__)

_BRANCH = re.compile(r"[A-Za-z0-9][\w./-]{0,200}", re.ASCII)


@dataclass(frozen=True)
class PublishOptions:
    """What the command asks; `quantkit.cli.publish` describes each."""

    repo: str
    revision: str = MAIN
    pr: bool = False
    private: bool = False
    overwrite: bool = False
    ungated: bool = False
    keep_card: bool = False
    reports: tuple[Path, ...] = ()
    base_model: str | None = None
    licence: str | None = None
    backoff: Backoff = field(default_factory=Backoff)

    def __post_init__(self) -> None:
        fine = _BRANCH.fullmatch(self.revision) and ".." not in self.revision and not self.revision.startswith("refs/")
        if not fine or re.fullmatch("[0-9a-f]{40}", self.revision):
            raise QuantkitError(f"--revision {self.revision!r}: name a branch")
        if self.pr and self.revision != MAIN:
            raise QuantkitError(f"--pr: is opened against {MAIN}; leave out --revision")


@dataclass(frozen=True)
class Preview:
    """What a commit would do. lfs: by name; asked: whether the hub itself was asked. remote: None without a repository
    (or unasked). changed, deleted: names of files that are there already."""

    plan: Plan
    lfs: dict[str, bool]
    asked: bool
    why_not: str = ""
    remote: Remote | None = None
    changed: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()

    def same(self, name: str) -> bool:
        """Whether the hub has a file as it is."""
        return self.remote is not None and self.remote.same([one for one in self.plan.uploads if one.name == name])


@dataclass(frozen=True)
class Published:
    """What was done. address: of the commit or the pull request; made: False where all was there already."""

    plan: Plan
    address: str
    made: bool
    deleted: tuple[str, ...] = ()


# ---- without the hub ----------------------------------------------------------------------------------------------


def prepare(folder: str | Path, options: PublishOptions, write: bool) -> Plan:
    """Check the evidence, make the cards (`write`: into the folder) and choose the files; nothing is sent."""
    facts = gather(
        folder, repo=options.repo, reports=options.reports, base_model=options.base_model, licence=options.licence
    )
    measured = check_evidence(facts, options.ungated, options.reports)
    return make_plan(facts, measured, _cards(facts, options, write))


def _cards(facts: Facts, options: PublishOptions, write: bool) -> dict[str, str | Path]:
    folder = facts.variant.path
    if options.keep_card:
        kept: dict[str, str | Path] = {name: folder / name for name in LANGUAGES.values() if (folder / name).is_file()}
        if "README.md" not in kept:
            raise QuantkitError(f"--keep-card: {folder} has no README.md; leave it out")
        return kept
    check_cards(folder, "add --keep-card to publish it as it is, or make it anew with quantkit card --overwrite")
    if not write:
        return dict(card_texts(facts))
    return {path.name: path for path in write_cards(facts)}


# ---- with it ------------------------------------------------------------------------------------------------------


def preview(folder: str | Path, options: PublishOptions) -> Preview:
    """What `publish` would send and change. The hub is asked where there is a login; nothing changes anywhere."""
    plan = prepare(folder, options, write=False)
    expected = {one.name: one.expected_lfs for one in plan.uploads}
    token = _token(options.repo, needed=False)
    if token is None:
        return Preview(plan, expected, False, "not logged in")
    with redacted_logs(token):
        try:
            hub = Hub(options.repo, token, options.backoff)
            remote = hub.look(options.revision)
            lfs = hub.modes(plan.uploads, options.revision if remote.has_branch else MAIN) if remote else {}
        except Exception as error:  # noqa: BLE001 - a preview does without
            return Preview(plan, expected, False, explain(error, options.repo, token).removesuffix(f"; {NOTHING}"))
    if remote is None:
        return Preview(plan, expected, True)
    changed, stale = remote.changed(plan.uploads), remote.stale(plan.uploads)
    return Preview(plan, expected | lfs, True, "", remote, tuple(changed), tuple(stale))


def publish(folder: str | Path, options: PublishOptions) -> Published:
    """Publish a variant's folder; raises QuantkitError, one line, after which nothing was published."""
    token = _token(options.repo, needed=True)
    assert token is not None
    plan = prepare(folder, options, write=True)
    with redacted_logs(token):
        try:
            return _send(plan, options, Hub(options.repo, token, options.backoff))
        except QuantkitError:
            raise
        except Exception as error:  # noqa: BLE001 - its HTTP library, and with it the errors, has changed twice
            # the cause may hold the token in its text, and a traceback would show it
            raise QuantkitError(explain(error, options.repo, token)) from None


def _send(plan: Plan, options: PublishOptions, hub: Hub) -> Published:
    _check_role(hub)
    remote = hub.look(options.revision)
    _check_remote(plan, options, remote)
    if remote is not None and remote.has_branch and remote.same(plan.uploads) and not remote.stale(plan.uploads):
        return Published(plan, _address(hub, options), made=False)
    if remote is None:
        hub.create(options.private)
        remote = hub.look(options.revision)
        if remote is None:
            raise QuantkitError(f"{options.repo}: made, but the hub does not show it yet; run the same command again")
    delete = remote.stale(plan.uploads)
    added = additions(plan)
    hub.upload(added, options.revision if remote.has_branch else MAIN, options.pr)
    if not remote.has_branch:
        hub.branch(options.revision, remote.head)
    try:
        info = hub.commit(plan, added + deletions(delete), options.revision, remote.head, options.pr)
    except BaseException:
        if not remote.has_branch:
            hub.drop_branch(options.revision)
        raise
    return _finish(plan, options, hub, info, delete)


def _finish(plan: Plan, options: PublishOptions, hub: Hub, info: object, delete: Sequence[str]) -> Published:
    """Compare what the hub has now with what was sent."""
    number = getattr(info, "pr_revision", None)
    address = getattr(info, "pr_url", None) or getattr(info, "commit_url", None) or _address(hub, options)
    if info is None and options.pr:
        return Published(plan, f"{hub.api.endpoint}/{options.repo}/discussions", True, tuple(delete))
    wrong = hub.verify(plan, number or getattr(info, "oid", None) or options.revision)
    if wrong:
        raise QuantkitError(
            f"{options.repo}: published, but the hub has {wrong[0]} otherwise than it was sent; look there"
        )
    return Published(plan, str(address), True, tuple(delete))


def _token(repo: str, needed: bool) -> str | None:
    """From HF_TOKEN or the hub's own login, nowhere else."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        if needed:
            raise QuantkitError(f"{repo}: HF_HUB_OFFLINE is set; unset it to publish")
        return None
    try:
        token = get_token()
    except Exception as error:  # noqa: BLE001 - a login may be refreshed over the network
        raise QuantkitError(explain(error, repo)) from None
    if token is None and needed:
        raise QuantkitError(f"{repo}: not logged in; {LOGIN}")
    if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise QuantkitError(f"{repo}: the hub's token holds characters that no token has; {LOGIN} to a valid one")
    return token


def _check_role(hub: Hub) -> None:
    """A token that may only read is refused before gigabytes are sent; one that may not even ask goes on."""
    try:
        account = hub.who()
    except Exception as error:
        if status_of(error) in (403, 429):
            return
        raise
    if part(account, "auth", "accessToken").get("role") == "read":
        raise QuantkitError(f"{hub.repo}: this token may only read; {LOGIN} to one that may write; {NOTHING}")


def _check_remote(plan: Plan, options: PublishOptions, remote: Remote | None) -> None:
    if remote is None:
        if options.pr:
            raise QuantkitError(f"--pr: {options.repo} does not exist; leave it out to make the repository")
        return
    if options.private and not remote.private:
        raise QuantkitError(f"--private: {options.repo} is there already, and public; change it on the hub's own page")
    there = [*remote.changed(plan.uploads), *remote.stale(plan.uploads)]
    there = [name for name in there if name != ATTRIBUTES]
    if there and not options.overwrite and not options.pr:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise QuantkitError(
            f"{options.repo}: holds another {there[0]}{more}; add --overwrite to replace what differs, or --pr"
        )


def _address(hub: Hub, options: PublishOptions) -> str:
    return f"{hub.api.endpoint}/{options.repo}/tree/{options.revision}"
