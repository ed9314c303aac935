"""TIFF files, of any number of bands or pages, as they are stored.

The format: Adobe, *TIFF Revision 6.0*, 1992; BigTIFF differs in the width of its numbers. Only the directory is read
here; Pillow decodes the pixels. It knows few numbers of bands, but interleaved bands of a row are to it a grey row as
many times as wide, if the directory says so.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import PIL.TiffImagePlugin

from toolbox.data.image_faults import BadImage, why_unreadable
from toolbox.errors import counted

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS, _COUNTS, _PLANAR = 273, 274, 277, 278, 279, 284
_PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _FORMAT = 317, 322, 323, 324, 325, 339
_EXTRA = 338
_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # the types of the tags above
_WHITE_IS_ZERO, _RGB, _CMYK = 0, 2, 5
_GREYS = (_WHITE_IS_ZERO, 1)
_DIFFERENCES = 2  # the predictor that stores each value's difference from its left neighbour
_JPEG = (6, 7)
_TRANSPARENCY = (1, 2)  # of _EXTRA: colours multiplied by it, or not


@dataclass(frozen=True)
class _Page:
    """One image directory.

    Attributes:
        at: its place in the file.
        next: the next one's place; 0 after the last.
        tags: number → values.
        places: number → where its value stands in the file.
    """

    at: int
    next: int
    tags: Mapping[int, tuple[int, ...]]
    places: Mapping[int, int]

    def get(self, tag: int, default: int = 1) -> int:
        return self.tags.get(tag, (default,))[0]


def is_tiff(start: bytes) -> bool:
    """Whether a file that begins so is a TIFF or BigTIFF."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def orientation(content: np.ndarray) -> int:
    """EXIF's number for how the first page is turned."""
    return _pages(content.tobytes())[0].get(_ORIENTATION)


def is_transparency_fourth(content: np.ndarray) -> bool:
    """Whether the first band behind the colours of the first page is called transparency."""
    return _pages(content.tobytes())[0].get(_EXTRA, 0) in _TRANSPARENCY


def read_tiff(content: np.ndarray, channels: int) -> np.ndarray:
    """Stored pixels (h, w, c) uint8 or uint16, colours as R G B A.

    c is `channels` wherever the file has so many bands, or so many pages of one band; else it is what the first page
    has. 1 and 3 channels are of the first page.

    Args:
        content: the file (n,) uint8.
        channels: that are wanted.

    Raises:
        BadImage: the file is damaged, or of a kind that is not read.
    """
    pages = _pages(content.tobytes())
    bands = pages[0].get(_SAMPLES)
    if channels in (1, 3) or bands > 1 or len(pages) == 1:
        return _read_page(content, pages[0], channels)
    if len(pages) != channels:
        raise BadImage(
            f"image has {len(pages)} pages of one band, but {channels} channels are read; set 'channels: {len(pages)}' "
            f"for such images, or write files of {channels} bands or pages"
        )
    layers = [_read_page(content, page, channels) for page in pages]
    if len({layer.shape for layer in layers}) > 1:
        raise BadImage("the pages have different sizes, so they are no channels of one image; crop or resize them")
    return np.concatenate(layers, axis=2)


def _pages(content: bytes) -> list[_Page]:
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    try:
        (at,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
        pages: list[_Page] = []
        while at and at not in [page.at for page in pages]:
            pages.append(_page(content, at, order, big))
            at = pages[-1].next
    except struct.error:
        pages = []
    if not pages or not {_WIDTH, _HEIGHT} <= pages[0].tags.keys():
        raise BadImage(why_unreadable(np.frombuffer(content, np.uint8)))
    return pages


def _page(content: bytes, at: int, order: str, big: bool) -> _Page:
    number, count_code, entry, room = ("Q", "Q", 20, 8) if big else ("H", "I", 12, 4)
    (entries,) = struct.unpack_from(order + number, content, at)
    first = at + struct.calcsize(number)
    tags, places = {}, {}
    for place in range(first, first + entries * entry, entry):
        tag, kind, count = struct.unpack_from(order + "HH" + count_code, content, place)
        if kind not in _CODES:
            continue
        place += entry - room
        if struct.calcsize(_CODES[kind]) * count > room:
            (place,) = struct.unpack_from(order + count_code, content, place)
        tags[tag] = struct.unpack_from(f"{order}{count}{_CODES[kind]}", content, place)
        places[tag] = place
    (following,) = struct.unpack_from(order + count_code, content, first + entries * entry)
    return _Page(at, following, tags, places)


def _read_page(content: np.ndarray, page: _Page, channels: int) -> np.ndarray:
    bits, bands, colours = page.get(_BITS), page.get(_SAMPLES), page.get(_PHOTOMETRIC)
    sample = {1: "uint", 2: "int", 3: "float"}.get(page.get(_FORMAT), "of another kind, ")
    if bits not in (1, 2, 4, 8, 16) or sample != "uint":
        raise BadImage(
            f"pixels are {sample}{bits}; convert the image to 8 or 16 bits a channel, with the range of values you want"
        )
    inks = colours == _CMYK and bands == 4 and channels in (1, 3)
    coloured = bands == 3 and colours not in _GREYS
    if bits < 16 and (inks or coloured or bands == 1 or page.get(_COMPRESSION) in _JPEG):
        return _by_pillow(_single(content, page))
    if channels in (1, 3) and bands not in (1, 2, channels) and not (colours == _RGB and bands <= 4):
        raise BadImage(
            f"image has {counted(bands, 'channel')}, of which nobody can tell the colours, but {channels} are read; "
            f"set 'channels: {bands}' for such images, or write RGB files"
        )
    pixels = _read_bands(content, page, bands)
    return ~pixels if colours == _WHITE_IS_ZERO and bands == 1 else pixels


def _single(content: np.ndarray, page: _Page) -> np.ndarray:
    """The file with one page to find, and that not to be turned: decoders turn TIFFs unasked."""
    file = content.copy()
    order = "<" if bytes(content[:2]) == b"II" else ">"
    big = content[2] == 43 or content[3] == 43
    place = np.frombuffer(struct.pack(order + ("Q" if big else "I"), page.at), np.uint8)
    file[8 if big else 4 :][: len(place)] = place
    if _ORIENTATION in page.places:
        file[page.places[_ORIENTATION] :][:2] = np.frombuffer(struct.pack(order + "H", 1), np.uint8)
    return file


def _by_pillow(file: np.ndarray) -> np.ndarray:
    """(h, w, c). OpenCV multiplies colours by their alpha, takes inks for RGBA, and fails on some tiles."""
    try:
        with PIL.TiffImagePlugin.TiffImageFile(io.BytesIO(file.tobytes()), "") as image:
            if image.mode in ("1", "L"):
                return np.array(image.convert("L"))[..., None]
            if image.mode.startswith("I;16"):
                return np.array(image).astype(np.uint16)[..., None]
            return np.array(image.convert("RGBA" if image.mode in ("RGBA", "LA", "PA") else "RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, struct.error):
        raise BadImage(why_unreadable(file)) from None


def _read_bands(content: np.ndarray, page: _Page, bands: int) -> np.ndarray:
    """(h, w, bands) as stored."""
    if page.get(_PLANAR) == 1:
        wide = _by_pillow(_grey(content, page, page.tags, wider=bands))[..., 0]
        pixels = wide.reshape(len(wide), -1, bands)
        return _undone_differences(pixels, page) if page.get(_PREDICTOR) == _DIFFERENCES else pixels
    layers = []
    for band in range(bands):
        parts = {}
        for tag in (_OFFSETS, _COUNTS, _TILE_OFFSETS, _TILE_COUNTS):
            if tag in page.tags:
                each = len(page.tags[tag]) // bands
                parts[tag] = page.tags[tag][band * each : (band + 1) * each]
        kept = {_PREDICTOR: page.tags[_PREDICTOR]} if _PREDICTOR in page.tags else {}
        layers.append(_by_pillow(_grey(content, page, {**page.tags, **parts}, kept=kept)))
    return np.concatenate(layers, axis=2)


def _grey(
    content: np.ndarray,
    page: _Page,
    tags: Mapping[int, tuple[int, ...]],
    *,
    wider: int = 1,
    kept: Mapping[int, tuple[int, ...]] | None = None,
) -> np.ndarray:
    """The file with a directory at its end by which its pixels are grey, rows `wider` times as long."""
    order = "<" if bytes(content[:2]) == b"II" else ">"
    new = {tag: tags[tag] for tag in (_HEIGHT, _COMPRESSION, _ROWS, _OFFSETS, _COUNTS) if tag in tags}
    new |= {tag: tags[tag] for tag in (_TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS) if tag in tags}
    new |= {tag: (tags[tag][0] * wider,) for tag in (_WIDTH, _TILE_WIDTH) if tag in tags}
    new |= {_BITS: (page.get(_BITS),), _PHOTOMETRIC: (1,), _SAMPLES: (1,), **(kept or {})}
    at = -(-content.size // 2) * 2
    # Lists of more than one value stand behind the directory: 2 bytes, 12 for each entry, 4 for the next page's place.
    behind = at + 2 + 12 * len(new) + 4
    entries, values = struct.pack(order + "H", len(new)), b""
    for tag, numbers in sorted(new.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        place = packed
        if len(packed) > 4:
            place = struct.pack(order + "I", behind + len(values))
            values += packed
        entries += struct.pack(order + "HHI", tag, 4, len(numbers)) + place
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    body = bytes(at - content.size) + entries + bytes(4) + values
    return np.concatenate([np.frombuffer(header, np.uint8), content[8:], np.frombuffer(body, np.uint8)])


def _undone_differences(pixels: np.ndarray, page: _Page) -> np.ndarray:
    """Add up what the predictor stores, band by band and within each tile; overflow wraps round, as it did there."""
    width = pixels.shape[1]
    step = page.get(_TILE_WIDTH, width)
    tiles = [np.cumsum(pixels[:, left : left + step], axis=1, dtype=pixels.dtype) for left in range(0, width, step)]
    return np.concatenate(tiles, axis=1)
