"""Network-size uint8 images to one normalised, padded tensor. Resizing is the data's matter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from toolbox.structures import ImageBatch, PixelStats


class Preprocess(nn.Module):
    """Normalise as the backbone wants it and pad to a multiple of the largest stride, on the model's device.

    Args:
        pixels: what the backbone declares.
        divisor: height and width of the batch become multiples of it.
    """

    factor: Tensor
    offset: Tensor

    def __init__(self, pixels: PixelStats, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor
        self.flip_channels = pixels.order == "bgr"
        # Folded into image * (scale / std) - mean / std: one pass over the pixels.
        std = torch.tensor(pixels.std)
        self.register_buffer("factor", (pixels.scale / std)[:, None, None], persistent=False)
        self.register_buffer("offset", (torch.tensor(pixels.mean) / std)[:, None, None], persistent=False)

    def forward(
        self,
        images: Sequence[Tensor],
        original_sizes: Sequence[tuple[int, int]] | None = None,
        image_ids: Sequence[int] = (),
    ) -> ImageBatch:
        """Images (C, h, w) uint8 of different sizes → (N, C, H, W), top left aligned, zero on padding.

        Raises:
            ValueError: another number of sizes or ids than of images, or none; or images of other channels.
        """
        for name, values in (("original_sizes", original_sizes), ("image_ids", image_ids)):
            if values and len(values) != len(images):
                raise ValueError(f"{len(images)} images, but {len(values)} {name}")
        if not images:
            raise ValueError("there is no image in the batch")
        channels = self.factor.shape[0]
        other = [tuple(image.shape) for image in images if image.shape[0] != channels]
        if other:  # a single channel would be broadcast to all
            raise ValueError(f"an image is {other[0]}, but the model reads ({channels}, height, width)")
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        height, width = (-(-max(size[axis] for size in sizes) // self.divisor) * self.divisor for axis in range(2))
        device = self.factor.device
        tensor = torch.zeros(len(images), channels, height, width, device=device, dtype=self.factor.dtype)
        tensor = tensor.contiguous(memory_format=torch.channels_last)
        for row, image, (h, w) in zip(tensor, images, sizes, strict=True):
            pixels = image.to(device, non_blocking=True)
            pixels = pixels.flip(0) if self.flip_channels else pixels
            row[:, :h, :w] = pixels * self.factor - self.offset
        both = torch.tensor([sizes, [tuple(size) for size in original_sizes or sizes]])
        if device.type == "cuda":
            both = both.pin_memory()
        own, original = both.to(device, non_blocking=True)
        return ImageBatch(tensor, own, original, list(image_ids) or list(range(len(images))))
