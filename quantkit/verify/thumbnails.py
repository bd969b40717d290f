"""Small pictures of an item for the report."""

from __future__ import annotations

import base64
import io

from quantkit.calibration import Conversation
from quantkit.calibration.images import Decoder

SIDE = 160  # pixels of the longer side
MOST = 4  # pictures an item


def thumbnails(conversation: Conversation) -> list[str]:
    """JPEG data URIs of an item's pictures and its clips' frames, at most four, evenly taken."""
    decoder = Decoder(conversation.source)
    references: list[str] = []
    for message in conversation.messages:
        for part in message["content"]:
            if part["type"] == "image":
                references.append(part["image"])
            elif part["type"] == "video":
                references += part["video"]
    step = max(1, -(-len(references) // MOST))
    found = []
    for reference in references[::step]:
        picture = decoder.image(reference).copy()
        picture.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=80)
        found.append("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())
    return found
