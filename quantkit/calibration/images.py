"""Decoding pictures as transformers' own loader does: EXIF rotation applied, then RGB."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from quantkit.errors import QuantkitError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


class Decoder:
    """Decodes each distinct image once, for as long as it lives (one conversation, in `prepare`)."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.decoded: dict[str, Picture] = {}

    def image(self, reference: str) -> Picture:
        """The picture at a path or in a data URI, in RGB; raises `QuantkitError` naming source and image."""
        if reference not in self.decoded:
            self.decoded[reference] = self._decode(reference)
        return self.decoded[reference]

    def _decode(self, reference: str) -> Picture:
        from PIL import Image, ImageOps

        name = reference[:40] + "..." if reference.startswith("data:") else reference
        try:
            with Image.open(_data_uri(reference) if reference.startswith("data:") else reference) as opened:
                return ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise QuantkitError(f"{self.where}: image '{name}' cannot be decoded ({error})") from error

    def messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A copy of the messages with every image decoded, and every video an array [frames, height, width, 3] uint8.

        The template engine of transformers writes into the messages it is given, hence a copy down to the parts.
        """
        return [{**message, "content": [self._part(part) for part in message["content"]]} for message in messages]

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        if part["type"] == "image":
            return {"type": "image", "image": self.image(part["image"])}
        if part["type"] == "video":
            frames = [self.image(frame) for frame in part["video"]]
            if len({frame.size for frame in frames}) > 1:
                raise QuantkitError(f"{self.where}: the frames of a video differ in size; resize them to one size")
            return {"type": "video", "video": np.stack([np.asarray(frame) for frame in frames])}
        return dict(part)


def _data_uri(uri: str) -> io.BytesIO:
    header, _, payload = uri.partition(",")
    if not header.endswith(";base64"):
        raise ValueError("a data URI must be base64")
    return io.BytesIO(base64.b64decode(payload, validate=True))
