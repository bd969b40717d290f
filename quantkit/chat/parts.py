"""A question as the content of a message in the normal form of `quantkit.calibration.conversations`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantkit.calibration.fetch import is_url
from quantkit.calibration.images import SKIMAGE
from quantkit.errors import QuantkitError


def reference(value: str) -> str:
    """What `Decoder` opens: a path made absolute; a URL, a data URI or skimage:NAME as it is."""
    if value.startswith(("data:", SKIMAGE)) or is_url(value):
        return value
    if not value.strip():
        raise QuantkitError("a picture or clip must be named: a file, a URL or a data URI")
    try:
        return str(Path(value).expanduser().absolute())
    except (RuntimeError, ValueError) as error:  # no such user's home
        raise QuantkitError(f"'{value}' is no usable path ({error})") from error


def question(text: str, images: Sequence[str] = (), videos: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The parts of a user's message: pictures, clips, then the text; raises `QuantkitError` where there is no text."""
    if not text.strip():
        raise QuantkitError("the question is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise QuantkitError("the question is not UTF-8; set the terminal's locale to UTF-8") from error
    pictures = [{"type": "image", "image": reference(image)} for image in images]
    clips = [{"type": "video", "video": reference(video)} for video in videos]
    return [*pictures, *clips, {"type": "text", "text": text}]
