"""What a URL answers with, fetched so that a data file cannot make this machine read its own network.

Rules: http and https alone, no credentials in a URL, no cookies, no proxy (those of the environment are not used).
Every address that a host's name resolves to must be a public one, at each redirect anew, and the connection goes to the
very address that was checked, under the host's name (Host, SNI): a name that changes its address in between gains
nothing. One deadline holds from the look-up of the name to the last byte, so a server that drips ends as well as one
that is silent; the size limit holds while reading, whatever Content-Length says. What the bytes are, `images` judges.

Public: `ipaddress`' `is_global` (IANA's special-purpose registries), neither multicast nor reserved, IPv4 addresses
inside IPv6 ones taken out first (mapped RFC 4291, 6to4 RFC 3056, NAT64 RFC 6052).
"""

from __future__ import annotations

import functools
import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from quantkit.errors import QuantkitError

REDIRECTS = 5
SHOWN = 120  # characters of a URL in an error
CHUNK = 1 << 16
NAT64 = ipaddress.ip_network("64:ff9b::/96")
SIX_TO_FOUR_RELAYS = ipaddress.ip_network("192.88.99.0/24")
WORDS = {"image": "a picture", "video": "a video"}
# answers that are surely an error page or an API's, told before their body is read
PAGES = ("text/html", "application/xhtml+xml", "application/json", "text/javascript", "application/javascript")


class Unusable(QuantkitError):
    """Why a picture or clip cannot be used, without its name: the caller puts source and name before it."""


@dataclass(frozen=True)
class Access:
    """What may be read, and how much of it."""

    private_urls: bool = False  # allow URLs of this machine and of private networks
    max_pixels: int = 89_478_485  # width x height of a picture or a frame; Pillow's own limit, which it can only lower
    max_bytes: int = 50_000_000  # of one picture: file, data URI or URL
    max_video_bytes: int = 2_000_000_000  # of one video file, which is read in pieces
    max_video_download: int = 256_000_000  # of one video given by URL or data URI, which is held in memory
    timeout: float = 15.0  # seconds for one URL, from the look-up of its name to its last byte

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_bytes", "max_video_bytes", "max_video_download", "timeout"):
            if not getattr(self, name) > 0:
                raise QuantkitError(f"{name} must be above 0, not {getattr(self, name)}")

    def most(self, kind: str) -> int:
        """Bytes that one download may have; kind: "image" or "video"."""
        return self.max_bytes if kind == "image" else self.max_video_download


def is_url(reference: str) -> bool:
    """Whether a reference is an http or https URL."""
    return reference[:8].lower().startswith(("http://", "https://"))


def shown(url: str) -> str:
    """A URL as errors show it: without credentials, query and fragment (which may hold keys), at most 120 long."""
    address, _, rest = url.partition("?")
    scheme, _, place = address.partition("://")
    host, slash, path = place.partition("/")
    text = f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('#')[0]}"
    return (text if len(text) <= SHOWN else text[:SHOWN] + "...") + ("?..." if rest else "")


def fetch(url: str, access: Access, kind: str = "image") -> bytes:
    """The body that a URL answers with, redirects followed.

    kind: "image" or "video", for the size limit and the errors. Raises `Unusable` saying why: refused address, HTTP
    status, time, size, or an answer that is a page.
    """
    deadline = time.monotonic() + access.timeout
    for _ in range(REDIRECTS + 1):
        answer = _get(url, access, kind, deadline)
        if isinstance(answer, bytes):
            return answer
        url = answer
    raise Unusable(f"is redirected more than {REDIRECTS} times")


def _get(url: str, access: Access, kind: str, deadline: float) -> bytes | str:
    """The body, or the URL that the answer redirects to."""
    parts = _split(url)
    connection: socket.socket | None = None
    try:
        connection = _connect(parts, _addresses(parts, access, deadline), deadline)
        connection.settimeout(_left(deadline))
        connection.sendall(_request(parts, kind))
        # HTTPResponse asks its socket for nothing but a file to read from
        response = http.client.HTTPResponse(_Readable(connection, deadline), method="GET")  # type: ignore[arg-type]
        response.begin()
        if response.status in (301, 302, 303, 307, 308):
            location = response.getheader("Location")
            if not location:
                raise Unusable(f"answers with status {response.status} and no address to go on to")
            return urljoin(url, location)
        return _body(response, access.most(kind), kind)
    except TimeoutError as error:
        raise Unusable(f"did not arrive within {access.timeout:g} s; raise the timeout or save it as a file") from error
    except ssl.SSLError as error:
        raise Unusable(f"has no valid TLS connection ({error.reason or error})") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unusable(f"cannot be fetched ({first_line(error)})") from error
    finally:
        if connection is not None:
            connection.close()


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        raise Unusable(f"is no valid URL ({error})") from error
    if parts.scheme not in ("http", "https"):
        raise Unusable(f"leads to '{parts.scheme}:', only http and https are fetched")
    if parts.username is not None or parts.password is not None:
        raise Unusable("has credentials in it; they would be sent to whoever answers: remove them")
    if not parts.hostname:
        raise Unusable("is no valid URL (it names no host)")
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


# ---- the address ----


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, an IPv4 one inside an IPv6 one judged by itself."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    elif ip in SIX_TO_FOUR_RELAYS:
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


def _addresses(parts: SplitResult, access: Access, deadline: float) -> list[tuple[Any, ...]]:
    """What the host's name resolves to, as `getaddrinfo` gives it; refused where one of them is not public."""
    host = str(parts.hostname)
    found = _resolve(host, _port(parts), deadline)
    for *_, address in found:
        if not access.private_urls and not is_public(str(address[0])):
            raise Unusable(
                f"is refused: '{host}' is {address[0]}, an address of this machine or of a private network; "
                "allow private URLs if the data is to be trusted, or save it as a file"
            )
    return found


def _resolve(host: str, port: int, deadline: float) -> list[tuple[Any, ...]]:
    """`getaddrinfo`, which knows no timeout, in a thread that is left behind where the deadline passes."""
    result: list[Any] = []

    def look_up() -> None:
        try:
            result.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            result.append(error)

    thread = threading.Thread(target=look_up, name="quantkit-resolve", daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if not result:
        raise TimeoutError("the look-up of the name")
    if isinstance(result[0], Exception):
        raise Unusable(f"cannot be fetched (no address for '{host}': {first_line(result[0])})") from result[0]
    return result


def _connect(parts: SplitResult, addresses: list[tuple[Any, ...]], deadline: float) -> socket.socket:
    """A connection to the first of the addresses that takes one; under TLS, checked to be the host that was named."""
    fault: OSError | None = None
    for family, kind, protocol, _, address in addresses:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(_left(deadline))
            connection.connect(address)
            if parts.scheme != "https":
                return connection
            return _tls().wrap_socket(connection, server_hostname=parts.hostname)
        except ssl.SSLError:
            connection.close()
            raise
        except OSError as error:
            connection.close()
            fault = error
    raise fault or OSError("no address")


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


# ---- the request and its answer ----


def _request(parts: SplitResult, kind: str) -> bytes:
    host = str(parts.hostname).encode("idna").decode() if ":" not in str(parts.hostname) else f"[{parts.hostname}]"
    port = "" if parts.port is None else f":{parts.port}"
    target = quote(parts.path or "/", safe="/%:=&~+!$,;'@()*") + (
        "?" + quote(parts.query, safe="/%:=&~+!$,;'@()*?[]") if parts.query else ""
    )
    lines = (
        f"GET {target} HTTP/1.1",
        f"Host: {host}{port}",
        "User-Agent: quantkit",
        f"Accept: {kind}/*",
        "Accept-Encoding: identity",
        "Connection: close",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _body(response: http.client.HTTPResponse, most: int, kind: str) -> bytes:
    if response.status != 200:
        raise Unusable(f"answers with status {response.status} {response.reason}".rstrip())
    content = (response.getheader("Content-Type") or "").partition(";")[0].strip().lower()
    if content in PAGES or content.endswith("+json"):
        raise Unusable(f"answers with {content}, not {WORDS[kind]}")
    encoding = (response.getheader("Content-Encoding") or "identity").lower()
    if encoding != "identity":
        raise Unusable(f"answers with {encoding}-compressed data, which was not asked for")
    stated = response.length  # None where it is not stated
    if stated is not None and stated > most:
        _refuse_size(stated, most)
    body = io.BytesIO()
    while chunk := response.read1(CHUNK):
        body.write(chunk)
        if body.tell() > most:
            _refuse_size(None, most)
    if stated is not None and body.tell() < stated:
        raise Unusable(f"ends after {body.tell()} of {stated} bytes; fetch it again")
    if not body.tell():
        raise Unusable("answers with nothing")
    return body.getvalue()


def _refuse_size(size: int | None, most: int) -> NoReturn:
    what = "" if size is None else f" ({size / 1e6:.1f} MB)"
    raise Unusable(f"is larger than the limit of {most / 1e6:g} MB{what}; make it smaller or raise the limit")


class _Readable(io.RawIOBase):
    """The reading end of a connection whose every read ends at one deadline; to HTTPResponse, a socket."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection = connection
        self.deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, CHUNK)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.connection.settimeout(_left(self.deadline))
        return self.connection.recv_into(buffer)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline")
    return left


def first_line(error: BaseException, most: int = SHOWN) -> str:
    """What an error says, in one line of at most so many characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]
