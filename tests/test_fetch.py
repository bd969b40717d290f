"""URLs: what is refused, before or while it is read; what arrives is what was sent. Servers on loopback alone."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from quantkit.calibration import fetch as module
from quantkit.calibration.fetch import Access, Unusable, fetch, is_public, is_url, shown
from quantkit.errors import QuantkitError

OPEN = Access(private_urls=True, timeout=5)
BODY = b"\x89PNG\r\n\x1a\n" + bytes(1000)


@contextlib.contextmanager
def server(answer: Callable[[socket.socket, str], None]) -> Iterator[tuple[str, list[str]]]:
    """A server whose `answer` writes to the connection, given the request; yields its URL and the requests it got."""
    listener = socket.create_server(("127.0.0.1", 0))
    requests: list[str] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                request = connection.recv(65536).decode("latin-1")
                requests.append(request)
                answer(connection, request)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def reply(body: bytes = BODY, status: str = "200 OK", **headers: str) -> bytes:
    lines = {"Content-Type": "image/png", "Content-Length": str(len(body))} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + body


def answers(*replies: bytes) -> Callable[[socket.socket, str], None]:
    """Sends the next of the replies to each request, the last again and again."""
    left = list(replies)
    return lambda connection, _: connection.sendall(left.pop(0) if len(left) > 1 else left[0])


def reason(url: str, access: Access = OPEN, kind: str = "image") -> str:
    with pytest.raises(Unusable) as caught:
        fetch(url, access, kind)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, QuantkitError)
    return str(caught.value)


# ---- what arrives ----


def test_the_body_arrives_as_it_was_sent():
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n3\r\nfgh\r\n0\r\n\r\n"
    until_closed = b"HTTP/1.0 200 OK\r\n\r\nto the end"
    with server(answers(reply(), chunked, until_closed)) as (url, requests):
        assert fetch(f"{url}/a%20b/ü.png?size=1 2&x=[a]#top", OPEN) == BODY
        assert fetch(url, OPEN) == b"abcdefgh"
        assert fetch(url, OPEN) == b"to the end"
    first = requests[0].split("\r\n")
    assert first[0] == "GET /a%20b/%C3%BC.png?size=1%202&x=[a] HTTP/1.1"
    assert f"Host: {url.removeprefix('http://')}" in first
    assert "Connection: close" in first and "Accept-Encoding: identity" in first
    assert not any(line.lower().startswith(("cookie", "authorization", "referer")) for line in first)
    assert requests[1].startswith("GET / HTTP/1.1\r\n")


def test_redirects_are_followed_and_keep_no_cookie():
    codes = (301, 302, 303, 307, 308)
    moved = [reply(b"", f"{code} Moved", Location=f"/{code}?b=2", Set_Cookie="a=b") for code in codes]
    with server(answers(*moved, reply())) as (url, requests):
        assert fetch(url, OPEN) == BODY
    assert [request.split(" ")[1] for request in requests] == ["/", *(f"/{code}?b=2" for code in codes)]
    assert "cookie" not in "".join(requests).lower()


def test_too_many_redirects_end():
    with server(answers(reply(b"", "302 Found", Location="/again"))) as (url, requests):
        assert reason(url) == "is redirected more than 5 times"
    assert len(requests) == 6


def test_no_proxy_of_the_environment_is_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with server(answers(reply())) as (url, _):
        assert fetch(url, OPEN) == BODY


# ---- what an answer may be ----


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (reply(b"x", "404 Not Found"), "answers with status 404 Not Found"),
        (reply(b"x", "500 Oops"), "answers with status 500 Oops"),
        (reply(b"", "204 No Content"), "answers with status 204 No Content"),
        (reply(b"", "302 Found"), "answers with status 302 and no address to go on to"),
        (reply(b"<html>", Content_Type="Text/HTML; charset=utf-8"), "answers with text/html, not a picture"),
        (reply(b"{}", Content_Type="application/json"), "answers with application/json, not a picture"),
        (reply(b"{}", Content_Type="application/problem+json"), "answers with application/problem+json, not a picture"),
        (reply(b"x", Content_Encoding="gzip"), "answers with gzip-compressed data, which was not asked for"),
        (reply(b""), "answers with nothing"),
        (reply(b"abc", Content_Length="10"), "ends after 3 of 10 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc", "cannot be fetched (IncompleteRead"),
        (b"not http at all\r\n\r\n", "cannot be fetched (not http at all"),
        (b"", "cannot be fetched (Remote end closed connection"),
    ],
)
def test_an_answer_that_is_no_picture_says_what_it_is(answer, expected):
    with server(answers(answer)) as (url, _):
        assert reason(url).startswith(expected)


def test_the_kind_is_named():
    with server(answers(reply(b"x", Content_Type="text/html"))) as (url, _):
        assert reason(url, kind="video") == "answers with text/html, not a video"


@pytest.mark.parametrize("stated", ["10001", "", "10"])
def test_the_size_limit_holds_whatever_is_stated(stated):
    """A stated length is believed where it is too large; where it is too small, no more than it is read."""
    limit = Access(private_urls=True, max_bytes=10_000)
    with server(answers(reply(bytes(10_001), Content_Length=stated))) as (url, _):
        if stated == "10":
            assert fetch(url, limit) == bytes(10)
        else:
            assert reason(url, limit).startswith("is larger than the limit of 0.01 MB")
    with server(answers(reply(bytes(10_000)))) as (url, _):
        assert len(fetch(url, limit)) == 10_000


def test_a_stated_size_above_the_limit_is_refused_before_it_is_read():
    def announce(connection: socket.socket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000000\r\n\r\nx")
        time.sleep(1)

    with server(announce) as (url, _):
        assert reason(url, Access(private_urls=True, timeout=0.5)) == (
            "is larger than the limit of 50 MB (60.0 MB); make it smaller or raise the limit"
        )


def test_an_endless_body_ends_at_the_limit():
    def pour(connection: socket.socket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(bytes(65536))

    with server(pour) as (url, _):
        assert reason(url, Access(private_urls=True, max_bytes=1_000_000)).startswith(
            "is larger than the limit of 1 MB"
        )


# ---- time ----


def drip(connection: socket.socket, piece: bytes) -> None:
    for _ in range(200):
        connection.sendall(piece)
        time.sleep(0.02)


@pytest.mark.parametrize(
    "answer",
    [
        lambda connection, _: time.sleep(1.5),
        lambda connection, _: drip(connection, b"H"),
        lambda connection, _: (connection.sendall(b"HTTP/1.1 200 OK\r\n"), drip(connection, b"a: b\r\n")),
        lambda connection, _: (connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n"), drip(connection, b"x")),
        lambda connection, _: drip(connection, b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["silent", "status drips", "headers drip", "body drips", "continues"],
)
def test_a_slow_server_ends_at_the_deadline(answer):
    started = time.monotonic()
    with server(answer) as (url, _):
        found = reason(url, Access(private_urls=True, timeout=0.3))
        assert time.monotonic() - started < 1.2
    assert found.startswith("did not arrive within 0.3 s") or "100 headers" in found


def test_redirects_share_one_deadline():
    def slow(connection: socket.socket, _: str) -> None:
        time.sleep(0.2)
        connection.sendall(reply(b"", "302 Found", Location="/on"))

    started = time.monotonic()
    with server(slow) as (url, _):
        assert reason(url, Access(private_urls=True, timeout=0.5)).startswith("did not arrive within 0.5 s")
        assert time.monotonic() - started < 1.2


def test_a_look_up_that_hangs_ends_at_the_deadline(monkeypatch):
    monkeypatch.setattr(module.socket, "getaddrinfo", lambda *a, **k: time.sleep(2) or [])
    started = time.monotonic()
    assert reason("http://slow.example/", Access(timeout=0.2)).startswith("did not arrive within 0.2 s")
    assert time.monotonic() - started < 1


def test_a_refused_connection_and_an_unknown_name_are_told(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "Connection refused" in reason(f"http://127.0.0.1:{port}/")

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(module.socket, "getaddrinfo", unknown)
    assert reason("http://nowhere.invalid/x.png").startswith("cannot be fetched (no address for 'nowhere.invalid'")


# ---- addresses ----


PRIVATE = [
    "127.0.0.1",
    "127.8.9.1",
    "0.0.0.0",
    "0.1.2.3",
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.127.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.9",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.88.99.1",
    "::",
    "::1",
    "::127.0.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd12:3456::1",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
    "2001::1",
    "100::1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "2002:0a00:0001::1",
    "2002:7f00:1::",
    "::8.8.8.8",
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "172.32.0.1",
    "100.128.0.1",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_of_no_public_network_are_refused(address, monkeypatch):
    assert not is_public(address)
    monkeypatch.setattr(module.socket, "getaddrinfo", lambda *a, **k: [(2, 1, 6, "", (address, 80))])
    monkeypatch.setattr(module.socket, "socket", None)  # a connection would raise another error
    found = reason("http://harmless.example/x.png", Access())
    assert found.startswith(f"is refused: 'harmless.example' is {address}, an address of this machine or of a private")


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_public_network_are_taken(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1", "0x7f000001", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0"]
)
def test_every_spelling_of_this_machine_is_refused(host):
    assert reason(f"http://{host}:1/x.png", Access()).startswith("is refused")


def test_one_private_address_among_public_ones_is_enough(monkeypatch):
    found = [(2, 1, 6, "", ("8.8.8.8", 80)), (2, 1, 6, "", ("10.0.0.1", 80))]
    monkeypatch.setattr(module.socket, "getaddrinfo", lambda *a, **k: found)
    assert "is 10.0.0.1" in reason("http://two.example/", Access())


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch):
    """A name that is public when it is checked and private a moment later: the second answer is never asked for."""
    answered, connected = [], []

    def look_up(host: str, port: int, **_: object) -> list:
        answered.append(host)
        return [(socket.AF_INET, 1, 6, "", ("8.8.8.8" if len(answered) == 1 else "127.0.0.1", port))]

    class Recorder(socket.socket):
        def connect(self, address: object) -> None:
            connected.append(address)
            raise ConnectionRefusedError("recorded")

    monkeypatch.setattr(module.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(module.socket, "socket", Recorder)
    assert "recorded" in reason("http://rebinds.example/x.png", Access())
    assert connected == [("8.8.8.8", 80)] and answered == ["rebinds.example"]


def test_a_redirect_into_the_private_network_is_refused(monkeypatch):
    """The first host passes as public; where it leads to is checked anew."""
    monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1")
    for target in ("http://10.0.0.1/x.png", "http://[::1]/", "//192.168.0.1/x", "http://169.254.169.254/latest"):
        with server(answers(reply(b"", "302 Found", Location=target))) as (url, requests):
            assert reason(url, Access()).startswith("is refused")
        assert len(requests) == 1


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("file:///etc/passwd", "leads to 'file:', only http and https are fetched"),
        ("ftp://127.0.0.1/x", "leads to 'ftp:'"),
        ("http://user:secret@127.0.0.1/x", "has credentials in it"),
    ],
)
def test_a_redirect_to_another_scheme_is_refused(target, expected):
    with server(answers(reply(b"", "302 Found", Location=target))) as (url, _):
        assert reason(url).startswith(expected)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://user:secret@example.org/x", "has credentials in it"),
        ("http://user@example.org/x", "has credentials in it"),
        ("http:///x.png", "is no valid URL (it names no host)"),
        ("http://example.org:port/x", "is no valid URL"),
        ("http://[::1/x", "is no valid URL"),
        ("file:///etc/passwd", "leads to 'file:'"),
    ],
)
def test_urls_that_are_not_asked_for(url, expected, monkeypatch):
    monkeypatch.setattr(module.socket, "getaddrinfo", None)
    assert reason(url).startswith(expected)


def test_a_line_break_in_a_url_starts_no_header():
    with server(answers(reply())) as (url, requests):
        fetch(f"{url}/x\r\nX-Injected: 1?y\r\nZ: 2", OPEN)
    assert "\r\nX-Injected" not in requests[0] and "\r\nZ:" not in requests[0]


# ---- TLS ----


def test_tls_is_made_with_the_hosts_name_and_checks_it(monkeypatch):
    names = []

    class Context:
        def wrap_socket(self, connection: socket.socket, server_hostname: str) -> socket.socket:
            names.append(server_hostname)
            return connection

    monkeypatch.setattr(module, "_tls", Context)
    with server(answers(reply())) as (url, requests):
        assert fetch(url.replace("http://127.0.0.1", "https://localhost"), OPEN) == BODY
    assert names == ["localhost"]
    assert "\r\nHost: localhost:" in requests[0]


def test_the_tls_context_verifies():
    context = module._tls()
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname


def test_a_server_without_tls_is_told():
    with server(answers(b"plain text, no handshake\r\n")) as (url, _):
        assert reason(url.replace("http", "https")).startswith("has no valid TLS connection (")


# ---- how errors show it ----


def test_urls_are_shown_without_what_may_be_secret():
    assert shown("https://a.example/x.png?token=secret#part") == "https://a.example/x.png?..."
    assert shown("https://user:secret@a.example/x.png#secret") == "https://a.example/x.png"
    assert len(shown("https://a.example/" + "x" * 500)) == 123


def test_what_counts_as_a_url():
    assert is_url("http://x") and is_url("HTTPS://x")
    assert not any(map(is_url, ["ftp://x", "/http://x", "file:///x", "data:,http://", "httpx"]))


@pytest.mark.parametrize("name", ["max_pixels", "max_bytes", "max_video_bytes", "max_video_download", "timeout"])
def test_limits_are_above_zero(name):
    with pytest.raises(QuantkitError, match=f"{name} must be above 0"):
        Access(**{name: 0})
