"""The picture that the card's requests ask about: drawn here, so that nothing has to be fetched."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SIDE, NAME = 224, "circle.png"


def draw() -> bytes:
    """A red circle on white, as PNG."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIDE, SIDE), "white")
    quarter = SIDE // 4
    ImageDraw.Draw(picture).ellipse((quarter, quarter, SIDE - quarter, SIDE - quarter), fill=(214, 39, 40))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def serving(png: bytes) -> Iterator[str]:
    """The picture's http address on this machine, for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._head()

        def do_GET(self) -> None:
            if self._head():
                self.wfile.write(png)

        def _head(self) -> bool:
            found = self.path == f"/{NAME}"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(png) if found else 0))
            self.end_headers()
            return found

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/{NAME}"
    finally:
        server.shutdown()
        server.server_close()
