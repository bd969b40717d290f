"""Clips: the processor given our frames makes of them, bit for bit, what it makes of the file; faults are one line."""

import base64
import functools
import http.server
import json
import os
import re
import struct
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from chats import chat, text_part, write_rows
from PIL import Image

import quantkit
from quantkit.calibration import PrepareOptions, load_conversations, prepare, video
from quantkit.calibration.images import Access, Decoder
from quantkit.calibration.prepare import load_processor
from quantkit.errors import QuantkitError

av = pytest.importorskip("av")

TINY = Path(quantkit.__file__).parent / "data" / "tiny"
COMPARED = ("input_ids", "attention_mask", "pixel_values_videos", "target_sizes_videos")


@pytest.fixture(scope="module")
def processor():
    return load_processor(TINY)


@pytest.fixture(autouse=True)
def _pyav(monkeypatch):
    """PyAV, whatever else is installed; what depends on torchcodec asks for it."""
    monkeypatch.setattr(video, "backend", lambda: "pyav")


def frame(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A frame that tells its number: [height, width, 3] uint8."""
    y, x = np.mgrid[:height, :width]
    return np.stack([(x * 3 + number * 9) % 256, (y * 5 + number * 4) % 256, 0 * x + number * 8 % 256], -1).astype(
        "uint8"
    )


def write_clip(path, n=20, fps=10, codec="mpeg4", pixels="yuv420p", size=(48, 64), times=None, options=None, title=""):
    """A clip made with PyAV; times: of each frame in 1/30 s."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 30)
        for number in range(n):
            picture = av.VideoFrame.from_ndarray(frame(number, *size), format="rgb24")
            if times:
                picture.pts, picture.time_base = times[number], Fraction(1, 30)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return str(path)


def rotated(source: str, target: Path) -> str:
    """A copy of an MP4 whose header asks for a quarter turn clockwise on display."""
    data, one = bytearray(Path(source).read_bytes()), 1 << 16
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 48 * one, 0, 1 << 30)
    target.write_bytes(data)
    return str(target)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("clips")
    irregular = [0, 3, 6, 9, 30, 33, 90, 93, 96, 99, 210, 213, 216, 219, 222, 225, 228, 231, 234, 270]
    made = {
        "seconds.mp4": write_clip(folder / "seconds.mp4", n=35),
        "no-count.mkv": write_clip(folder / "no-count.mkv", n=24, codec="ffv1"),
        "one.mp4": write_clip(folder / "one.mp4", n=1),
        "odd.mkv": write_clip(folder / "odd.mkv", codec="ffv1", size=(37, 53)),
        "ten-bit.mkv": write_clip(folder / "ten-bit.mkv", codec="ffv1", pixels="yuv420p10le"),
        "clip.gif": write_clip(folder / "clip.gif", codec="gif", pixels="rgb8"),
        "groups.avi": write_clip(folder / "groups.avi", n=120, options={"g": "5"}),
        "irregular.mp4": write_clip(folder / "irregular.mp4", times=irregular),
        "slow.mp4": write_clip(folder / "slow.mp4", n=6, fps=Fraction(1, 3)),
    }
    return made | {"turned.mp4": rotated(made["seconds.mp4"], folder / "turned.mp4")}


def question(**clip) -> list[dict]:
    return [{"role": "user", "content": [{"type": "video", **clip}, {"type": "text", "text": "What happens?"}]}]


def ours(processor, messages, mode="16x", most=None, stack=None):
    """The call that `prepare` makes."""
    decoded = Decoder("rows.jsonl:3").chat(messages, processor.video_processor, most, stack)
    return processor.apply_chat_template(
        decoded.messages,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"downsample_mode": mode, "padding": False} | decoded.kwargs,
    )


def by_path(processor, path, mode, most, stack):
    """What anybody's call at inference does."""
    knobs = {"max_num_frames": most, "stack_frames": stack}
    return processor.apply_chat_template(
        question(path=path),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"downsample_mode": mode, "padding": False}
        | {name: value for name, value in knobs.items() if value is not None},
    )


def naive_reader(self, path, sample_indices_fn=None):
    """An oracle in place of the processor's own decoder: every frame decoded, header believed, indices taken."""
    from transformers.video_utils import VideoMetadata

    if isinstance(path, list):
        return [list(part) for part in zip(*(naive_reader(self, one, sample_indices_fn) for one in path), strict=True)]
    with av.open(path) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate)
        frames = [np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90) for f in container.decode(stream)]
    metadata = VideoMetadata(total_num_frames=len(frames), fps=rate, duration=len(frames) / rate)
    indices = sample_indices_fn(metadata=metadata)
    metadata.frames_indices = indices
    chosen = np.stack([frames[index] for index in indices])
    return torch.from_numpy(chosen).permute(0, 3, 1, 2).contiguous(), metadata


@pytest.mark.parametrize("mode", ["16x", "4x"])
@pytest.mark.parametrize("stack", [1, 2, 4])
@pytest.mark.parametrize("most", [None, 1, 2])
@pytest.mark.parametrize("name", ["seconds.mp4", "no-count.mkv", "groups.avi", "one.mp4", "slow.mp4", "turned.mp4"])
def test_a_file_gives_what_the_processor_makes_of_its_path(processor, clips, monkeypatch, name, most, stack, mode):
    monkeypatch.setattr(type(processor.video_processor), "fetch_videos", naive_reader)
    expected = by_path(processor, clips[name], mode, most, stack)
    found = ours(processor, question(video=clips[name]), mode, most, stack)
    assert set(found) == set(COMPARED)
    for key in COMPARED:
        assert torch.equal(found[key], expected[key]), key


WITH_TORCHCODEC = """
import json, sys, torch
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_video import COMPARED, TINY, by_path, load_processor, ours, question, video
import quantkit.calibration.video as video
chosen = video.backend()
if chosen != "torchcodec":
    sys.exit(f"no torchcodec: {video._torchcodec_fault()}")
processor, wrong = load_processor(TINY), []
for path in sys.argv[3:]:
    for stack, most, mode in ((1, None, "16x"), (2, 2, "4x"), (4, None, "16x")):
        expected = by_path(processor, path, mode, most, stack)
        for backend in ("torchcodec", "pyav"):
            video.backend = lambda: backend
            found = ours(processor, question(video=path), mode, most, stack)
            differ = [key for key in COMPARED if not torch.equal(found[key], expected[key])]
            wrong += [[path, stack, most, mode, backend, differ]] if differ else []
print(json.dumps(wrong))
"""


@pytest.mark.slow
def test_both_decoders_give_what_transformers_own_gives(clips, tmp_path):
    """With real torchcodec, in a process whose loader finds PyAV's FFmpeg under the names that torchcodec asks for."""
    pytest.importorskip("torchcodec")
    libraries = Path(av.__file__).parent.parent / "av.libs"
    for file in libraries.glob("lib*"):
        if named := re.match(r"(lib(?:av|sw)\w+)-\w+\.so\.(\d+)", file.name):
            (tmp_path / f"{named[1]}.so.{named[2]}").symlink_to(file)
    paths = f"{tmp_path}:{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    root = Path(__file__).parent
    result = subprocess.run(
        [sys.executable, "-c", WITH_TORCHCODEC, str(root), str(root.parent), *clips.values()],
        env={**os.environ, "LD_LIBRARY_PATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if "no torchcodec: " in result.stderr:
        pytest.skip(result.stderr.strip().splitlines()[-1])
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads(result.stdout.splitlines()[-1]) == []


def test_only_the_frames_asked_for_are_decoded(processor, clips, monkeypatch):
    pulled = []
    own = video._Reader._rgb
    monkeypatch.setattr(video._Reader, "_rgb", lambda self: pulled.append(self.frame.pts) or own(self))
    clip = Decoder("r:1").clip({"type": "video", "video": clips["groups.avi"]}, processor.video_processor, 4)
    assert len(clip.frames) == len(pulled) == 4
    assert clip.metadata["frames_indices"] == [0, 39, 79, 119]
    assert clip.metadata["video_backend"] == "pyav"


def test_a_clip_is_decoded_once(processor, clips, monkeypatch):
    """A conversation that is too long is tried several times, shorter each time."""
    read = []
    own = video.read_clip
    monkeypatch.setattr(video, "read_clip", lambda *given: read.append(given[0]) or own(*given))
    decoder = Decoder("r:1")
    first, second = (decoder.chat(question(video=clips["one.mp4"]), processor.video_processor) for _ in range(2))
    assert read == [clips["one.mp4"]]
    assert first.kwargs["video_metadata"][0] is not second.kwargs["video_metadata"][0]
    decoder.chat(question(video=clips["one.mp4"]), processor.video_processor, 3)
    assert len(read) == 2


def test_passing_over_frames_changes_none_of_them(clips, monkeypatch):
    sought = []
    own = video._Reader._seek
    monkeypatch.setattr(video._Reader, "_seek", lambda self, key: sought.append(key) or own(self, key))
    everything = video.read_clip(clips["groups.avi"], lambda m: range(m.total_num_frames), 10**8).frames
    wanted = [3, 4, 31, 32, 77, 119, 5]
    sought.clear()
    some = video.read_clip(clips["groups.avi"], lambda m: wanted, 10**8).frames
    np.testing.assert_array_equal(some, everything[wanted])
    assert sought == [5, 30, 75, 115]  # there is a key frame every five
    assert len(np.unique(everything.reshape(120, -1), axis=0)) == 120


def test_a_stop_in_time_shows_in_what_is_sampled(processor, clips):
    clip = Decoder("r:1").clip({"type": "video", "video": clips["irregular.mp4"]}, processor.video_processor)
    assert clip.metadata["total_num_frames"] == 20
    assert clip.metadata["duration"] == pytest.approx(9.1)  # the last frame is shown for a tenth of a second
    assert clip.metadata["fps"] == pytest.approx(20 / 9.1)


def test_a_turned_clip_is_upright(clips):
    plain = video.read_clip(clips["seconds.mp4"], lambda m: [0, 7], 10**8)
    turned = video.read_clip(clips["turned.mp4"], lambda m: [0, 7], 10**8)
    assert turned.frames.shape == (2, 64, 48, 3)
    assert (turned.metadata["height"], turned.metadata["width"]) == (64, 48)
    np.testing.assert_array_equal(turned.frames, np.rot90(plain.frames, -1, axes=(1, 2)))


# ---- lists of frames ----


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("frames")
    for number in range(12):
        Image.fromarray(frame(number)).save(folder / f"{number:02}.png")
    return sorted(str(path) for path in folder.iterdir())


@pytest.mark.parametrize("stack", [None, 1, 2, 4])
def test_frames_given_are_the_frames_meant(processor, frames, stack):
    decoded = Decoder("r:1").chat(question(video=frames), processor.video_processor, 2, stack)
    np.testing.assert_array_equal(
        decoded.messages[0]["content"][0]["video"], np.stack([frame(n).transpose(2, 0, 1) for n in range(12)])
    )
    expected = processor.apply_chat_template(
        [{"role": "user", "content": [*({"type": "image", "image": f} for f in frames)]}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": False, "use_image_id": False, "max_slice_nums": 1},
    )
    found = ours(processor, question(video=frames), most=2, stack=stack)
    assert len(found["target_sizes_videos"]) == 12
    assert torch.equal(found["target_sizes_videos"], expected["target_sizes"])
    torch.testing.assert_close(found["pixel_values_videos"], expected["pixel_values"], rtol=0, atol=0.01)


@pytest.mark.parametrize("stack", [1, 2])
def test_frames_with_a_rate_are_sampled_as_a_file_is(processor, clips, tmp_path, stack):
    """The pictures of a clip, saved without loss, with the clip's rate: the same as the clip."""
    every = video.read_clip(clips["no-count.mkv"], lambda m: range(m.total_num_frames), 10**8).frames
    for number, picture in enumerate(every):
        Image.fromarray(picture).save(tmp_path / f"{number:03}.png")
    listed = sorted(str(path) for path in tmp_path.iterdir())
    for most in (None, 2):
        expected = ours(processor, question(video=clips["no-count.mkv"]), most=most, stack=stack)
        found = ours(processor, question(video=listed, fps=10.0), most=most, stack=stack)
        for key in COMPARED:
            assert torch.equal(found[key], expected[key]), key


@pytest.mark.parametrize("stack", [1, 2])
def test_a_file_a_list_and_a_picture_in_one_conversation(processor, clips, frames, stack):
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "video", "video": frames[:3]},
                {"type": "image", "image": frames[5]},
                {"type": "video", "video": clips["turned.mp4"]},
                {"type": "text", "text": "Compare."},
            ],
        }
    ]
    found = ours(processor, messages, stack=stack)
    alone = [
        ours(processor, question(video=reference), stack=stack)["pixel_values_videos"]
        for reference in (frames[:3], clips["turned.mp4"])
    ]
    assert torch.equal(found["pixel_values_videos"], torch.cat(alone, dim=-1))
    placeholders = int((found["input_ids"] == processor.video_token_id).sum())
    assert placeholders == int(found["target_sizes_videos"].prod(-1).sum()) // 16
    assert "video" in messages[0]["content"][0] and messages[0]["content"][0]["video"] == frames[:3]  # not written into


def test_a_clip_three_pixels_high_is_not_taken_for_channels(processor, tmp_path):
    for number in range(3):
        Image.fromarray(frame(number, 3, 90)).save(tmp_path / f"{number}.png")
    listed = sorted(str(path) for path in tmp_path.iterdir())
    found = ours(processor, question(video=listed))
    assert found["target_sizes_videos"].tolist() == [[4, 44]] * 3


def test_frames_for_those_who_want_pictures(processor, clips, frames):
    decoder = Decoder("r:1")
    listed = decoder.frames({"type": "video", "video": frames})
    assert len(listed) == 12 and all(picture.mode == "RGB" for picture in listed)
    assert decoder.frames({"type": "video", "video": frames})[0] is listed[0]  # decoded once
    part = {"type": "video", "video": clips["seconds.mp4"]}
    np.testing.assert_array_equal(
        np.stack([np.asarray(picture) for picture in decoder.frames(part, processor.video_processor)]),
        decoder.clip(part, processor.video_processor).frames,
    )
    assert len(decoder.frames(part, max_num_frames=3)) == 3
    assert len(decoder.frames(part)) == 8


@pytest.mark.parametrize("rate", [0, -1.0, float("nan")])
def test_a_rate_must_be_above_zero(frames, rate):
    with pytest.raises(QuantkitError, match=r"rows:3: the 'fps' of a video must be above 0"):
        Decoder("rows:3").chat(question(video=frames, fps=rate))


def test_a_clip_of_days_is_refused(frames):
    """The rule of the processor lists every tenth of a second of it."""
    with pytest.raises(
        QuantkitError, match=r"rows:3: a video of 12 frames lasts 12,000,000 s, which is more than two days"
    ):
        Decoder("rows:3").chat(question(video=frames, fps=1e-6))


def test_a_title_in_another_encoding_is_no_fault(processor, tmp_path):
    write_clip(tmp_path / "x.mkv", n=3, codec="ffv1", title="TITLE-TITLE")
    data = (tmp_path / "x.mkv").read_bytes()
    assert data.count(b"TITLE-TITLE") == 1
    (tmp_path / "x.mkv").write_bytes(data.replace(b"TITLE-TITLE", b"T\xe4TLE-T\xcdTLE"))
    clip = Decoder("r:1").clip({"type": "video", "video": str(tmp_path / "x.mkv")}, processor.video_processor)
    assert len(clip.frames) == 1


def test_an_empty_list_and_differing_sizes_are_refused(frames, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    with pytest.raises(QuantkitError, match="rows:3: a video has no frames"):
        Decoder("rows:3").chat(question(video=[]))
    with pytest.raises(QuantkitError, match="rows:3: the frames of a video differ in size"):
        Decoder("rows:3").chat(question(video=[frames[0], str(tmp_path / "small.png")]))


# ---- where a file may be ----


def test_data_uri_and_url_give_the_files_frames(processor, clips, tmp_path):
    path = Path(clips["seconds.mp4"])
    uri = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(path.parent))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        decoder = Decoder("r:1", Access(private_urls=True))
        expected = decoder.clip({"type": "video", "video": str(path)}, processor.video_processor)
        for reference in (uri, url):
            found = decoder.clip({"type": "video", "video": reference}, processor.video_processor)
            np.testing.assert_array_equal(found.frames, expected.frames)
            assert found.metadata == expected.metadata
            assert decoder.digest(reference, "video") == decoder.digest(str(path), "video")
        server.shutdown()


# ---- faults ----


def silent(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), "float32"), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


def without_frames(path: Path) -> None:
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def half(path: Path) -> None:
    write_clip(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def overwritten(path: Path) -> None:
    write_clip(path, codec="libx264" if "libx264" in av.codecs_available else "mpeg4", n=40)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 1000
    data[start : start + 2000] = np.random.default_rng(0).integers(0, 256, 2000, dtype=np.uint8).tobytes()
    path.write_bytes(data)


def enormous(path: Path) -> None:
    write_clip(path, n=1)
    os.truncate(path, 2_000_000_001)  # a hole: it takes no room on the disk


FAULTS = {
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text": (lambda path: path.write_bytes(b"no video at all " * 40), "is no video of a known kind"),
    "page": (lambda path: path.write_bytes(b"<!DOCTYPE html><html>404"), "is HTML, not a video"),
    "playlist": (lambda path: path.write_bytes(b"#EXTM3U\nhttp://127.0.0.1/x.ts\n"), "is a playlist, not a video"),
    "concat": (lambda path: path.write_bytes(b"ffconcat version 1.0\nfile x.mp4\n"), "is no video of a known kind"),
    "picture": (lambda path: Image.new("RGB", (9, 9)).save(path, "PNG"), "is no video of a known kind"),
    "sound alone": (silent, "has no video stream"),
    "no frames": (without_frames, "has no frames"),
    "cut off": (half, r"cannot be decoded \(Invalid data"),
    "overwritten": (overwritten, r"cannot be decoded|damaged or cut off"),
    "enormous": (enormous, r"larger than the limit of 2000 MB \(2000.0 MB\)"),
    "missing": (lambda path: None, "does not exist"),
    "folder": (lambda path: path.mkdir(), "is no file"),
}


@pytest.mark.parametrize(("make", "reason"), FAULTS.values(), ids=FAULTS)
def test_each_fault_is_one_line_naming_row_and_file(processor, tmp_path, make, reason):
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(QuantkitError) as caught:
        Decoder("rows.jsonl:3").clip({"type": "video", "video": str(path)}, processor.video_processor, 40)
    assert re.match(rf"rows.jsonl:3: video '{re.escape(str(path))}' .*({reason})", str(caught.value))
    assert "\n" not in str(caught.value)


def test_large_frames_are_refused_before_they_are_decoded(clips, processor, monkeypatch):
    monkeypatch.setattr(video._Reader, "picture", None)
    with pytest.raises(QuantkitError, match=r"frames of 64 x 48 = 3,072 pixels, more than the limit of 3,000"):
        Decoder("r:1", Access(max_pixels=3000)).clip(
            {"type": "video", "video": clips["seconds.mp4"]}, processor.video_processor
        )


def test_without_a_decoder_the_extra_is_named(clips, processor, monkeypatch):
    monkeypatch.setattr(video, "backend", lambda: None)
    with pytest.raises(QuantkitError, match=r"r:1: video '.*' needs a video decoder: pip install 'quantkit\[video\]'"):
        Decoder("r:1").clip({"type": "video", "video": clips["seconds.mp4"]}, processor.video_processor)


def test_the_decoder_is_the_one_that_works(monkeypatch):
    choose = backend_of_module()
    monkeypatch.setattr(video, "_torchcodec_fault", lambda: None)
    assert choose() == "torchcodec"
    monkeypatch.setattr(video, "_torchcodec_fault", lambda: "it found no FFmpeg")
    assert choose() == "pyav"
    monkeypatch.setitem(sys.modules, "av", None)
    assert choose() is None


def test_torchcodec_that_fails_to_load_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    assert video._torchcodec_fault() is not None


_BACKEND = video.backend  # the fixture above puts another in its place


def backend_of_module():
    return _BACKEND.__wrapped__


def test_sampling_past_the_end_gives_the_last_frame(clips):
    clip = video.read_clip(clips["one.mp4"], lambda m: [0, 1], 10**8)
    assert clip.metadata["frames_indices"] == [0, 0] and len(clip.frames) == 2


def test_a_clip_that_lasts_no_time_is_refused(clips):
    with pytest.raises(QuantkitError, match="has no duration"):
        video.read_clip(clips["one.mp4"], lambda m: [], 10**8)


def test_a_clip_file_reaches_the_engines_as_frames(tmp_path: Path) -> None:
    """The messages of a server and the thumbnails show the frames that the processor took."""
    from quantkit.verify.engines.server_messages import longest_video, openai_messages
    from quantkit.verify.thumbnails import thumbnails

    write_clip(tmp_path / "clip.mp4", n=50, fps=10)
    rows = [{"messages": chat({"type": "video", "video": "clip.mp4"}, text_part("What?"))}]
    (conversation,) = load_conversations(write_rows(tmp_path / "rows.jsonl", rows))
    processor = load_processor(TINY)
    (sample,) = prepare([conversation], processor, PrepareOptions())
    frames = sample.inputs["target_sizes_videos"].shape[0]
    assert frames == 5
    assert longest_video(openai_messages(conversation, True, processor.video_processor)) == frames
    assert 1 <= len(thumbnails(conversation)) <= 4
