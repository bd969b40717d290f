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
    pictures = []
    for message in conversation.messages:
        for part in message["content"]:
            if part["type"] == "image":
                pictures.append(decoder.image(part["image"]))
            elif part["type"] == "video":
                pictures += decoder.frames(part, max_num_frames=MOST)
    step = max(1, -(-len(pictures) // MOST))
    found = []
    for whole in pictures[::step]:
        picture = whole.copy()
        picture.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=80)
        found.append("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())
    return found
