"""Decoding pictures and clips as inference does: what the processor is handed is what the model would have seen.

A reference is the absolute path of a file, a base64 data URI, an http(s) URL (see `fetch`) or `skimage:NAME`, a picture
among the data files of an installed scikit-image. Pictures are decoded as transformers' own loader does: EXIF rotation
applied, then RGB; of an animation the first frame; transparency is dropped, not blended.

One kind of picture is read in two ways there: 16-bit grey is clipped to white by Pillow's `convert("RGB")`, while the
processor, given a path, scales it to 8 bits (round(v / 257)). Scaled is meant, and what is done here. Of 16-bit colour
both keep 8 bits, Pillow the upper ones, which is at most one level off.

A picture's size is checked before it is decoded, and only formats that Pillow reads by itself are taken (no EPS, which
would start Ghostscript). Frame lists: the frames given are the frames meant; with an `fps` they count as a video of
that rate, and the processor's rule chooses among them as among a file's.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import importlib.util
import io
import logging
import os
import stat
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.calibration import video
from quantkit.calibration.fetch import Access, Unusable, fetch, first_line, is_url, shown
from quantkit.calibration.references import printable
from quantkit.calibration.video import Clip, Sample
from quantkit.errors import QuantkitError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["Access", "Clip", "Decoded", "Decoder"]

log = logging.getLogger(__name__)

SKIMAGE = "skimage:"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
FRAMES_WITHOUT_RULE = 8  # of a video file where no processor is asked which
PIECE = 1 << 20  # bytes of a video file that are read at a time
# what Pillow's readers meet damaged files with
_DAMAGED: tuple[type[Exception], ...] = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, RuntimeError),
    *(OverflowError, MemoryError, struct.error, zlib.error),
)
_noted: set[str] = set()  # kinds of pictures that were warned of; each is a warning once, then a line of information


@dataclass(frozen=True)
class Decoded:
    """A conversation ready for `processor.apply_chat_template(messages, processor_kwargs={..., **kwargs})`."""

    messages: list[dict[str, Any]]  # pictures are PIL images, videos arrays [frames, 3, height, width] uint8
    kwargs: dict[str, Any] = field(default_factory=dict)  # of the videos; empty where there is none


class Decoder:
    """Reads what a conversation refers to, each picture and clip once, for as long as it lives (one conversation).

    where: "file:row", before every error.
    """

    def __init__(self, where: str, access: Access | None = None) -> None:
        self.where = where
        self.access = access or Access()
        self.decoded: dict[str, Picture] = {}
        self.fetched: dict[str, bytes] = {}
        self.clips: dict[str, tuple[tuple[Any, ...], Clip]] = {}  # of each file the last that was asked for

    # ---- pictures ----

    def image(self, reference: str) -> Picture:
        """The picture that a reference means, in RGB; raises `QuantkitError` naming source and picture."""
        if reference not in self.decoded:
            try:
                data = self._read(reference, "image")
                self.decoded[reference] = self._open(reference, data)
            except Unusable as error:
                raise self._fault("image", reference, error) from error
        return self.decoded[reference]

    def _open(self, reference: str, data: bytes) -> Picture:
        from PIL import Image, ImageOps

        _refuse_other_kinds(data[:512])
        try:
            with Image.open(io.BytesIO(data), formats=_formats()) as opened:
                self._check_pixels(opened.size)
                if getattr(opened, "is_animated", False):
                    self._note("several", reference, "holds several pictures: its first is used, as at inference")
                if opened.mode.startswith("I;16"):
                    self._note("16-bit", reference, "has 16 bits of grey: they are scaled to 8, as at inference")
                elif opened.mode in ("I", "F"):
                    self._note(opened.mode, reference, "has values beyond 8 bits: they are clipped, as at inference")
                return _scaled(ImageOps.exif_transpose(opened)).convert("RGB")
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise Unusable(f"is too large ({error}); make it smaller") from error
        except Image.UnidentifiedImageError as error:
            raise Unusable(f"cannot be decoded (no picture of a known kind: {', '.join(FORMATS)})") from error
        except _DAMAGED as error:
            raise Unusable(f"cannot be decoded ({first_line(error)})") from error

    def _check_pixels(self, size: tuple[int, int]) -> None:
        width, height = size
        if width * height > self.access.max_pixels:
            raise Unusable(
                f"is {width} x {height} = {width * height:,} pixels, more than the limit of "
                f"{self.access.max_pixels:,}; make it smaller"
            )

    def _note(self, kind: str, reference: str, text: str) -> None:
        level = logging.INFO if kind in _noted else logging.WARNING
        _noted.add(kind)
        log.log(level, "%s: image '%s' %s", self.where, _name(reference), text)

    # ---- clips ----

    def clip(
        self,
        part: dict[str, Any],
        video_processor: Any = None,
        max_num_frames: int | None = None,
        stack_frames: int | None = None,
    ) -> Clip:
        """The frames of a video part, [n, height, width, 3] uint8, that the processor's own rule asks for.

        video_processor: a checkpoint's `processor.video_processor`; None: at most `max_num_frames` (8), evenly taken.
        Raises `QuantkitError` naming source and video.
        """
        if video_processor is None:
            rule = video.even_rule(max_num_frames or FRAMES_WITHOUT_RULE)
        else:
            rule = video.processor_rule(video_processor, max_num_frames, stack_frames)
        if not isinstance(part["video"], str):
            try:
                return self._listed(part["video"], part.get("fps"), rule)
            except Unusable as error:
                raise QuantkitError(f"{self.where}: a video of {len(part['video'])} frames {error}") from error
        reference, asked = part["video"], (video_processor, max_num_frames, stack_frames)
        if self.clips.get(reference, (None,))[0] != asked:
            try:
                clip = video.read_clip(self._video_source(reference), rule, self.access.max_pixels)
            except Unusable as error:
                raise self._fault("video", reference, error) from error
            self.clips[reference] = asked, clip
        return self.clips[reference][1]

    def frames(
        self,
        part: dict[str, Any],
        video_processor: Any = None,
        max_num_frames: int | None = None,
        stack_frames: int | None = None,
    ) -> list[Picture]:
        """The same frames as pictures, whichever form the part has."""
        from PIL import Image

        if not isinstance(part["video"], str) and not part.get("fps"):
            return [self.image(frame) for frame in part["video"]]
        clip = self.clip(part, video_processor, max_num_frames, stack_frames)
        return [Image.fromarray(frame) for frame in clip.frames]

    def _listed(self, references: list[str], fps: float | None, rule: Sample) -> Clip:
        """A clip of single pictures; without a rate it lasts no time, so nothing of it is stacked."""
        count = len(references)
        if not count:
            raise QuantkitError(f"{self.where}: a video has no frames")
        metadata: dict[str, Any] = {"total_num_frames": count, "fps": fps, "duration": 0.0, "video_backend": None}
        indices = list(range(count))
        if fps is not None:
            if not fps > 0:
                raise QuantkitError(f"{self.where}: the 'fps' of a video must be above 0, not {fps}")
            metadata["duration"] = count / fps
            indices = video.sampled_indices(metadata, rule)
        pictures = [self.image(references[index]) for index in indices]
        if len({picture.size for picture in pictures}) > 1:
            raise QuantkitError(f"{self.where}: the frames of a video differ in size; resize them to one size")
        width, height = pictures[0].size
        metadata |= {"width": width, "height": height, "frames_indices": indices}
        return Clip(np.stack([np.asarray(picture) for picture in pictures]), metadata)

    def _video_source(self, reference: str) -> str | bytes:
        """A path, which is not read as a whole, or bytes."""
        source: str | bytes
        if reference.startswith(("data:", SKIMAGE)) or is_url(reference):
            data = self._read(reference, "video")
            source, head = data, data[: video.HEAD]
        else:
            _stat(reference, self.access.max_video_bytes)
            source = reference
            with _open_file(reference) as file:
                head = file.read(video.HEAD)
        if not video.looks_like_video(head):
            kind = _kind(head)
            raise Unusable(f"is {kind}, not a video" if kind else f"is no video of a known kind ({video.KINDS})")
        return source

    # ---- whole conversations ----

    def chat(
        self,
        messages: list[dict[str, Any]],
        video_processor: Any = None,
        max_num_frames: int | None = None,
        stack_frames: int | None = None,
    ) -> Decoded:
        """A copy of the messages with every picture and clip decoded, and what the processor must be told of the clips.

        The frames are sampled already, by `clip`, hence `do_sample_frames=False`; their metadata tells the processor
        which of them belong to which second where it stacks frames. The template engine of transformers writes into the
        messages it is given, hence a copy down to the parts. Raises `QuantkitError`.
        """
        found: list[dict[str, Any]] = []

        def decode(part: dict[str, Any]) -> dict[str, Any]:
            if part["type"] == "image":
                return {"type": "image", "image": self.image(part["image"])}
            if part["type"] == "video":
                clip = self.clip(part, video_processor, max_num_frames, stack_frames)
                found.append(dict(clip.metadata))
                # channels first, as a decoded file has them: their place is guessed from the shape otherwise, wrongly
                # for a clip three pixels high
                return {"type": "video", "video": np.ascontiguousarray(clip.frames.transpose(0, 3, 1, 2))}
            return dict(part)

        copy = [{**message, "content": [decode(part) for part in message["content"]]} for message in messages]
        if not found:
            return Decoded(copy)
        knobs = {"max_num_frames": max_num_frames, "stack_frames": stack_frames}
        stated = {name: value for name, value in knobs.items() if value is not None}
        return Decoded(copy, {"video_metadata": found, "do_sample_frames": False, **stated})

    def messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages of `chat` alone: for conversations without video files."""
        return self.chat(messages).messages

    # ---- bytes ----

    def read(self, reference: str, kind: str = "image") -> bytes:
        """The bytes that a reference means, undecoded; kind: "image" or "video", for limits and errors."""
        try:
            return self._read(reference, kind)
        except Unusable as error:
            raise self._fault(kind, reference, error) from error

    def digest(self, reference: str, kind: str = "image") -> str:
        """SHA-256 (hex) of the bytes that a reference means; a file is read in pieces."""
        if kind == "video" and not (reference.startswith(("data:", SKIMAGE)) or is_url(reference)):
            try:
                _stat(reference, self.access.max_video_bytes)
                digest = hashlib.sha256()
                with _open_file(reference) as file:
                    while piece := file.read(PIECE):
                        digest.update(piece)
                return digest.hexdigest()
            except Unusable as error:
                raise self._fault(kind, reference, error) from error
        return hashlib.sha256(self.read(reference, kind)).hexdigest()

    def _read(self, reference: str, kind: str) -> bytes:
        most = self.access.most(kind)
        if reference.startswith("data:"):
            return _data_uri(reference, most)
        if is_url(reference):
            if reference not in self.fetched:
                self.fetched[reference] = fetch(reference, self.access, kind)
            return self.fetched[reference]
        path = _skimage(reference) if reference.startswith(SKIMAGE) else reference
        _stat(path, most)
        with _open_file(path) as file:
            data = file.read(most + 1)
        if len(data) > most:  # it grew since, or its size is not told
            raise Unusable(f"is larger than the limit of {most / 1e6:g} MB; make it smaller")
        return data

    def _fault(self, kind: str, reference: str, error: Unusable) -> QuantkitError:
        return QuantkitError(f"{self.where}: {kind} '{_name(reference)}' {error}")


def _name(reference: str) -> str:
    """A reference as errors show it."""
    if reference.startswith("data:"):
        return reference[:40] + "..."
    return shown(reference) if is_url(reference) else printable(reference)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow reads."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _scaled(picture: Picture) -> Picture:
    """16 bits of grey as 8, rounded as libpng does (png_set_scale_16); any other picture as it is."""
    from PIL import Image

    if not picture.mode.startswith("I;16"):
        return picture
    values = np.asarray(picture).astype(np.uint32)
    return Image.fromarray(((values * 255 + 32895) >> 16).astype(np.uint8))


# ---- where bytes come from -------------------------------------------------------------------------------------------


def _stat(path: str, most: int) -> None:
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise Unusable("does not exist" if missing else f"cannot be read ({first_line(error)})") from error
    if not stat.S_ISREG(found.st_mode):
        raise Unusable("is no file")
    if not found.st_size:
        raise Unusable("cannot be decoded (the file is empty)")
    if found.st_size > most:
        raise Unusable(f"is larger than the limit of {most / 1e6:g} MB ({found.st_size / 1e6:.1f} MB); make it smaller")


def _open_file(path: str) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise Unusable(f"cannot be read ({error.strerror})") from error


def _data_uri(uri: str, most: int) -> bytes:
    header, _, payload = uri.partition(",")
    if not header.endswith(";base64"):
        raise Unusable("cannot be decoded (a data URI must be base64)")
    if len(payload) * 3 // 4 > most + 3:
        raise Unusable(f"is larger than the limit of {most / 1e6:g} MB; make it smaller")
    try:
        data = base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unusable(f"cannot be decoded (its base64 is damaged: {first_line(error)})") from error
    if not data:
        raise Unusable("cannot be decoded (the data URI is empty)")
    return data


def _skimage(reference: str) -> str:
    """The file behind `skimage:NAME`; the package is located, not imported."""
    name = reference.removeprefix(SKIMAGE)
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise Unusable("needs scikit-image: pip install 'quantkit[photos]'")
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    if not name or name != os.path.basename(name) or "\\" in name or name in (".", "..") or not path.is_file():
        raise Unusable(f"names no picture among the data files of the installed scikit-image ('{name}')")
    return str(path)


# ---- what bytes are --------------------------------------------------------------------------------------------------

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def _kind(head: bytes) -> str | None:
    """What a file is that is taken for something else, by its first bytes; None where these tell nothing."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC and b"avif" not in head[:64]:
        return "HEIC"
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text):
        return "SVG"
    if text.startswith((b"<!doctype html", b"<head", b"<body")) or (text.startswith(b"<") and b"<html" in text):
        return "HTML"
    if text.startswith((b"{", b"[")):
        return "JSON or text"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer"
    if head.startswith(b"%PDF"):
        return "PDF"
    if head.startswith(b"#EXTM3U"):
        return "a playlist"
    if head.startswith(b"%!PS"):
        return "EPS"
    return None


def _refuse_other_kinds(head: bytes) -> None:
    kind = _kind(head)
    if kind is not None:
        raise Unusable(f"cannot be decoded (it is {kind}; give PNG, JPEG or WebP)")
    still = head.startswith(b"GIF8") or head[8:12] in (b"avif", b"avis", b"jp2 ")
    if video.looks_like_video(head) and not still:
        raise Unusable("cannot be decoded (it is a video; give it as a part of type 'video')")
