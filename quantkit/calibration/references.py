"""What a row calls a picture or a video, made into one reference: a path, a data URI, a URL or a name of scikit-image.

A path must lead to a file inside the folder of the data file, links followed. Bytes ({"bytes", "path"} of `datasets`,
a binary column, bare base64) become data URIs, their kind read off the first bytes. A URL is checked in form only:
`fetch` gets it when it is decoded.
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from quantkit.calibration.conversations import VIDEO_SUFFIXES
from quantkit.errors import QuantkitError

URL = re.compile(r"https?://", re.IGNORECASE)
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
SKIMAGE = re.compile(r"skimage:\w[\w.-]*\Z")
BASE64 = re.compile(r"[A-Za-z0-9+/]{64,}={0,2}\s*\Z")
SHOWN = 80  # characters of a reference in messages


class References:
    """Turns what the rows of one file call pictures and videos into references; `folder` None: no path is allowed."""

    def __init__(self, where: str, folder: Path | None) -> None:
        self.where = where
        self.folder = folder  # resolved

    def fault(self, message: str) -> QuantkitError:
        return QuantkitError(f"{self.where}: {message}")

    def image(self, value: Any) -> str:
        """The reference of a picture: path, URL, data URI, base64, bytes, or an object of `bytes`, `path` or `url`."""
        return self._one(value, "image")

    def video(self, value: Any) -> str | list[str]:
        """The reference of a video file, or those of its frames."""
        if isinstance(value, (list, tuple)):
            if not value:
                raise self.fault("a video has no frames")
            return [self.image(frame) for frame in value]
        return self._one(value, "video")

    def _one(self, value: Any, kind: str) -> str:
        if isinstance(value, dict):
            for key in ("bytes", "base64", "path", "url"):
                if value.get(key) is not None:
                    value = value[key]
                    break
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self._inline(bytes(value), kind)
        if not isinstance(value, str) or not value.strip():
            found = "an empty text" if isinstance(value, str) else type(value).__name__
            frames = " or a list of frames" if kind == "video" else ""
            raise self.fault(f"{_a(kind)} must be a path, a URL, a data URI or bytes{frames}; found {found}")
        return self._text(value, kind)

    def _text(self, value: str, kind: str) -> str:
        if value[:5].lower() == "data:":
            if ";base64," not in value[:200]:
                raise self.fault(f"{kind} '{_short(value)}': a data URI must be base64 (data:image/png;base64,...)")
            return "data:" + value[5:]
        if URL.match(value):
            return self._url(value, kind)
        if kind == "image" and value.startswith("skimage:"):
            if not SKIMAGE.match(value):
                raise self.fault(f"image '{_short(value)}' is no picture of scikit-image (skimage:astronaut.png)")
            return value
        if value.startswith("file://"):
            return self._path(unquote(value[7:]), kind)
        if SCHEME.match(value):
            raise self.fault(f"{kind} '{_short(value)}': only http and https URLs are understood")
        inline = _from_base64(value, kind)
        return inline if inline is not None else self._path(value, kind)

    def _url(self, value: str, kind: str) -> str:
        try:
            parts = urlsplit(value)
            valid = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            valid = False
        if not valid or re.search(r"[\s\x00-\x1f\x7f\ud800-\udfff]", value):
            raise self.fault(f"{kind} '{_short(value)}' is no valid URL")
        return value

    def _inline(self, content: bytes, kind: str) -> str:
        if not content:
            raise self.fault(f"{_a(kind)} has no bytes")
        return _data_uri(content, kind)

    def _path(self, value: str, kind: str) -> str:
        """The absolute path of a file inside the data folder."""
        if self.folder is None:
            raise self.fault(f"{kind} '{_short(value)}': a row of the hub cannot name a file of this machine")
        if printable(value) != value:
            raise self.fault(f"{kind} '{_short(value)}' is no usable path (not UTF-8; rename the file)")
        try:
            path = (self.folder / value).resolve()
            inside, exists = path.is_relative_to(self.folder), path.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, links in a ring
            raise self.fault(f"{kind} '{_short(value)}' is no usable path ({_reason(error)})") from error
        if not inside:
            raise self.fault(f"{kind} '{_short(value)}' lies outside the data folder {self.folder}")
        if not exists:
            raise self.fault(f"{kind} '{_short(value)}' does not exist")
        if kind == "video" and path.suffix.lower() not in VIDEO_SUFFIXES:
            known = ", ".join(VIDEO_SUFFIXES)
            raise self.fault(
                f"video '{_short(value)}' is no video file ({known}); give such a file or a list of frames"
            )
        return str(path)


def printable(text: str) -> str:
    """The text with every half of a surrogate pair, as names of files that are not UTF-8 have them, as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def mime_of(content: bytes) -> str | None:
    """The media type by the first bytes, None if unknown: "image/png", "video/mp4", ..."""
    for magic, mime in (
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"GIF8", "image/gif"),
        (b"BM", "image/bmp"),
        (b"II*\x00", "image/tiff"),
        (b"MM\x00*", "image/tiff"),
        (b"\x1aE\xdf\xa3", "video/x-matroska"),  # webm as well
    ):
        if content.startswith(magic):
            return mime
    if content[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"AVI ": "video/x-msvideo"}.get(content[8:12])
    if content[4:8] == b"ftyp":
        still = content[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1")
        return "image/avif" if still else "video/quicktime" if content[8:12] == b"qt  " else "video/mp4"
    return None


def _data_uri(content: bytes, kind: str) -> str:
    mime = mime_of(content) or f"{kind}/{'mp4' if kind == 'video' else 'unknown'}"
    if kind == "video":
        mime = mime.replace("image/", "video/")  # an animated GIF given as a video
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _from_base64(value: str, kind: str) -> str | None:
    """A data URI, if the text is bare base64 of a kind that is known by its first bytes."""
    if len(value) < 64 or not BASE64.match(value):
        return None
    try:
        if mime_of(base64.b64decode(value[:64])) is None:
            return None
        return _data_uri(base64.b64decode(value.strip(), validate=True), kind)
    except binascii.Error:
        return None


def _a(kind: str) -> str:
    return "an image" if kind == "image" else f"a {kind}"


def _short(value: str) -> str:
    """The reference as it may stand in a one-line message."""
    shown = value[:SHOWN] + ("..." if len(value) > SHOWN else "")
    return shown.encode("unicode_escape", "backslashreplace").decode() if not shown.isprintable() else shown


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
