"""What a hub's answer means: one line that says what happened, whether anything was published, and what to do."""

from __future__ import annotations

from collections.abc import Iterator

from quantkit.publish.secrets import redacted

LOGIN = "run `hf auth login`, or set HF_TOKEN"
NOTHING = "nothing was published"
# answers that another try may change, and after which it is not known whether a commit was made
TRANSIENT = (408, 429, 500, 502, 503, 504)
CONFLICT = (409, 412)
# by name: huggingface_hub has changed its HTTP library twice
_BROKEN = {
    "TimeoutException", "NetworkError", "RemoteProtocolError", "ConnectionError", "TimeoutError",
    "JSONDecodeError",  # an error page where an answer was due
}  # fmt: skip


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, if there was an answer."""
    codes = (getattr(getattr(one, "response", None), "status_code", None) for one in chain(error))
    return next((code for code in codes if isinstance(code, int)), None)


def is_transient(error: BaseException) -> bool:
    """Whether another try may go well: the connection broke, or the hub had a fault of its own."""
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT
    names = {base.__name__ for one in chain(error) for base in type(one).__mro__}
    return bool(names & _BROKEN)


def explain(error: BaseException, repo: str, *secrets: str) -> str:
    """One line on an error of `huggingface_hub`, without tokens and signed addresses."""
    from huggingface_hub import errors

    status = status_of(error)
    said = redacted(_server_words(error), *secrets)
    why = f" ({said})" if said else ""
    if any(isinstance(one, errors.OfflineModeIsEnabled) for one in chain(error)):
        return f"{repo}: HF_HUB_OFFLINE is set; unset it to publish"
    if any(isinstance(one, errors.LocalTokenNotFoundError) for one in chain(error)):
        return f"{repo}: not logged in; {LOGIN}"
    if status == 401:
        return f"{repo}: the hub does not take this token, it is expired or revoked; {LOGIN} to a valid one; {NOTHING}"
    if status == 403:
        return f"{repo}: this token may not write there{why}; {LOGIN} to one that may; {NOTHING}"
    if status == 404:
        return f"{repo}: the hub has no such repository or branch, or this login may not see it{why}; {NOTHING}"
    if status == 413 or "too large" in said.lower() or "storage limit" in said.lower():
        return f"{repo}: the hub refuses the size{why}; {NOTHING}"
    if status in CONFLICT:
        return f"{repo}: somebody else changed it meanwhile{why}; {NOTHING}; run the same command again"
    if "xet" in said.lower() or any(type(one).__module__.startswith("hf_xet") for one in chain(error)):
        return f"{repo}: sending through Xet failed{why}; {NOTHING}; set HF_HUB_DISABLE_XET=1 to do without it"
    if is_transient(error):
        what = f"the hub answers with HTTP status {status}" if status else "the connection broke"
        return f"{repo}: {what}{why}; {NOTHING}; run the same command again, what is there already is not sent twice"
    return f"{repo}: {said or type(error).__name__}; {NOTHING}"


def _server_words(error: BaseException) -> str:
    """What the hub itself said, else the innermost error's own words, on one line and not endless."""
    words = [getattr(one, "server_message", None) for one in chain(error)]
    found = next((word for word in words if word), None)
    if found is None and status_of(error) is None:
        found = str(list(chain(error))[-1])
    line = " ".join(str(found or "").split())
    return line if len(line) <= 200 else line[:197] + "..."
