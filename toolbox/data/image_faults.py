"""What is wrong with a file that should be an image, in words that say what to do."""

from __future__ import annotations

import io
import warnings

import numpy as np
import PIL.Image

LARGEST = 2**30  # pixels that OpenCV decodes unless OPENCV_IO_MAX_IMAGE_PIXELS says more
LONGEST = 2**20  # pixels of a side

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1", b"ftypheim")
_READ = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "SUN", "TIFF", "WEBP")  # Pillow's names
_ALIKE = {"CUR": "TGA or CUR"}  # begin the same
_DOWNLOAD = "download the image again"
# How a file begins → what it is and what to do.
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype html", f"not an image but a web page, as servers send in place of a missing file; {_DOWNLOAD}"),
    (b"<html", f"not an image but a web page, as servers send in place of a missing file; {_DOWNLOAD}"),
    (b"<svg", "not an image of pixels but an SVG drawing; convert it to PNG"),
    (b"<?xml", f"not an image but XML: an SVG drawing, to be converted to PNG, or a server's error; {_DOWNLOAD}"),
    (b"{", f"not an image but JSON, such as a server's error; {_DOWNLOAD}"),
    (b"%pdf", "not an image but a PDF; convert its pages to PNG"),
    (b"version https://git-lfs", "not an image but Git LFS's pointer to one; run 'git lfs pull'"),
    (b"pk\x03\x04", "not an image but a ZIP archive; unpack it"),
    (b"\x1f\x8b", "not an image but a gzip archive; unpack it"),
    (b"\x89hdf", "not an image but an HDF5 file; write its arrays as .npy"),
)


class BadImage(Exception):
    """What is wrong with an image, not yet with its file's name."""


def why_unreadable(content: np.ndarray) -> str:
    """Say what the bytes (n,) uint8 of a file are that no decoder took, and what to do."""
    start = content[:1024].tobytes()
    if not start:
        return "not an image: the file is empty (0 bytes); copy or download it again"
    if any(brand in start[:16] for brand in _HEIC):
        return "an HEIC image, which is not read; convert it to JPEG or PNG"
    if not content.any():
        return f"not an image: {content.size} bytes that are all zero, as a broken copy leaves them; copy it again"
    opening = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for signature, meaning in _FOREIGN:
        if opening.startswith(signature):
            return meaning
    kind, size = _header(content)
    if kind is not None and kind not in _READ:
        return f"by its beginning a file of the kind {_ALIKE.get(kind, kind)}, which is not read; convert it to PNG"
    if size and (size[0] * size[1] > LARGEST or max(size) > LONGEST):
        return (
            f"image is {size[0]} x {size[1]} (width x height); at most {LARGEST} pixels and {LONGEST} a side are read, "
            "as memory would not do for more; cut it into tiles or shrink it"
        )
    if size and size[0] * size[1] > LARGEST // 4:
        return (
            f"not an image that could be decoded: {kind} of {size[0]} x {size[1]}, cut short, or too large for this "
            "machine's memory; replace the file, or cut it into tiles"
        )
    if kind is None and _is_text(start):
        return f"not an image but text ({content.size} bytes); replace the file"
    what = (
        "not an image that OpenCV can decode" if kind is None else f"not an image that can be decoded: {kind}, damaged"
    )
    return f"{what}, or cut short ({content.size} bytes); replace the file"


def cut_jpeg(file: np.ndarray) -> bool:
    """Whether a JPEG lacks its end: up to OpenCV 4.10, the missing part is made grey without a word."""
    if bytes(file[:2]) != _JPEG_START or bytes(file[-2:]) == _JPEG_END:
        return False
    content = file.tobytes()
    at = len(_JPEG_START)
    # Segments that say their length, up to the first scan; a preview among them may have an end of its own.
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] not in (b"\xda", b"\xd9"):
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big") if content[at + 1] != 0xFF else 1
    # In scans, 0xff is followed by 0 or a restart marker; what follows the end (padding, a maker's data) is allowed.
    return content.find(_JPEG_END, at) < 0


def _header(content: np.ndarray) -> tuple[str | None, tuple[int, int] | None]:
    """Format, and width and height, as far as the file's beginning tells."""
    PIL.Image.init()
    start = content[:16].tobytes()
    for name in PIL.Image.ID:
        factory, accepts = PIL.Image.OPEN[name]
        try:
            # Not PIL.Image.open: it refuses large images before it has said how large they are.
            if accepts is not None and accepts(start) is True:
                with warnings.catch_warnings(action="ignore"), factory(io.BytesIO(content.tobytes()), "") as image:
                    return name, image.size
        except Exception:  # whatever a reader trips over: the file is damaged
            return name, None
    return None, None


def _is_text(start: bytes) -> bool:
    printable = sum(byte >= 32 or byte in b"\t\r\n" for byte in start)
    return printable == len(start)
