"""Frames of a video, those alone that the processor's own rule asks for.

At inference `processor.apply_chat_template` takes a path, decodes with torchcodec (`seek_mode="exact"`: the file's
packets are counted first), asks `video_processor.sample_frames(metadata)` for indices, and takes the frames of these
indices in their order. Here the same is done beforehand, with torchcodec or with PyAV, and the processor is handed the
frames with their metadata and `do_sample_frames=False`: what it makes of them is bit for bit the same.

PyAV's reader in Transformers is no model for this: it trusts the header for the number of frames (0 in Matroska) and
returns each frame once and in the file's order, which parts frames from the seconds that `stack_frames` puts them in.
Here PyAV follows torchcodec: as many frames as there are packets, average rate = frames / (end - begin), rotation
applied, colours by the same filter graph. With the same FFmpeg the two agree in every pixel.

    metadata    total_num_frames, fps (frames a second), duration (seconds), width, height, frames_indices (those taken,
                counted in the file), video_backend
"""

from __future__ import annotations

import functools
import io
import logging
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantkit.calibration.fetch import Unusable, first_line

log = logging.getLogger(__name__)

MISSING = "needs a video decoder: pip install 'quantkit[video]' (PyAV), or torchcodec with FFmpeg"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".gif")
KINDS = "MP4, MOV, Matroska, WebM, AVI, GIF, FLV, WMV, Ogg"
MOST_SECONDS = 2 * 24 * 3600.0
HEAD = 512  # bytes that tell a file's kind

Sample = Callable[[Any], Sequence[int]]  # VideoMetadata -> indices of frames


@dataclass(frozen=True)
class Clip:
    """Frames and what the processor needs to know of where they came from."""

    frames: np.ndarray  # [n, height, width, 3] uint8, RGB
    metadata: dict[str, Any]  # fields of transformers' VideoMetadata; "video_backend" says what decoded it


@functools.cache
def backend() -> str | None:
    """The decoder of this installation: "torchcodec" as in Transformers, else "pyav", or None; decided once."""
    reason = _torchcodec_fault()
    if reason is None:
        return "torchcodec"
    try:
        import av  # noqa: F401
    except (ImportError, OSError) as error:
        log.info("no video decoder: torchcodec: %s; PyAV: %s", reason, first_line(error))
        return None
    log.info("videos are decoded by PyAV; torchcodec is not used: %s", reason)
    return "pyav"


@functools.cache
def version() -> str:
    """The decoder and the FFmpeg beneath it, with their versions: what else decides a clip's pixels."""
    chosen = backend()
    if chosen == "torchcodec":
        import torchcodec

        return f"torchcodec {torchcodec.__version__}, FFmpeg {getattr(torchcodec, 'ffmpeg_major_version', None)}"
    if chosen == "pyav":
        import av

        return f"pyav {av.__version__}, {sorted(av.library_versions.items())}"
    return "none"


def _torchcodec_fault() -> str | None:
    """Why torchcodec cannot be used, None where it can: it is tried, for its libraries are looked for at first use."""
    try:
        import torchcodec
        from torchcodec.decoders import VideoDecoder
    except ImportError as error:
        return "it is not installed" if error.name == "torchcodec" else f"it cannot be loaded: {first_line(error)}"
    except (OSError, RuntimeError) as error:
        return f"it cannot be loaded: {first_line(error)}"
    if getattr(torchcodec, "ffmpeg_major_version", 0) is None:  # from 0.16 on it loads without FFmpeg, for pictures
        return "it found no FFmpeg"
    try:
        VideoDecoder(bytes(64))
    except (ImportError, OSError) as error:
        return first_line(error)
    except (RuntimeError, ValueError) as error:  # as it should: these bytes are no video
        return first_line(error) if "libtorchcodec" in str(error) else None
    return None


def looks_like_video(head: bytes) -> bool:
    """Whether a file's first bytes are those of a video container.

    FFmpeg itself would open playlists as well, which name further files and hosts; those are none of these. Nor are
    MPEG program and transport streams: torchcodec 0.17 lands on other frames in them than those it is asked for.
    """
    return (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")  # ISO media: MP4, MOV
        or head.startswith((b"\x1a\x45\xdf\xa3", b"GIF8", b"FLV\x01", b"OggS"))  # the first: Matroska, WebM
        or (head.startswith(b"RIFF") and head[8:12] == b"AVI ")
        or head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11")  # ASF: WMV
    )


def read_clip(source: str | bytes, sample: Sample, max_pixels: int) -> Clip:
    """The frames of a video that `sample` asks for.

    source: path of a file, or the bytes of one; sample: from transformers' VideoMetadata to frame indices, in any order
    and with repeats; max_pixels: of one frame. Raises `Unusable` saying why it cannot be decoded.
    """
    chosen = backend()
    if chosen is None:
        raise Unusable(MISSING)
    read = _read_torchcodec if chosen == "torchcodec" else _read_pyav
    metadata, frames = read(source, sample, max_pixels)
    return Clip(frames, metadata)


def processor_rule(processor: Any, max_num_frames: int | None, stack_frames: int | None) -> Sample:
    """The rule of a checkpoint's own video processor; None: its own setting."""

    def sample(metadata: Any) -> Sequence[int]:
        return processor.sample_frames(metadata, max_num_frames=max_num_frames, stack_frames=stack_frames)

    return sample


def even_rule(most: int) -> Sample:
    """At most so many frames, evenly taken: where there is no processor to ask, as for thumbnails."""
    return lambda metadata: np.linspace(
        0, metadata.total_num_frames - 1, min(most, metadata.total_num_frames), dtype=int
    ).tolist()


def sampled_indices(metadata: dict[str, Any], sample: Sample) -> list[int]:
    """What `sample` asks for, in its order; an index past the end, which rounding can give, is the last frame's."""
    from transformers.video_utils import VideoMetadata

    if metadata["duration"] > MOST_SECONDS:  # the rules list every tenth of a second
        raise Unusable(f"lasts {metadata['duration']:,.0f} s, which is more than two days; it is damaged, or cut it")
    try:
        asked = sample(VideoMetadata(**metadata))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise Unusable(f"cannot be sampled ({first_line(error)})") from error
    indices = [min(int(index), metadata["total_num_frames"] - 1) for index in asked]
    if not indices:
        raise Unusable("has no duration, so no frame of it is due")
    return indices


def _checked(metadata: dict[str, Any], max_pixels: int) -> None:
    if not metadata["total_num_frames"]:
        raise Unusable("has no frames")
    if not metadata["duration"] or not metadata["fps"]:
        raise Unusable("states no duration; convert it to MP4")
    width, height = metadata["width"] or 0, metadata["height"] or 0
    if width * height > max_pixels:
        raise Unusable(
            f"has frames of {width} x {height} = {width * height:,} pixels, more than the limit of {max_pixels:,}; "
            "make it smaller or raise the limit"
        )


# ---- torchcodec ----


def _read_torchcodec(source: str | bytes, sample: Sample, max_pixels: int) -> tuple[dict[str, Any], np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(source, seek_mode="exact", num_ffmpeg_threads=0, device="cpu")
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        if "best video stream" in str(error):
            raise Unusable("has no video stream") from error
        raise Unusable(f"cannot be decoded ({_without_place(error)})") from error
    found = decoder.metadata
    metadata = _metadata(
        "torchcodec", found.num_frames, found.average_fps, found.duration_seconds, found.width, found.height
    )
    _checked(metadata, max_pixels)
    indices = sampled_indices(metadata, sample)
    try:
        frames = decoder.get_frames_at(indices=indices).data
    except (RuntimeError, ValueError, IndexError) as error:
        raise Unusable(f"is damaged or cut off ({_without_place(error)})") from error
    metadata["frames_indices"] = indices
    return metadata, np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy())


def _without_place(error: Exception) -> str:
    """torchcodec's message without the function, file and line of its source that come first."""
    return re.sub(r"^\w+, \S+:\d+, ", "", first_line(error, 400))[:160]


def _metadata(
    name: str, count: int | None, fps: float | None, duration: float | None, width: int | None, height: int | None
) -> dict[str, Any]:
    return {
        "total_num_frames": int(count or 0),
        "fps": None if fps is None else float(fps),
        "duration": None if duration is None else float(duration),
        "video_backend": name,
        "width": width,
        "height": height,
        "frames_indices": None,
    }


# ---- PyAV ----


@dataclass(frozen=True)
class _Scan:
    """Times of a stream's frames in its own unit, from its packets alone: nothing is decoded."""

    times: list[int]  # of every frame, ascending
    keys: list[int]  # of those that decoding can start at, ascending
    end: int  # when the last frame ends

    def key_before(self, time: int) -> int | None:
        """The last key frame no later than a time."""
        place = bisect_right(self.keys, time)
        return self.keys[place - 1] if place else None


def _read_pyav(source: str | bytes, sample: Sample, max_pixels: int) -> tuple[dict[str, Any], np.ndarray]:
    import av

    try:
        with _Reader(source) as reader:
            scan = _scan(reader.container, reader.stream)
            metadata = _pyav_metadata(reader.stream, scan)
            _checked(metadata, max_pixels)
            indices = sampled_indices(metadata, sample)
            reader.restart()
            pictures = {index: reader.picture(scan, scan.times[index]) for index in sorted(set(indices))}
    except av.FFmpegError as error:
        raise Unusable(f"cannot be decoded ({error.strerror or first_line(error)})") from error
    if len({picture.shape for picture in pictures.values()}) > 1:
        raise Unusable("changes its size on the way; convert it to one size")
    height, width = pictures[indices[0]].shape[:2]  # upright
    metadata |= {"frames_indices": indices, "width": width, "height": height}
    return metadata, np.stack([pictures[index] for index in indices])


def _scan(container: Any, stream: Any) -> _Scan:
    times, keys, end = [], [], 0
    for packet in container.demux(stream):
        time = packet.dts if packet.pts is None else packet.pts
        if not packet.size or packet.is_discard or time is None:
            continue
        times.append(time)
        if packet.is_keyframe:
            keys.append(time)
        end = max(end, time + (packet.duration or 0))
    return _Scan(sorted(times), sorted(keys), end)


def _pyav_metadata(stream: Any, scan: _Scan) -> dict[str, Any]:
    duration = float((scan.end - scan.times[0]) * stream.time_base) if scan.times else 0.0
    fps = len(scan.times) / duration if duration > 0 else None
    return _metadata("pyav", len(scan.times), fps, duration, stream.width, stream.height)


class _Reader:
    """A video stream read forwards; frames between two that are wanted are passed over where a later start allows."""

    def __init__(self, source: str | bytes) -> None:
        self.source = source
        self.graph: Any = None
        self.graph_kind: tuple[str, int, int] | None = None
        self._open()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def _open(self) -> None:
        self.container = _container(self.source)
        self.stream: Any = self.container.streams.best("video")
        if self.stream is None:
            self.container.close()
            raise Unusable("has no video stream")
        if self.stream.codec_context is None:
            self.container.close()
            raise Unusable("is in a format that the FFmpeg of PyAV cannot decode; convert it to MP4")
        self.frames = self.container.decode(self.stream)
        self.frame: Any = None
        self.key: int | None = None  # the key frame that decoding went through last

    def restart(self) -> None:
        """Back to the first frame; some containers cannot be sought in, so the file is opened anew."""
        self.container.close()
        self._open()

    def picture(self, scan: _Scan, time: int) -> np.ndarray:
        """The frame shown at a time, no earlier than the last one asked for: [height, width, 3] uint8, RGB."""
        key = scan.key_before(time)
        if key is not None and key != self.key and self.frame is not None:
            self._seek(key)
        self.key = key
        while self.frame is None or self.frame.pts is None or self.frame.pts < time:
            self.frame = next(self.frames, None)
            if self.frame is None:
                place = scan.times.index(time)
                raise Unusable(f"is damaged or cut off (frame {place} of {len(scan.times)} cannot be decoded)")
        return self._rgb()

    def _seek(self, key: int) -> None:
        """Go on from a key frame; from the start of the file where the container leads past it."""
        import av

        try:
            self.container.seek(key, stream=self.stream)
            self.frames = self.container.decode(self.stream)
            self.frame = next(self.frames, None)
        except av.FFmpegError:  # no index, or a damaged one
            self.frame = None
        if self.frame is None or self.frame.pts is None or self.frame.pts > key:
            self.restart()

    def _rgb(self) -> np.ndarray:
        """The frame at hand as [height, width, 3] uint8, upright.

        By a filter graph, as torchcodec has it: swscale called by itself puts the chroma of some formats elsewhere.
        """
        frame = self.frame
        kind = (frame.format.name, frame.width, frame.height)
        if kind != self.graph_kind:
            self.graph, self.graph_kind = _graph(frame, self.stream.time_base), kind
        self.graph.push(frame)
        picture = self.graph.pull().to_ndarray()
        quarters = int(math.copysign(abs(frame.rotation) / 90 + 0.5, frame.rotation)) % 4  # halves away from zero
        return np.ascontiguousarray(np.rot90(picture, quarters)) if quarters else picture


def _container(source: str | bytes) -> Any:
    import av

    # titles and the like may be in any encoding
    return av.open(source if isinstance(source, str) else io.BytesIO(source), metadata_errors="ignore")


def _graph(frame: Any, time_base: Any) -> Any:
    import av

    graph: Any = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)
    convert, sink = graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink")
    source.link_to(convert)
    convert.link_to(sink)
    graph.configure()
    return graph
