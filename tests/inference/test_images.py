"""Images in any form become one form; a bad file is named in the error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch

from toolbox.errors import DataError
from toolbox.inference.images import as_image, read_image

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_arrays_tensors_and_pil_images_give_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    PIL.Image.fromarray(PIXELS).save(path)
    forms = (PIXELS, PIL.Image.fromarray(PIXELS), torch.from_numpy(PIXELS).permute(2, 0, 1), path, str(path))
    for form in forms:
        assert np.array_equal(as_image(form), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pil_does(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "turned.png"
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(PIXELS).save(path, exif=exif)
    with PIL.Image.open(path) as stored:
        assert np.array_equal(read_image(path), np.asarray(PIL.ImageOps.exif_transpose(stored)))


def test_missing_empty_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "folder.jpg").mkdir()
    for name, message in (
        ("none.jpg", "no such file"),
        ("empty.jpg", "not an image"),
        ("text.jpg", "not an image"),
        ("folder.jpg", "this is a folder"),
    ):
        with pytest.raises(DataError, match=f"{name}: .*{message}"):
            read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((20, 30), np.uint8), r"array of shape \(20, 30\)"),
        (np.zeros((20, 30, 3), np.float32), "multiply values of 0 … 1 by 255"),
        (torch.zeros(20, 30, 3, dtype=torch.uint8), r"tensor of shape \(20, 30, 3\)"),
        (torch.zeros(2, 3, 20, 30, dtype=torch.uint8), r"tensor of shape \(2, 3, 20, 30\)"),
        (np.zeros((0, 30, 3), np.uint8), r"array of shape \(0, 30, 3\)"),
        (PIL.Image.new("I", (0, 5)), "PIL image of 0 x 5 pixels"),
        (7, "got int; an image is a path"),
    ],
)
def test_other_shapes_and_types_are_refused_with_what_fits(source: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_image(source)


def test_images_of_other_channels_are_taken_in_every_form_that_can_hold_them() -> None:
    grey = PIL.Image.fromarray(PIXELS).convert("L")
    assert np.array_equal(as_image(PIL.Image.fromarray(PIXELS), 1)[..., 0], np.asarray(grey))
    four = np.dstack([PIXELS, PIXELS[..., :1]])
    for form in (four, PIL.Image.fromarray(four), torch.from_numpy(four).permute(2, 0, 1)):
        assert np.array_equal(as_image(form, 4), four)
    with pytest.raises(DataError, match=r"PIL image of mode RGB; .* \(h, w, 4\) uint8 array, a PIL image or"):
        as_image(PIL.Image.fromarray(PIXELS), 4)
    with pytest.raises(DataError, match="PIL image of mode L; "):
        as_image(grey, 4)
    with pytest.raises(DataError, match=r"PIL image of mode RGBA; .* \(h, w, 5\) uint8 array, or a \(5, h, w\)"):
        as_image(PIL.Image.fromarray(four), 5)
    with pytest.raises(DataError, match=r"array of shape \(20, 30, 3\) .* \(h, w, 1\) uint8 array"):
        as_image(PIXELS, 1)


def test_pil_images_of_sixteen_bits_are_scaled_and_of_floats_refused() -> None:
    deep = np.array([[0, 128, 129, 257, 65535]], np.uint16)
    assert as_image(PIL.Image.fromarray(deep))[0, :, 0].tolist() == [0, 0, 1, 1, 255]  # x · 255 / 65535, to the nearest
    assert as_image(PIL.Image.fromarray(deep.astype(np.int32)))[0, :, 2].tolist() == [0, 0, 1, 1, 255]
    with pytest.raises(DataError, match=r"PIL image of -1 … 5; convert it to 8 or 16 bits"):
        as_image(PIL.Image.fromarray(np.array([[-1, 5]], np.int32)))
    with pytest.raises(DataError, match="PIL image of mode F"):
        as_image(PIL.Image.fromarray(PIXELS[..., 0].astype(np.float32)))


def test_views_that_cannot_be_written_become_arrays_that_torch_takes_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    locked = PIXELS[:, ::-1]
    locked.flags.writeable = False
    assert np.array_equal(torch.from_numpy(as_image(locked)).numpy(), PIXELS[:, ::-1])
    torch.from_numpy(as_image(PIL.Image.fromarray(PIXELS)))
    assert not recwarn.list
