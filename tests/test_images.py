"""Pictures are decoded as transformers' own loaders do; whatever is none is refused in one line."""

import base64
import importlib.util
import logging
import re
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from transformers.image_utils import load_image, load_image_as_tensor

import quantkit
from quantkit.calibration import images
from quantkit.calibration.images import Access, Decoder
from quantkit.calibration.prepare import load_processor
from quantkit.errors import QuantkitError

TINY = Path(quantkit.__file__).parent / "data" / "tiny"


@pytest.fixture(autouse=True)
def _nothing_noted(monkeypatch):
    monkeypatch.setattr(images, "_noted", set())


def colours() -> np.ndarray:
    """[40, 56, 3] uint8: ramps, with noise in a corner."""
    y, x = np.mgrid[:40, :56]
    picture = np.stack([x * 4, y * 6, x + y], axis=-1).astype(np.uint8)
    picture[5:20, 8:30] = np.random.default_rng(0).integers(0, 256, (15, 22, 3))
    return picture


def grey16() -> np.ndarray:
    """[256, 256] uint16: every value that there is."""
    return np.arange(65536, dtype=np.uint16).reshape(256, 256)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG written by hand: of 16-bit colour, which Pillow does not write, or of a size that it is not."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def kinds(folder: Path) -> dict[str, str]:
    """Files of every kind that Pillow opens and that a data set may hold."""
    colour = Image.fromarray(colours())
    alpha = Image.fromarray(np.dstack([colours(), colours()[..., 0]]))
    frames = [Image.fromarray(np.roll(colours(), step, axis=1)) for step in range(3)]
    animation = {"save_all": True, "append_images": frames[1:]}
    made = {
        "rgb.png": (colour, {}),
        "grey.png": (colour.convert("L"), {}),
        "bits.png": (colour.convert("1"), {}),
        "palette.png": (colour.convert("P"), {}),
        "palette-clear.png": (colour.convert("P"), {"transparency": 3}),
        "grey-alpha.png": (alpha.convert("LA"), {}),
        "alpha.png": (alpha, {}),
        "alpha.webp": (alpha, {"lossless": True}),
        "lossy.webp": (colour, {"quality": 80}),
        "rgb.jpg": (colour, {"quality": 85}),
        "full-chroma.jpg": (colour, {"subsampling": 0}),
        "progressive.jpg": (colour, {"progressive": True}),
        "grey.jpg": (colour.convert("L"), {}),
        "cmyk.jpg": (colour.convert("CMYK"), {}),
        "cmyk.tif": (colour.convert("CMYK"), {}),
        "rgb.tif": (colour, {}),
        "rgb.bmp": (colour, {}),
        "rgb.gif": (colour, {}),
        "rgb.ppm": (colour, {}),
        "turned.jpg": (colour, {"exif": turned()}),
        "turned.png": (colour, {"exif": turned()}),
        "turned.webp": (colour, {"exif": turned()}),
        "animated.gif": (frames[0], {**animation, "duration": 100}),
        "animated.webp": (frames[0], {**animation, "lossless": True}),
        "animated.png": (frames[0], animation),
        "pixel.png": (colour.crop((0, 0, 1, 1)), {}),
        "32-bit.tif": (Image.fromarray(np.arange(-500, 1740, dtype=np.int32).reshape(40, 56)), {}),
        "float.tif": (Image.fromarray(np.linspace(-1, 300, 2240, dtype=np.float32).reshape(40, 56)), {}),
    }
    for name, needed in {"rgb.avif": "avif", "rgb.jp2": "jpg_2000"}.items():
        if features.check(needed):
            made[name] = (colour, {})
    for name, (picture, options) in made.items():
        picture.save(folder / name, **options)
    deep = colours().astype(">u2") * 257 + 11
    rows = b"".join(b"\0" + row.tobytes() for row in deep.astype(">u2"))
    (folder / "16-bit-colour.png").write_bytes(png(56, 40, rows, depth=16))
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    return kinds(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def processor():
    return load_processor(TINY)


# ---- as inference does ----


def test_every_kind_is_decoded_as_transformers_loader_does(files):
    assert len(files) >= 29
    for name, path in files.items():
        found = Decoder("r:1").image(path)
        assert found.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), np.asarray(load_image(path)), err_msg=name)


def test_it_is_what_the_processor_reads_from_a_path_too(files):
    """The processor of this model reads a path by itself with another library (torchcodec, torchvision)."""
    compared = []
    for name, path in files.items():
        if name == "turned.webp":  # torchvision 0.29 turns JPEG and PNG by their EXIF, not WebP; load_image does
            continue
        try:
            read = load_image_as_tensor(path)
        except (RuntimeError, ValueError):  # it knows fewer kinds
            continue
        if read.ndim != 3 or str(read.dtype) != "torch.uint8":  # all frames of an animation; 16 bits by torchvision
            continue
        found = np.asarray(Decoder("r:1").image(path)).astype(int)
        furthest = np.abs(found - read.permute(1, 2, 0).numpy()).max()
        assert furthest <= (1 if name == "16-bit-colour.png" else 0), name
        compared.append(name)
    assert {"rgb.png", "alpha.png", "turned.jpg", "cmyk.jpg", "palette-clear.png"} <= set(compared)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_16_bits_of_grey_are_scaled_not_clipped(tmp_path, caplog, name):
    path = str(tmp_path / name)
    Image.fromarray(grey16()).save(path)
    with caplog.at_level(logging.WARNING):
        found = np.asarray(Decoder("rows.jsonl:7").image(path))
    np.testing.assert_array_equal(found, np.repeat(np.round(grey16() / 257)[..., None], 3, axis=-1))
    assert f"rows.jsonl:7: image '{path}' has 16 bits of grey" in caplog.text
    if name == "grey.png":
        try:
            read = load_image_as_tensor(path)
        except (RuntimeError, ValueError):
            return
        if str(read.dtype) == "torch.uint8":
            np.testing.assert_array_equal(found, read.permute(1, 2, 0).numpy())


def test_16_bit_grey_is_turned_upright_as_well(tmp_path):
    Image.fromarray(grey16()[:30]).save(tmp_path / "x.png", exif=turned())
    assert Decoder("r:1").image(str(tmp_path / "x.png")).size == (30, 256)


def test_an_animation_is_its_first_picture_and_is_warned_of_once(files, caplog):
    with caplog.at_level(logging.INFO):
        for row, name in enumerate(("animated.gif", "animated.webp", "animated.png")):
            found = np.asarray(Decoder(f"rows:{row}").image(files[name]))
            if name != "animated.gif":  # whose colours are fewer
                np.testing.assert_array_equal(found, colours())
    told = [record for record in caplog.records if "holds several pictures: its first is used" in record.message]
    assert [record.levelname for record in told] == ["WARNING", "INFO", "INFO"]
    assert "rows:0: image" in told[0].message


@pytest.mark.parametrize("mode", ["16x", "4x"])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (1, 3000), (3000, 1), (2, 20000), (20000, 3)])
def test_the_processor_takes_the_smallest_and_the_longest(processor, tmp_path, size, mode):
    """At inference the processor decides, and it takes them: no picture is refused for its shape."""
    Image.new("RGB", size, (200, 10, 30)).save(tmp_path / "x.png")
    messages = [{"role": "user", "content": [{"type": "image", "image": str(tmp_path / "x.png")}]}]
    found = processor.apply_chat_template(
        Decoder("r:1").messages(messages),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"downsample_mode": mode},
    )
    placeholders = int((found["input_ids"] == processor.image_token_id).sum())
    assert placeholders == int(found["target_sizes"].prod(-1).sum()) // (4 if mode == "4x" else 16) > 0
    assert bool(found["pixel_values"].isfinite().all())


# ---- references ----


def test_a_data_uri_and_a_file_are_the_same_and_decoded_once(files):
    data = base64.b64encode(Path(files["turned.jpg"]).read_bytes()).decode()
    decoder = Decoder("r:1")
    expected = np.asarray(decoder.image(files["turned.jpg"]))
    for uri in (f"data:image/jpeg;base64,{data}", f"data:image/jpeg;name=x;base64,{data[:40]}\n {data[40:]}"):
        np.testing.assert_array_equal(np.asarray(decoder.image(uri)), expected)
        assert decoder.image(uri) is decoder.image(uri)
    assert decoder.read(f"data:;base64,{data}") == Path(files["turned.jpg"]).read_bytes()
    assert decoder.digest(f"data:;base64,{data}") == decoder.digest(files["turned.jpg"])


def test_a_url_is_fetched_once(files, monkeypatch):
    asked = []
    body = Path(files["rgb.png"]).read_bytes()
    monkeypatch.setattr(images, "fetch", lambda url, access, kind: asked.append((url, kind)) or body)
    decoder = Decoder("r:1")
    url = "https://pictures.example/x.png?key=secret"
    decoder.digest(url)
    np.testing.assert_array_equal(np.asarray(decoder.image(url)), colours())
    decoder.image(url)
    assert asked == [(url, "image")]


def test_what_a_url_answers_with_is_judged_by_its_bytes(monkeypatch):
    monkeypatch.setattr(images, "fetch", lambda *_: b"<!DOCTYPE html><title>Log in</title>")
    with pytest.raises(QuantkitError) as caught:
        Decoder("r:5").image("https://pictures.example/x.png?key=secret")
    assert str(caught.value) == (
        "r:5: image 'https://pictures.example/x.png?...' cannot be decoded (it is HTML; give PNG, JPEG or WebP)"
    )


def test_private_urls_are_refused_with_row_and_url():
    with pytest.raises(QuantkitError, match=r"^r:5: image 'http://127.0.0.1:1/x.png' is refused: '127.0.0.1' is 127"):
        Decoder("r:5").image("http://127.0.0.1:1/x.png")


def test_pictures_of_scikit_image_are_read_without_importing_it(monkeypatch, tmp_path):
    data = tmp_path / "skimage" / "data"
    data.mkdir(parents=True)
    (tmp_path / "skimage" / "__init__.py").write_text("raise AssertionError('imported')")
    Image.fromarray(colours()).save(data / "astronaut.png")
    Image.fromarray(colours()).save(tmp_path / "skimage" / "outside.png")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    importlib.invalidate_caches()
    np.testing.assert_array_equal(np.asarray(Decoder("r:1").image("skimage:astronaut.png")), colours())
    for name in ("../outside.png", "", ".", "..", "nothing.png", str(data / "astronaut.png"), "..\\outside.png"):
        with pytest.raises(QuantkitError, match=r"r:1: image 'skimage:.*' names no picture among the data files"):
            Decoder("r:1").image(f"skimage:{name}")


def test_without_scikit_image_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(QuantkitError, match=re.escape("needs scikit-image: pip install 'quantkit[photos]'")):
        Decoder("r:1").image("skimage:astronaut.png")


def test_the_installed_scikit_image_has_pictures():
    pytest.importorskip("skimage")
    assert Decoder("r:1").image("skimage:astronaut.png").size == (512, 512)


# ---- faults ----


def cut(files: dict[str, str], name: str) -> bytes:
    data = Path(files[name]).read_bytes()
    return data[: len(data) // 2]


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400)
FAULTS = {
    "empty": (lambda files: b"", r"cannot be decoded \(the file is empty\)"),
    "noise": (lambda files: bytes(range(256)), r"cannot be decoded \(no picture of a known kind: PNG, JPEG"),
    "cut png": (lambda files: cut(files, "rgb.png"), r"cannot be decoded \("),
    "cut jpeg": (lambda files: cut(files, "rgb.jpg"), r"cannot be decoded \(image file is truncated"),
    "cut webp": (lambda files: cut(files, "lossy.webp"), r"cannot be decoded \("),
    "cut gif": (lambda files: cut(files, "rgb.gif"), r"cannot be decoded \("),
    "cut tiff": (lambda files: cut(files, "rgb.tif"), r"cannot be decoded \("),
    "wrong checksum": (lambda files: Path(files["rgb.png"]).read_bytes().replace(b"IDAT", b"IDAT\1"), "cannot be deco"),
    "header alone": (lambda files: Path(files["rgb.png"]).read_bytes()[:33], r"cannot be decoded \("),
    "html": (lambda files: b"\n<html><body>404", "it is HTML; give PNG, JPEG or WebP"),
    "svg": (lambda files: b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "it is SVG; give PNG"),
    "json": (lambda files: b'{"error": "gone"}', "it is JSON or text; give PNG"),
    "heic": (lambda files: HEIC, "it is HEIC; give PNG"),
    "pdf": (lambda files: b"%PDF-1.7\n", "it is PDF; give PNG"),
    "eps": (lambda files: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is EPS; give PNG"),
    "lfs": (lambda files: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
    "video": (lambda files: b"\0\0\0\x20ftypisom" + bytes(100), "it is a video; give it as a part of type 'video'"),
}


@pytest.mark.parametrize(("content", "reason"), FAULTS.values(), ids=FAULTS)
def test_each_fault_is_one_line_naming_row_and_picture(files, tmp_path, content, reason):
    path = tmp_path / "bad.png"
    data = content(files)
    path.write_bytes(data)
    with pytest.raises(QuantkitError) as caught:
        Decoder("rows.jsonl:3").image(str(path))
    assert re.match(rf"rows.jsonl:3: image '{re.escape(str(path))}' .*{reason}", str(caught.value))
    assert "\n" not in str(caught.value)
    if data:
        uri = "data:image/png;base64," + base64.b64encode(data * (1 + 60 // len(data))).decode()
        with pytest.raises(QuantkitError) as caught:
            Decoder("rows.jsonl:3").image(uri)
        assert str(caught.value).startswith(f"rows.jsonl:3: image '{uri[:40]}...' cannot be decoded")
        assert len(str(caught.value)) < 300


def test_formats_that_are_not_asked_for_are_not_opened(tmp_path):
    """Pillow knows many more, some of which start other programs."""
    Image.fromarray(colours()).save(tmp_path / "x.pcx")
    Image.fromarray(colours()).save(tmp_path / "x.sgi")
    for name in ("x.pcx", "x.sgi"):
        with pytest.raises(QuantkitError, match=r"cannot be decoded \(no picture of a known kind: PNG, JPEG"):
            Decoder("r:1").image(str(tmp_path / name))


@pytest.mark.parametrize("name", ["rgb.png", "rgb.jpg", "lossy.webp", "animated.gif", "cmyk.tif", "rgb.bmp"])
def test_a_damaged_file_raises_nothing_else(files, name):
    """Bytes changed, cut off and taken out anywhere: a picture, or one line."""
    random = np.random.default_rng(0)
    whole = np.frombuffer(Path(files[name]).read_bytes(), dtype=np.uint8)
    decoder = Decoder("r:1", Access(max_pixels=10**6))
    told = []
    for trial in range(60):
        data = whole.copy()
        reach = len(data) if trial % 2 else min(len(data), 120)
        data[random.integers(0, reach, 4)] = random.integers(0, 256, 4)
        data = data[: random.integers(1, len(data))] if trial % 3 == 0 else np.delete(data, random.integers(0, reach))
        try:
            decoder.image("data:;base64," + base64.b64encode(data.tobytes()).decode())
        except QuantkitError as error:
            told.append(str(error))
    assert len(told) > 10 and not any("\n" in line for line in told)


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("/no/such/picture.png", "does not exist"),
        ("/dev/null", "is no file"),
        ("/", "is no file"),
        ("bad\0name.png", "cannot be read"),
        ("data:image/png,abc", "a data URI must be base64"),
        ("data:image/png;base64,", "the data URI is empty"),
        ("data:image/png;base64,a$b=", "its base64 is damaged"),
        ("file:///etc/hosts", "does not exist"),
        ("ftp://example.org/x.png", "does not exist"),
    ],
)
def test_references_that_lead_nowhere(reference, reason):
    with pytest.raises(QuantkitError, match=rf"^r:9: image '.*' .*{reason}"):
        Decoder("r:9").image(reference)


# ---- limits ----


def test_an_enormous_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    """50,000 x 50,000 in a file of a few bytes: the header is all that is read of it."""
    (tmp_path / "bomb.png").write_bytes(png(50_000, 50_000, b"\0" * 1000, depth=1, colour=0))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(QuantkitError, match=r"r:1: image '.*bomb.png' is too large \(Image size \(2500000000 pixels\)"):
        Decoder("r:1").image(str(tmp_path / "bomb.png"))
    (tmp_path / "large.png").write_bytes(png(10_000, 10_000, b"\0" * 1000, depth=1, colour=0))
    told = r"is 10000 x 10000 = 100,000,000 pixels, more than the limit of 89,478,485|is too large \(Image size"
    for filter in ("ignore", "error"):
        with warnings.catch_warnings():
            warnings.simplefilter(filter, Image.DecompressionBombWarning)
            with pytest.raises(QuantkitError, match=told):
                Decoder("r:1").image(str(tmp_path / "large.png"))


def test_the_limit_of_pixels_is_exact_and_leaves_pillow_as_it_is(files):
    before = Image.MAX_IMAGE_PIXELS
    assert Decoder("r:1", Access(max_pixels=56 * 40)).image(files["rgb.png"]).size == (56, 40)
    with pytest.raises(
        QuantkitError, match=r"is 56 x 40 = 2,240 pixels, more than the limit of 2,239; make it smaller"
    ):
        Decoder("r:1", Access(max_pixels=56 * 40 - 1)).image(files["rgb.png"])
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_limit_of_bytes_holds_for_files_and_data_uris(files, tmp_path):
    size = Path(files["rgb.png"]).stat().st_size
    uri = "data:image/png;base64," + base64.b64encode(Path(files["rgb.png"]).read_bytes()).decode()
    for reference in (files["rgb.png"], uri):
        Decoder("r:1", Access(max_bytes=size)).image(reference)
        with pytest.raises(QuantkitError, match=r"is larger than the limit of .* MB.*; make it smaller"):
            Decoder("r:1", Access(max_bytes=size - 10)).image(reference)
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(50_000_001)
    with pytest.raises(QuantkitError, match=r"is larger than the limit of 50 MB \(50.0 MB\)"):
        Decoder("r:1").image(str(tmp_path / "huge.png"))


# ---- conversations ----


def test_the_messages_given_are_not_written_into(files):
    part = {"type": "image", "image": files["rgb.png"]}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "Hi"}], "name": "x"}]
    decoded = Decoder("r:1").chat(messages)
    assert decoded.kwargs == {}
    assert decoded.messages[0]["name"] == "x" and decoded.messages[0]["content"][0]["image"].size == (56, 40)
    decoded.messages[0]["content"].append(None)
    decoded.messages[0]["content"][1]["text"] = "other"
    assert messages == [{"role": "user", "content": [part, {"type": "text", "text": "Hi"}], "name": "x"}]
    assert part == {"type": "image", "image": files["rgb.png"]}
