"""Geometric and photometric augmentations."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from toolbox.data import photometry
from toolbox.data.interfaces import View
from toolbox.data.rendering import render
from toolbox.data.transforms import HorizontalFlip, RandomCrop, ScaleJitter, VerticalFlip
from toolbox.registry import TRANSFORMS, RegistryError

PHOTOMETRIC = [name for name in TRANSFORMS if TRANSFORMS.get(name).__module__ == photometry.__name__]


def picture(height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(1).integers(20, 200, (height, width, 3), dtype=np.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_flips_happen_with_their_probability() -> None:
    generator = rng()
    for flip in (HorizontalFlip, VerticalFlip):
        moved = [not np.array_equal(flip(prob=0.3)(View(4, 6), generator).matrix, np.eye(2, 3)) for _ in range(2000)]
        assert 0.25 < np.mean(moved) < 0.35
        assert not any(flip(prob=0)(View(4, 6), generator).matrix[:, 2].any() for _ in range(50))


def test_random_crop_cuts_an_exact_piece_of_a_larger_image() -> None:
    image = picture(24, 32)
    places = set()
    for seed in range(200):
        view = RandomCrop(height=20, width=30)(View(24, 32), rng(seed))
        left, top = (-view.matrix[:, 2]).astype(int)
        assert np.array_equal(render(image, view), image[top : top + 20, left : left + 30])
        places.add((left, top))
    assert places == {(left, top) for left in range(3) for top in range(5)}


def test_random_crop_pads_a_smaller_image_at_the_right_and_bottom() -> None:
    image = picture(24, 32)
    canvas = render(image, RandomCrop(height=30, width=40, fill=(5, 6, 7))(View(24, 32), rng()))
    assert canvas.shape == (30, 40, 3)
    assert np.array_equal(canvas[:24, :32], image)
    assert (canvas[24:] == (5, 6, 7)).all()
    assert (canvas[:, 32:] == (5, 6, 7)).all()


def test_scale_jitter_is_one_resize_and_one_crop_onto_its_canvas() -> None:
    image = picture(24, 32)
    jitter = ScaleJitter(height=40, width=40, min_scale=0.5, max_scale=2)
    scales = []
    for seed in range(60):
        view = jitter(View(24, 32), rng(seed))
        width, height = round(view.matrix[0, 0] * 32), round(view.matrix[1, 1] * 24)
        left, top = np.rint(-view.matrix[:, 2]).astype(int)
        piece = cv2.resize(image, (width, height))[top : top + 40, left : left + 40]
        canvas = render(image, view)
        assert canvas.shape == (40, 40, 3)
        assert np.array_equal(canvas[: piece.shape[0], : piece.shape[1]], piece)
        scales.append(width / 40)  # 32 wide fits the canvas at 40
    assert 0.48 < min(scales) < 0.65
    assert 1.75 < max(scales) < 2.02


def test_scale_jitter_makes_the_resize_before_it_irrelevant() -> None:
    jitter = ScaleJitter(height=64, width=64)
    direct = jitter(View(24, 32), rng(3))
    resized = jitter(View(24, 32).moved(np.array([[10, 0, 0], [0, 10, 0.0]]), 240, 320), rng(3))
    assert np.allclose(direct.matrix, resized.matrix)


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_photometry_depends_on_its_own_key_only_and_leaves_torchs_generator_alone(name: str) -> None:
    transform = TRANSFORMS.get(name)(prob=1.0)
    image = picture()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    view = transform(View(24, 32), rng(5))
    first = render(image, view)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = render(image, pickle.loads(pickle.dumps(view)))
    assert np.array_equal(first, again)
    assert first.shape == image.shape
    assert first.dtype == np.uint8
    assert not np.array_equal(first, image)
    assert np.array_equal(view.matrix, np.eye(2, 3))


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_photometry_with_probability_zero_edits_nothing(name: str) -> None:
    assert TRANSFORMS.get(name)(prob=0.0)(View(24, 32), rng()).edits == ()


def test_invert_is_torchvisions() -> None:
    image = picture()
    expected = v2.functional.invert(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.array_equal(render(image, photometry.RandomInvert(prob=1.0)(View(24, 32), rng())), expected)
    assert np.array_equal(expected, 255 - image)


def test_edits_are_made_in_the_order_of_the_list() -> None:
    view = photometry.RandomGrayscale(prob=1.0)(View(24, 32), rng())
    view = photometry.RandomInvert(prob=1.0)(view, rng())
    edited = render(picture(), view)
    grey = cv2.cvtColor(picture(), cv2.COLOR_RGB2GRAY).astype(int)
    assert np.abs(edited.astype(int) - (255 - grey)[..., None]).max() <= 1  # the two round differently


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="prob lies between 0 and 1, got 1.5"):
        HorizontalFlip(prob=1.5)
    with pytest.raises(ValueError, match="min_scale is more than 0 and at most max_scale"):
        ScaleJitter(min_scale=2, max_scale=1)
    with pytest.raises(ValueError, match="height is 1 pixel or more, got 0\nwidth is 1 pixel or more, got -3"):
        RandomCrop(height=0, width=-3)
    with pytest.raises(ValueError, match="hue"):
        photometry.ColorJitter(hue=0.7)


def test_refused_torchvision_names_exist_there_and_are_not_registered_here() -> None:
    for name in photometry.REFUSED:
        assert hasattr(v2, name)
        assert name not in TRANSFORMS


def test_a_torchvision_name_in_a_config_gets_the_reason_and_what_to_write() -> None:
    with pytest.raises(RegistryError, match="transform 'RandomIoUCrop' is not offered: it moves boxes.*MinIoUCrop"):
        TRANSFORMS.get("RandomIoUCrop")
