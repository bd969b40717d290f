"""JSON over HTTP, with errors in one line. Only the standard library."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

from quantkit.errors import QuantkitError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LISTING_TIMEOUT = 30.0  # seconds, for what a server answers without running its model


class Unreachable(Exception):
    """No whole answer came; the message says why."""


class Refused(Exception):
    """The server answered with an error, or with what is no JSON; the message says which."""


class Client:
    """One server. `url` with or without `/v1`; `timeout` in seconds, of each request."""

    def __init__(self, url: str, api_key: str | None, timeout: float) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise QuantkitError(f"'{url}' is no server's address: give one such as http://localhost:8000")
        if parts.username or parts.password:
            raise QuantkitError("--url holds a name or password; give the key with --api-key, which no report repeats")
        self.timeout = timeout
        self.headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"
        # a proxy is for the world outside; a redirection could carry the key to another server
        proxies = [urllib.request.ProxyHandler({})] if parts.hostname in LOOPBACK else []
        self.opener = urllib.request.build_opener(_NoRedirect, *proxies)

    def get(self, path: str) -> Any:
        """What stands at a path."""
        return self._send(urllib.request.Request(self.url + path, headers=self.headers), LISTING_TIMEOUT)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a body."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=self.headers, method="POST")
        return self._send(request, self.timeout)

    def _send(self, request: urllib.request.Request, limit: float) -> Any:
        timeout = min(limit, self.timeout)
        try:
            with self.opener.open(request, timeout=timeout) as answer:
                kind, content = answer.headers.get_content_type(), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(_told(error)) from error
        except TimeoutError as error:
            raise Unreachable(f"no answer within {timeout:g} s; raise --timeout") from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise Unreachable(f"no answer within {timeout:g} s; raise --timeout") from error
            raise Unreachable(getattr(error.reason, "strerror", None) or str(error.reason)) from error
        except (OSError, HTTPException) as error:
            raise Unreachable(f"the connection broke ({type(error).__name__})") from error
        return _parsed(content, kind, request.selector)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def _parsed(content: bytes, kind: str, path: str) -> Any:
    if kind != "application/json":
        raise Refused(f"{path} answers with {kind}, not JSON; is this the server's address?")
    try:
        return json.loads(content)
    except ValueError as error:
        raise Refused(f"{path} answers with damaged JSON ({error})") from error


def _told(error: urllib.error.HTTPError) -> str:
    """One line of an error answer: OpenAI's `error.message`, or another server's `error`, `message` or `detail`."""
    try:
        content = error.read().decode("utf-8", errors="replace")
    except (OSError, HTTPException):
        content = ""
    try:
        found = json.loads(content)
    except ValueError:
        found = content
    while isinstance(found, dict):
        found = next((found[name] for name in ("error", "message", "detail") if name in found), str(found))
    message = " ".join(str(found).split())[:300] or str(error.reason)
    if error.code in (401, 403):
        message += "; give the key that the server was started with (--api-key)"
    return f"status {error.code}: {message}"
