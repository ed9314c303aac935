"""Photometric augmentations: torchvision.transforms.v2 classes, with their randomness keyed like everything else.

Geometry is this toolbox's own. torchvision's geometric classes are not offered: its horizontal flip does not swap left
and right joints and mirrors points by W − 1 − x but boxes by W − x, its crops leave joints outside the canvas, and each
of them would resample the pixels once more.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from torchvision.transforms import v2

from toolbox.data.interfaces import View
from toolbox.data.transforms import check_probability
from toolbox.registry import TRANSFORMS

_OWN = "it moves boxes, masks and keypoints, which torchvision does by other rules"
_MIXES = "it mixes the images of a batch, and boxes do not mix; CopyPaste puts objects of one image over another"
_POLICY = "it moves pixels and not the boxes on them; list the photometric transforms you want"
_GREY_OR_RGB = (1, 3)  # channels: torchvision defines these edits for no others

# Names that people bring from torchvision → why they are not here and what to write.
REFUSED: dict[str, str] = {
    "RandomHorizontalFlip": f"{_OWN}; use HorizontalFlip",
    "RandomVerticalFlip": f"{_OWN}; use VerticalFlip",
    "Resize": f"{_OWN}; set data.resize",
    "RandomResize": f"{_OWN}; set data.resize with a list of short edges",
    "RandomShortestSize": f"{_OWN}; set data.resize with a list of short edges",
    "RandomResizedCrop": f"{_OWN}; use ScaleJitter",
    "RandomIoUCrop": f"{_OWN}; use MinIoUCrop",
    "RandomZoomOut": f"{_OWN}; use ScaleJitter",
    "CenterCrop": f"{_OWN}; use RandomCrop",
    "Pad": f"{_OWN}; use RandomCrop or ScaleJitter, which pad",
    "RandomPerspective": "it is not an affine map, and masks and joints follow affine maps only",
    "ElasticTransform": "it is not an affine map, and masks and joints follow affine maps only",
    "AutoAugment": _POLICY,
    "RandAugment": _POLICY,
    "TrivialAugmentWide": _POLICY,
    "AugMix": _POLICY,
    "MixUp": _MIXES,
    "CutMix": _MIXES,
    "Normalize": "the backbone declares its mean and std; images stay uint8",
    "ToDtype": "images stay uint8 up to the model",
    "RandomPhotometricDistort": "it is called PhotometricDistort here",
    "RandomAdjustSharpness": "it is called RandomSharpness here",
    "JPEG": "it is called RandomJPEG here",
    "Grayscale": "use RandomGrayscale with prob: 1",
}
for _name, _reason in REFUSED.items():
    TRANSFORMS.refuse(_name, _reason)


def _apply(image: np.ndarray, transform: torch.nn.Module, seed: int) -> np.ndarray:
    """Run a torchvision transform on (h, w, C) uint8; torch's CPU generator is as it was afterwards."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs too
        edited = transform(pixels)
    finally:
        torch.set_rng_state(state)
    return np.ascontiguousarray(edited.permute(1, 2, 0).numpy())


class _Photometric:
    """A torchvision transform applied with probability `prob`, under a seed drawn from the image's own generator."""

    def __init__(self, prob: float, transform: type[torch.nn.Module], *arguments: Any, **settings: Any) -> None:
        self.prob = check_probability(prob)
        self.transform = transform(*arguments, **settings)

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        seed = int(rng.integers(2**63))
        chosen = rng.random() < self.prob
        return view.edited(partial(_apply, transform=self.transform, seed=seed)) if chosen else view


@TRANSFORMS.register
class ColorJitter(_Photometric):
    """Brightness, contrast, saturation by factors within 1 ± the value, hue turned by at most the value (up to 0.5)."""

    channels: ClassVar[tuple[int, ...]] = _GREY_OR_RGB

    def __init__(
        self,
        *,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.4,
        hue: float = 0.0,
        prob: float = 1.0,
    ) -> None:
        super().__init__(prob, v2.ColorJitter, brightness, contrast, saturation, hue)


@TRANSFORMS.register
class PhotometricDistort(_Photometric):
    """SSD's distortion: brightness, contrast, saturation, hue and channel order, each with a chance of one half."""

    channels: ClassVar[tuple[int, ...]] = _GREY_OR_RGB

    def __init__(self, *, prob: float = 1.0) -> None:
        super().__init__(prob, v2.RandomPhotometricDistort, p=0.5)


@TRANSFORMS.register
class RandomGrayscale(_Photometric):
    """All colour taken away."""

    channels: ClassVar[tuple[int, ...]] = (3,)

    def __init__(self, *, prob: float = 0.1) -> None:
        super().__init__(prob, v2.Grayscale, num_output_channels=3)


@TRANSFORMS.register
class GaussianBlur(_Photometric):
    """Blur with a standard deviation drawn between `min_sigma` and `max_sigma` pixels of the network's image."""

    def __init__(self, *, min_sigma: float = 0.1, max_sigma: float = 2.0, prob: float = 0.5) -> None:
        kernel = 2 * max(1, round(3 * max_sigma)) + 1
        super().__init__(prob, v2.GaussianBlur, kernel, sigma=(min_sigma, max_sigma))


@TRANSFORMS.register
class GaussianNoise(_Photometric):
    """Independent noise with standard deviation `sigma`, in units of the full range 0 … 1."""

    def __init__(self, *, sigma: float = 0.05, prob: float = 0.5) -> None:
        super().__init__(prob, v2.GaussianNoise, sigma=sigma)


@TRANSFORMS.register
class RandomSharpness(_Photometric):
    """Sharpen, or with a factor below 1 soften."""

    channels: ClassVar[tuple[int, ...]] = _GREY_OR_RGB

    def __init__(self, *, factor: float = 2.0, prob: float = 0.5) -> None:
        super().__init__(prob, v2.RandomAdjustSharpness, factor, p=1.0)


@TRANSFORMS.register
class RandomAutocontrast(_Photometric):
    """Stretch each channel to the full range."""

    channels: ClassVar[tuple[int, ...]] = _GREY_OR_RGB

    def __init__(self, *, prob: float = 0.5) -> None:
        super().__init__(prob, v2.RandomAutocontrast, p=1.0)


@TRANSFORMS.register
class RandomEqualize(_Photometric):
    """Flatten each channel's histogram."""

    def __init__(self, *, prob: float = 0.5) -> None:
        super().__init__(prob, v2.RandomEqualize, p=1.0)


@TRANSFORMS.register
class RandomInvert(_Photometric):
    """The negative: useful where bright-field and dark-field images meet."""

    def __init__(self, *, prob: float = 0.5) -> None:
        super().__init__(prob, v2.RandomInvert, p=1.0)


@TRANSFORMS.register
class RandomJPEG:
    """JPEG artefacts of a quality drawn between `min_quality` and `max_quality`."""

    channels: ClassVar[tuple[int, ...]] = _GREY_OR_RGB

    def __init__(self, *, min_quality: int = 40, max_quality: int = 95, prob: float = 0.5) -> None:
        if not 1 <= min_quality <= max_quality <= 100:
            raise ValueError(
                f"min_quality is 1 to max_quality, which is 100 at most, got {min_quality} and {max_quality}"
            )
        self.qualities = (min_quality, max_quality)
        self.prob = check_probability(prob)

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        quality = int(rng.integers(*self.qualities, endpoint=True))
        return view.edited(partial(_through_jpeg, quality=quality)) if rng.random() < self.prob else view


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    grey = image.shape[2] == 1
    pixels = image if grey else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED))
    return decoded[..., None] if grey else cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
