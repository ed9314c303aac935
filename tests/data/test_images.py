"""Every kind of image file: read with Pillow's colours, or refused with what is wrong and what to do."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from toolbox.data import image_doubts
from toolbox.data.images import read_image
from toolbox.errors import DataError

RANDOM = np.random.default_rng(0)


def rgb(height: int = 5, width: int = 7) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int = 48, width: int = 64) -> PIL.Image.Image:
    """Without edges, so that JPEG decoders agree."""
    y, x = np.mgrid[:height, :width]
    return PIL.Image.fromarray(np.stack([4 * x, 5 * y, 255 - 4 * x], axis=2).clip(0, 255).astype(np.uint8))


def by_pillow(path: Path, mode: str = "RGB") -> np.ndarray:
    with PIL.Image.open(path) as image:
        pixels = np.asarray(image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "webp", "tif", "ppm", "jp2", "jpg", "avif"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_colours_are_pillows_in_every_format(tmp_path: Path, suffix: str, mode: str) -> None:
    settings: dict[str, Any] = {"webp": {"lossless": True}, "jpg": {"quality": 95}, "avif": {"quality": 100}}
    path = tmp_path / f"a.{suffix}"
    try:
        smooth().convert(mode).save(path, **settings.get(suffix, {}))
    except (OSError, ValueError):
        pytest.skip(f"no {mode} in this format, or this Pillow does not write it")
    lossy = 4 if suffix in ("jpg", "avif", "jp2") else 0
    assert np.abs(read_image(path).astype(int) - by_pillow(path)).max() <= lossy
    # ITU-R 601 luminance, which OpenCV and Pillow round in different places
    assert np.abs(read_image(path, channels=1).astype(int) - by_pillow(path, "L")).max() <= lossy + 1


def test_palettes_with_a_transparent_colour_keep_their_colours(tmp_path: Path) -> None:
    palette = PIL.Image.fromarray(rgb(20, 30)).quantize(16)
    for name in ("a.gif", "a.png"):
        palette.save(tmp_path / name, transparency=3)
        assert np.array_equal(read_image(tmp_path / name), np.asarray(palette.convert("RGB")))
        assert np.array_equal(read_image(tmp_path / name, channels=4), by_pillow(tmp_path / name, "RGBA"))


def test_alpha_is_dropped_and_colours_stay(tmp_path: Path) -> None:
    pixels = rgb()
    PIL.Image.fromarray(np.dstack([pixels, np.zeros((5, 7), np.uint8)])).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), pixels)


def test_cmyk_jpegs_have_the_right_colours_inverted_by_adobe_or_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    smooth().convert("CMYK").save(path, quality=98)
    assert np.abs(read_image(path).astype(int) - np.asarray(smooth())).max() < 8
    content = path.read_bytes()
    at = content.index(b"\xff\xee")  # Adobe's marker, which says that inks are stored inverted
    path.write_bytes(content[:at] + content[at + 2 + int.from_bytes(content[at + 2 : at + 4], "big") :])
    assert np.abs(read_image(path).astype(int) - by_pillow(path)).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_by_their_full_range(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 65535 - 129, 65535]], dtype=np.uint16)
    scaled = [0, 0, 1, 1, 254, 255]  # x · 255 / 65535, rounded to the nearest
    cv2.imwrite(str(tmp_path / f"grey.{suffix}"), values)
    assert read_image(tmp_path / f"grey.{suffix}")[0].tolist() == [[value] * 3 for value in scaled]
    cv2.imwrite(str(tmp_path / f"rgb.{suffix}"), np.stack([0 * values, 0 * values, values], axis=2))  # OpenCV: B G R
    assert read_image(tmp_path / f"rgb.{suffix}")[0].tolist() == [[value, 0, 0] for value in scaled]


@pytest.mark.parametrize("suffix", ["png", "tif", "npy"])
def test_sixteen_bits_that_use_little_of_their_range_are_doubted_once(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str, largest: int) -> Path:
        path, pixels = tmp_path / f"{name}.{suffix}", np.array([[0, largest, largest // 2]], dtype=np.uint16)
        np.save(path, pixels) if suffix == "npy" else cv2.imwrite(str(path), pixels)
        return path

    channels = 1 if suffix == "npy" else 3
    monkeypatch.setattr(image_doubts, "_said", set())
    for name, largest in (("black", 0), ("full", 65535), ("wide", 8192)):
        read_image(write(name, largest), channels=channels)
    assert not caplog.records
    for name in ("dark", "next"):
        read_image(write(name, 4180), channels=channels)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"dark.{suffix}: the largest of its 16-bit values is 4180" in record.getMessage()
    assert "so 17 of 256 levels are left" in record.getMessage()  # 4180 / 257 = 16.3: 0 to 16
    assert "by 16 for 12 bits" in record.getMessage()


def test_an_alpha_channel_does_not_hide_how_dark_sixteen_bits_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_doubts, "_said", set())
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[[9, 4095, 9, 65535]]], dtype=np.uint16))
    read_image(tmp_path / "a.png")
    assert "a.png: the largest of its 16-bit values is 4095" in caplog.text


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_turns_only_what_is_to_be_upright_or_whose_declared_size_asks_for_it(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    smooth().save(path, exif=exif)
    stored = by_pillow(path)
    with PIL.Image.open(path) as image:
        upright = np.asarray(PIL.ImageOps.exif_transpose(image).convert("RGB"))
    pairs = [
        (read_image(path), stored),
        (read_image(path, (48, 64)), stored),
        (read_image(path, upright=True), upright),
    ]
    if orientation > 4:
        pairs.append((read_image(path, (64, 48)), upright))
    for got, expected in pairs:
        assert got.shape == expected.shape and np.abs(got.astype(int) - expected).max() <= 4


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [PIL.Image.fromarray(rgb(20, 30)).quantize(16) for _ in range(3)]
    for name in ("a.gif", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert np.array_equal(read_image(tmp_path / name), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("name", ["with space.png", "Grün—猫.png", os.fsdecode(b"latin-\xfc.png"), "a.b.PNG"])
def test_any_name_is_a_name(tmp_path: Path, name: str) -> None:
    try:
        PIL.Image.fromarray(rgb()).save(tmp_path / name, "PNG")
    except (OSError, UnicodeError):
        pytest.skip("this file system does not take the name")
    assert read_image(tmp_path / name).shape == (5, 7, 3)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "gif", "avif", "jp2"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_a_file_cut_short_is_refused_by_name(
    tmp_path: Path, suffix: str, part: float, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"cut.{suffix}"
    try:
        PIL.Image.fromarray(rgb(160, 240)).save(path)
    except (OSError, ValueError, KeyError):
        pytest.skip("this Pillow does not write the format")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(DataError, match=rf"cut\.{suffix}: .*(damaged|cut short).*; replace the file"):
        read_image(path)
    assert "/opencv/" not in capfd.readouterr().err


@pytest.mark.parametrize(("suffix", "kind"), [("tga", "TGA or CUR"), ("pcx", "PCX"), ("ico", "ICO"), ("sgi", "SGI")])
def test_whole_images_of_kinds_that_are_not_read_are_not_called_damaged(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(rgb(16, 16)).save(path)
    with pytest.raises(DataError, match=rf"a\.{suffix}: .* kind {kind}, which is not read; convert it to PNG$"):
        read_image(path)


def test_a_jpeg_without_its_end_is_refused_by_a_lenient_decoder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preview = b"\xff\xe1" + (2 + 20).to_bytes(2, "big") + bytes(8) + b"\xff\xd8\xff\xd9" + bytes(8)
    path = tmp_path / "a.jpg"
    PIL.Image.fromarray(rgb(40, 60)).save(path, quality=95)
    whole = path.read_bytes()
    whole = whole[:2] + preview + preview + whole[2:]
    lenient = cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_UNCHANGED)
    monkeypatch.setattr(cv2, "imdecode", lambda content, flags: lenient)  # as OpenCV 4.10 does
    for content in (whole, whole + bytes(100)):
        path.write_bytes(content)
        assert read_image(path).shape == (40, 60, 3)
    for left in (len(whole) // 2, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:left])
        with pytest.raises(DataError, match="a.jpg: .*cut short"):
            read_image(path)


def test_what_follows_the_end_of_a_jpeg_is_left_alone(tmp_path: Path) -> None:
    smooth().save(tmp_path / "a.jpg")
    expected = read_image(tmp_path / "a.jpg")
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"a maker's data\xff\xd8" * 50)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not an image: the file is empty \(0 bytes\); copy or download it again"),
        (bytes(500), "not an image: 500 bytes that are all zero, .* copy it again"),
        (b"cat 12 44 80 90\n", "not an image but text .*; replace the file"),
        (b"\n <!DOCTYPE html><html><h1>404</h1>", "not an image but a web page, .* download the image again"),
        (b"<html>403</html>", "not an image but a web page"),
        (b"<svg xmlns='a'/>", "SVG drawing; convert it to PNG"),
        (b"<?xml version='1.0'?><Error/>", "XML: an SVG drawing, .* or a server's error"),
        (b'{"error": "not found"}', "not an image but JSON"),
        (b"%PDF-1.4\n", "a PDF; convert its pages"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "run 'git lfs pull'"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "an HEIC image, .* convert it to JPEG or PNG"),
        (b"PK\x03\x04rest", "a ZIP archive; unpack it"),
        (b"\x01\x02\x03rubbish", r"not an image that OpenCV can decode, or cut short \(10 bytes\); replace the file"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.jpg: {message}" if message.startswith("not") else message) as raised:
        read_image(tmp_path / "a.jpg")
    assert str(raised.value).startswith(str(tmp_path / "a.jpg"))


def test_files_that_cannot_be_opened_say_why(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "secret.jpg").write_bytes(b"a")
    (tmp_path / "secret.jpg").chmod(0)
    wrong = {
        "none.jpg": "no such file; check the name",
        "folder.jpg": "this is a folder",
        "lost.jpg": "no such file; it is a link to nowhere",
        "loop.jpg": r"cannot be read \(Too many levels of symbolic links\); replace the file",
    }
    if os.geteuid() != 0:
        wrong["secret.jpg"] = r"cannot be read \(Permission denied\); let this user read it"
    for name, message in wrong.items():
        with pytest.raises(DataError, match=rf"{name}: .*{message}"):
            read_image(tmp_path / name)


def test_another_size_than_declared_is_refused(tmp_path: Path) -> None:
    PIL.Image.fromarray(rgb()).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: image is 7 x 5 .* declare 9 x 5"):
        read_image(tmp_path / "a.png", (5, 9))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 20000), (20000, 1), (20000, 50)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_single_pixels_and_long_strips_are_read(tmp_path: Path, suffix: str, height: int, width: int) -> None:
    path = tmp_path / f"a.{suffix}"
    PIL.Image.fromarray(rgb(height, width)).save(path)
    pixels = read_image(path, (height, width))
    assert pixels.shape == (height, width, 3)
    assert suffix == "jpg" or np.array_equal(pixels, by_pillow(path))


def png_header(width: int, height: int) -> bytes:
    """A PNG of grey pixels that says a size and holds next to nothing."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(9))))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("width", "height"), [(40_000, 40_000), (2_000_000, 1)])
def test_images_beyond_the_decoders_limit_are_refused_with_the_limit(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "a.png").write_bytes(png_header(width, height))
    with pytest.raises(
        DataError, match=rf"a\.png: image is {width} x {height} .* 1073741824 pixels .* cut it into tiles"
    ):
        read_image(tmp_path / "a.png")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are read as Linux tells them")
def test_twenty_thousand_pixels_a_side_are_read_without_a_second_copy(tmp_path: Path) -> None:
    def memory(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])  # KiB

    pixels = np.zeros((20_000, 20_000), np.uint8)
    pixels[:, 7_000] = 255
    cv2.imwrite(str(tmp_path / "a.png"), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_BILEVEL, 1])
    del pixels
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    image = read_image(tmp_path / "a.png", upright=True)
    assert image.shape == (20_000, 20_000, 3)
    assert image[123, 6_999:7_002].tolist() == [[0, 0, 0], [255, 255, 255], [0, 0, 0]]
    grown = memory("VmHWM") - before
    assert grown < 2_000_000  # the image itself is 1.2 GB


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 12])
def test_arrays_are_read_with_their_channels(tmp_path: Path, channels: int) -> None:
    pixels = RANDOM.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    np.save(tmp_path / "a.npy", np.asfortranarray(pixels))
    assert np.array_equal(read_image(tmp_path / "a.npy", (5, 7), channels), pixels)
    np.save(tmp_path / "b.npy", (pixels.astype(np.uint16) * 257).astype(">u2"))
    assert np.array_equal(read_image(tmp_path / "b.npy", (5, 7), channels), pixels)


def test_arrays_that_are_no_images_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "ran").write_text, ("by pickle",))

    np.save(tmp_path / "grey.npy", np.full((5, 7), 9, np.uint8))
    assert read_image(tmp_path / "grey.npy", channels=1).shape == (5, 7, 1)
    for array, message in (
        (np.ones((5, 7, 3), np.float32), "pixels are float32; convert"),
        (np.ones(5, np.uint8), r"shape \(5,\); an image is \(height, width, channels\)"),
        (np.ones((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (np.array([Evil()], dtype=object), "not an array that NumPy reads"),
        (np.ones((5, 7, 4), np.uint8)[..., :2], r"image has 2 channels .*, but 5 are read; set 'channels: 2'"),
    ):
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(DataError, match=rf"a\.npy: .*{message}"):
            read_image(tmp_path / "a.npy", channels=5)
    assert not (tmp_path / "ran").exists()
    np.save(tmp_path / "a.npy", np.ones((5, 7, 5), np.uint8))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"a\.npy: not an array that NumPy reads"):
        read_image(tmp_path / "a.npy", channels=5)


def test_files_of_other_channels_are_refused_with_what_fits(tmp_path: Path) -> None:
    PIL.Image.fromarray(rgb()).save(tmp_path / "a.png")
    four = r"a\.png: image has 3 channels \(RGB\), but 4 are read; set 'channels: 3' .* \(RGBA, a TIFF of 4 bands, or"
    with pytest.raises(DataError, match=four):
        read_image(tmp_path / "a.png", channels=4)
    with pytest.raises(DataError, match=r"3 channels \(RGB\), but 5 are read; .* \(a TIFF of 5 bands, or \.npy\)"):
        read_image(tmp_path / "a.png", channels=5)


def test_the_fourth_band_is_kept_where_four_are_read(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    for name in ("a.png", "a.tif"):
        PIL.Image.fromarray(pixels).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name, channels=4), pixels)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "WEBP", lossless=True, exact=True)
    (tmp_path / "a.webp").write_bytes(file.getvalue())
    assert np.array_equal(read_image(tmp_path / "a.webp", channels=4), pixels)
