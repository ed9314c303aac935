"""Image files to uint8 pixels of as many channels as a data set says."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import PIL.ExifTags
import PIL.Image

from toolbox.data import tiff
from toolbox.data.image_doubts import doubt_fourth_band, doubt_range
from toolbox.data.image_faults import BadImage, cut_jpeg, why_unreadable
from toolbox.data.opencv_decoder import decoded_by_opencv
from toolbox.errors import DataError, counted

NUMPY_FILE = b"\x93NUMPY"
_GIF, _AVIF, _JPEG2000 = b"GIF8", b"ftypavi", b"\0\0\0\x0cjP  "
_TURNS = (b"eXIf", b"Raw profile type", b"tiff:Orientation")  # where a PNG says how it is turned
_COLOURS = {1: "grey", 2: "grey with alpha", 3: "RGB", 4: "RGBA"}


def read_image(
    path: Path, size: tuple[int, int] | None = None, channels: int = 3, *, upright: bool = False
) -> np.ndarray:
    """Read an image file as (h, w, channels) uint8.

    * 3 channels are RGB: grey is repeated, palettes and CMYK are converted, an alpha channel is dropped.
    * 1 channel is grey: colour becomes luminance.
    * 4 channels are RGBA, or the 4 bands of a TIFF.
    * Any other number: a TIFF of so many bands, or of so many pages of one band.
    * A `.npy` file holds (h, w, channels), or (h, w) for one channel.

    16 bits are scaled to 8 by their full range, with a warning where they use little of it. Of several pages or frames
    the first is read. Pixels are taken as stored and an EXIF rotation is not applied, because COCO annotations refer to
    the stored pixels; the one exception is a declared `size` that fits only the rotated image, as some annotation tools
    write it.

    Args:
        path: of the file.
        size: height and width that the annotations declare.
        channels: of the result.
        upright: turn the image as its EXIF data says, whatever the declared size.

    Raises:
        DataError: the file is missing, is not an image, or has another size or other channels.
    """
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: {_why_not_opened(path, error)}") from error
    try:
        stored = _decoded(content, channels)
        doubt_range(path, stored)
        if channels in (1, 3) and stored.shape[2] == 4 and tiff.is_tiff(content[:4].tobytes()):
            doubt_fourth_band(path, transparent=tiff.is_transparency_fourth(content))
        image = _with_channels(eight_bits(stored), channels)
        turned = image
        if upright or (size is not None and image.shape[:2] != tuple(size)):
            turned = turned_upright(image, _orientation(content))
    except (BadImage, MemoryError, cv2.error) as error:
        reason = str(error) if isinstance(error, BadImage) else why_unreadable(content)
        raise DataError(f"{path}: {reason}") from None
    if upright or size is None or turned.shape[:2] == tuple(size):
        return turned
    swapped = image.shape[:2] == tuple(size)[::-1]
    reason = "width and height are swapped there" if swapped else "annotations of a resized copy do not fit"
    raise DataError(
        f"{path}: image is {image.shape[1]} x {image.shape[0]} (width x height), but the annotations declare "
        f"{size[1]} x {size[0]}; {reason}, correct the one or the other"
    )


def turned_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo one of EXIF's eight orientations of (h, w, C); unknown numbers leave the image as it is."""
    if orientation not in range(2, 9):
        return image
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(image[rows, columns])


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint16 to uint8 by the full range, rounded to the nearest; uint8 as it is.

    Raises:
        BadImage: pixels of another type.
    """
    if pixels.dtype == np.uint16:
        # In uint16, as an image of a gigabyte has no room for a wider copy: x · 255 / 65535 is x / 257.
        return (pixels // 257 + (pixels % 257 > 128)).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise BadImage(
            f"pixels are {pixels.dtype}; convert the image to 8 or 16 bits a channel, with the range of values you want"
        )
    return pixels


def _why_not_opened(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file; " + ("it is a link to nowhere" if path.is_symlink() else "check the name and the folder")
    if isinstance(error, IsADirectoryError):
        return "this is a folder, not an image; take it away, or give the files in it"
    advice = "let this user read it" if isinstance(error, PermissionError) else "replace the file"
    return f"image cannot be read ({error.strerror}); {advice}"


def _decoded(content: np.ndarray, channels: int) -> np.ndarray:
    """Pixels (h, w, c) as stored, colours in the order R G B A."""
    start = content[:16].tobytes()
    if start.startswith(NUMPY_FILE):
        return _from_numpy(content)
    if tiff.is_tiff(start):
        return tiff.read_tiff(content, channels)
    if start.startswith(_GIF):
        return _from_pillow(content)
    pixels = decoded_by_opencv(content)
    if pixels is None and (_AVIF in start or start.startswith(_JPEG2000)):
        return _from_pillow(content)  # not every build of OpenCV knows the one, and none all kinds of the other
    if pixels is None or cut_jpeg(content):
        raise BadImage(why_unreadable(content))
    return pixels


def _from_pillow(content: np.ndarray) -> np.ndarray:
    """The first frame as RGB, or RGBA where some of it is transparent."""
    try:
        with PIL.Image.open(io.BytesIO(content.tobytes()), formats=("GIF", "AVIF", "JPEG2000")) as image:
            clear = "transparency" in image.info or image.mode in ("RGBA", "LA")
            return np.array(image.convert("RGBA" if clear else "RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError):
        raise BadImage(why_unreadable(content)) from None


def _from_numpy(content: np.ndarray) -> np.ndarray:
    try:
        pixels = np.load(io.BytesIO(content.tobytes()), allow_pickle=False)
    except Exception as error:  # its header is parsed as Python, which fails in a dozen ways
        raise BadImage(f"not an array that NumPy reads ({error}); write it again by numpy.save") from None
    if pixels.ndim not in (2, 3) or not pixels.size:
        raise BadImage(f"the array has the shape {pixels.shape}; an image is (height, width, channels)")
    native = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("="))
    return native if native.ndim == 3 else native[..., None]


def _with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(h, w, c) to (h, w, channels)."""
    there = pixels.shape[2]
    if there == channels:
        return pixels
    conversions = {
        (1, 3): cv2.COLOR_GRAY2RGB,
        (4, 3): cv2.COLOR_RGBA2RGB,
        (3, 1): cv2.COLOR_RGB2GRAY,
        (4, 1): cv2.COLOR_RGBA2GRAY,
    }
    if (there, channels) in conversions:
        converted = cv2.cvtColor(pixels, conversions[there, channels])
        return converted if converted.ndim == 3 else converted[..., None]
    if there == 2 and channels in (1, 3):
        return np.repeat(pixels[..., :1], channels, axis=2)
    kind = f" ({_COLOURS[there]})" if there in _COLOURS else ""
    remedy = f"set 'channels: {there}' for such images, or write files of {counted(channels, 'channel')}"
    if channels not in (1, 3):
        remedy += f" ({'RGBA, ' if channels == 4 else ''}a TIFF of {channels} bands, or .npy)"
    raise BadImage(f"image has {counted(there, 'channel')}{kind}, but {channels} are read; {remedy}")


def _orientation(content: np.ndarray) -> int:
    """EXIF's number for how the stored pixels are turned; 1 is upright.

    Only the header is read, by Pillow's own reader of each format: `PIL.Image.open` refuses large images.
    """
    start = content[:16].tobytes()
    if tiff.is_tiff(start):
        return tiff.orientation(content)
    readers = {b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WEBP"}
    known = next((name for signature, name in readers.items() if start.startswith(signature)), None)
    if known is None:
        return 1
    file = content.tobytes()
    if known == "PNG" and not any(mark in file for mark in _TURNS):
        return 1  # Pillow would decode all pixels to look behind them
    PIL.Image.init()
    try:
        with PIL.Image.OPEN[known][0](io.BytesIO(file), "") as header:
            return int(header.getexif().get(PIL.ExifTags.Base.Orientation, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError):
        return 1  # the pixels are whole, and what stands beside them is not
