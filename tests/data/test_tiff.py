"""TIFFs of bands and pages, written here byte by byte as the specification says; Pillow is the judge of colours."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from toolbox.data import image_doubts
from toolbox.data.images import read_image
from toolbox.errors import DataError

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (20, 40, 3), dtype=np.uint8)
DEFLATE = 8


def write_tiff(
    path: Path,
    pixels: np.ndarray,
    *,
    order: str = "<",
    photometric: int = 1,
    planar: bool = False,
    tile: int = 0,
    deflate: bool = False,
    sample_format: int = 1,
    extra: int | None = None,
) -> Path:
    """Write (h, w, c); with `deflate`, values are differences from the left neighbour."""
    height, width, bands = pixels.shape
    pixels = pixels.astype(pixels.dtype.newbyteorder(order))
    rows = tile or 7
    blocks = []
    for plane in np.split(pixels, bands, axis=2) if planar else [pixels]:
        for y, x in product(range(0, height, rows), range(0, width, tile or width)):
            block = plane[y : y + rows, x : x + (tile or width)]
            if tile:
                block = np.pad(block, ((0, tile - block.shape[0]), (0, tile - block.shape[1]), (0, 0)))
            if deflate:
                first = np.zeros_like(block[:, :1])
                block = np.diff(block, axis=1, prepend=first).astype(pixels.dtype)
            blocks.append(zlib.compress(block.tobytes()) if deflate else block.tobytes())
    starts = np.cumsum([8] + [len(block) for block in blocks]).tolist()
    tags = {
        **{256: [width], 257: [height], 258: [8 * pixels.itemsize] * bands, 259: [DEFLATE if deflate else 1]},
        **{262: [photometric], 277: [bands], 284: [2 if planar else 1], 339: [sample_format] * bands},
        **({322: [tile], 323: [tile], 324: starts[:-1]} if tile else {278: [rows], 273: starts[:-1]}),
        **{325 if tile else 279: [len(block) for block in blocks]},
        **({317: [2]} if deflate else {}),
        **({338: [extra]} if extra is not None else {}),
    }
    at = starts[-1] + starts[-1] % 2
    behind = at + 2 + 12 * len(tags) + 4
    directory, values = struct.pack(order + "H", len(tags)), b""
    for tag, numbers in sorted(tags.items()):
        kind, code = (4, "I") if tag in (273, 279, 324, 325) else (3, "H")
        packed = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(packed) > 4:
            packed, values = struct.pack(order + "I", behind + len(values)), values + packed
        directory += struct.pack(order + "HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    body = b"".join(blocks).ljust(at - 8, b"\0")
    path.write_bytes(header + body + directory + bytes(4) + values)
    return path


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("tile", [0, 16])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bands", [2, 4, 5, 13])
def test_bands_are_read_as_they_are_stored(tmp_path: Path, bands: int, planar: bool, tile: int, deflate: bool) -> None:
    for order, kind in product("<>", (np.uint8, np.uint16)):
        pixels = RANDOM.integers(0, np.iinfo(kind).max + 1, (20, 40, bands)).astype(kind)
        path = write_tiff(tmp_path / "a.tif", pixels, order=order, planar=planar, tile=tile, deflate=deflate)
        # a whole number of 65535ths in 255ths, rounded by floating point
        expected = pixels if kind == np.uint8 else np.floor(pixels * (255 / 65535) + 0.5)
        assert np.array_equal(read_image(path, (20, 40), channels=bands), expected)


def test_the_writer_of_this_test_writes_what_pillow_reads(tmp_path: Path) -> None:
    for order, planar, deflate in product("<>", (False, True), (False, True)):
        path = write_tiff(tmp_path / "a.tif", RGB, order=order, photometric=2, planar=planar, deflate=deflate)
        with PIL.Image.open(path) as image:
            assert np.array_equal(np.asarray(image), RGB)
        assert np.array_equal(read_image(path), RGB)


def test_sixteen_bits_where_zero_is_white_are_turned_round(tmp_path: Path) -> None:
    pixels = np.array([[[0], [257], [65535]]], np.uint16)
    path = write_tiff(tmp_path / "a.tif", pixels, photometric=0)
    assert read_image(path, channels=1)[..., 0].tolist() == [[255, 254, 0]]


def test_big_tiff_is_read(tmp_path: Path) -> None:
    for mode, pixels in (("RGB", RGB), ("RGBA", np.dstack([RGB, RGB[..., 0]]))):
        PIL.Image.fromarray(pixels).save(tmp_path / "a.tif", big_tiff=True)
        assert (tmp_path / "a.tif").read_bytes()[:4] == b"II+\0"
        assert np.array_equal(read_image(tmp_path / "a.tif", channels=len(mode)), pixels)


def test_colours_under_an_alpha_channel_are_not_multiplied_by_it(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.dstack([RGB, np.full(RGB.shape[:2], 7, np.uint8)])).save(tmp_path / "rgba.tif")
    assert np.array_equal(read_image(tmp_path / "rgba.tif"), RGB)
    assert (read_image(tmp_path / "rgba.tif", channels=4)[..., 3] == 7).all()
    PIL.Image.merge("LA", [PIL.Image.fromarray(RGB[..., i].copy()) for i in (0, 1)]).save(tmp_path / "la.tif")
    assert np.array_equal(read_image(tmp_path / "la.tif"), np.repeat(RGB[..., :1], 3, axis=2))
    assert np.array_equal(read_image(tmp_path / "la.tif", channels=1), RGB[..., :1])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "group4", "jpeg"])
def test_every_kind_that_pillow_writes_has_pillows_colours(tmp_path: Path, mode: str, compression: str | None) -> None:
    if (compression == "group4") != (mode == "1") and compression in ("group4", "jpeg"):
        pytest.skip("the compression is not for these pixels")
    if compression == "jpeg" and mode in ("P", "1"):
        pytest.skip("JPEG holds no palette")
    smooth = PIL.Image.fromarray(RGB).resize((64, 48), PIL.Image.Resampling.BICUBIC)
    smooth.convert(mode).save(tmp_path / "a.tif", compression=compression)
    with PIL.Image.open(tmp_path / "a.tif") as image:
        expected = np.asarray(image.convert("RGB"))
    difference = np.abs(read_image(tmp_path / "a.tif").astype(int) - expected)
    assert difference.max() <= (3 if mode == "YCbCr" or compression == "jpeg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_a_turned_tiff_is_read_as_stored_and_upright_only_when_asked(
    tmp_path: Path, orientation: int, bands: int
) -> None:
    pixels = RANDOM.integers(0, 256, (20, 40, bands), dtype=np.uint8)
    PIL.Image.fromarray(pixels.squeeze()).save(tmp_path / "a.tif", tiffinfo={274: orientation})
    assert np.array_equal(read_image(tmp_path / "a.tif", channels=bands), pixels)
    # Pillow turns TIFFs by itself, but wrongly where it maps the file into memory.
    with PIL.Image.open(io.BytesIO((tmp_path / "a.tif").read_bytes())) as image:
        image.load()
        upright = np.asarray(image)
    upright = upright.reshape(*upright.shape[:2], bands)
    assert np.array_equal(read_image(tmp_path / "a.tif", channels=bands, upright=True), upright)
    if orientation > 4:
        assert np.array_equal(read_image(tmp_path / "a.tif", (40, 20), channels=bands), upright)


def test_a_page_that_follows_itself_is_one_page(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", RGB[..., :1])
    content = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", content, 4)
    (entries,) = struct.unpack_from("<H", content, at)
    struct.pack_into("<I", content, at + 2 + 12 * entries, at)
    path.write_bytes(content)
    assert np.array_equal(read_image(path, channels=1), RGB[..., :1])
    with pytest.raises(DataError, match=r"image has 1 channel \(grey\), but 4 are read"):
        read_image(path, channels=4)


def test_pages_of_one_band_are_channels_and_of_colours_the_first_is_read(tmp_path: Path) -> None:
    layers = [RANDOM.integers(0, 256, (9, 8), dtype=np.uint8) for _ in range(5)]
    first, *others = map(PIL.Image.fromarray, layers)
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    assert np.array_equal(read_image(tmp_path / "a.tif", channels=5), np.stack(layers, axis=2))
    assert np.array_equal(read_image(tmp_path / "a.tif", channels=1)[..., 0], layers[0])
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.repeat(layers[0][..., None], 3, axis=2))
    with pytest.raises(DataError, match=r"a\.tif: image has 5 pages of one band, but 6 channels .* 'channels: 5'"):
        read_image(tmp_path / "a.tif", channels=6)
    first.save(tmp_path / "b.tif", save_all=True, append_images=[others[0].resize((4, 4))])
    with pytest.raises(DataError, match=r"b\.tif: the pages have different sizes"):
        read_image(tmp_path / "b.tif", channels=2)


def test_bands_that_are_no_colours_are_not_taken_for_them(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", RANDOM.integers(0, 256, (9, 8, 5), dtype=np.uint8))
    with pytest.raises(DataError, match=r"a\.tif: image has 5 channels, .* 3 are read; set 'channels: 5'"):
        read_image(path)
    with pytest.raises(DataError, match=r"a\.tif: image has 5 channels, but 4 are read; set 'channels: 5'"):
        read_image(path, channels=4)


@pytest.mark.parametrize("extra", [None, 0])  # no tag, and "unspecified data"
def test_a_fourth_band_that_is_no_transparency_is_not_dropped_in_silence(
    tmp_path: Path, extra: int | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_doubts, "_said", set())
    pixels = RANDOM.integers(0, 256, (9, 8, 4), dtype=np.uint8)
    for kind in (1, 2):  # associated and unassociated alpha
        read_image(write_tiff(tmp_path / "alpha.tif", pixels, photometric=2, extra=kind))
    bands = write_tiff(tmp_path / "bands.tif", pixels, photometric=2, extra=extra)
    assert np.array_equal(read_image(bands, channels=4), pixels)
    assert not caplog.records
    assert np.array_equal(read_image(bands), pixels[..., :3])
    read_image(bands)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "bands.tif: this TIFF has a fourth band" in record.getMessage()
    assert "set 'channels: 4'" in record.getMessage()


def test_numbers_other_than_8_and_16_bits_are_refused_with_what_to_do(tmp_path: Path) -> None:
    for kind, sample_format in ((np.float32, 3), (np.int16, 2), (np.uint32, 1), (np.float16, 3)):
        pixels = np.ones((9, 8, 3), kind)
        path = write_tiff(tmp_path / "a.tif", pixels, photometric=2, sample_format=sample_format)
        with pytest.raises(DataError, match=rf"a\.tif: pixels are {kind.__name__}; convert the image to 8 or 16 bits"):
            read_image(path)
    PIL.Image.fromarray(np.ones((9, 8), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f\.tif: pixels are float32"):
        read_image(tmp_path / "f.tif", channels=1)


def test_a_tiff_broken_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    file = io.BytesIO()
    PIL.Image.fromarray(np.dstack([RGB, RGB[..., :2]])[..., :4]).save(file, "TIFF", compression="tiff_adobe_deflate")
    whole = file.getvalue()
    path = tmp_path / "a.tif"
    for length in range(4, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.tif: .*(damaged|cut short)"):
            read_image(path)
    loop = bytearray(write_tiff(path, RGB).read_bytes())
    (at,) = struct.unpack_from("<I", loop, 4)
    (entries,) = struct.unpack_from("<H", loop, at)
    struct.pack_into("<I", loop, at + 2 + 12 * entries, at)  # the next page is this one
    path.write_bytes(loop)
    assert np.array_equal(read_image(path), RGB)
