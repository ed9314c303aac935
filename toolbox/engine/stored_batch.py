"""Batches as named tensors and plain values, for files that hold nothing else, and what is wrong in their targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolbox.masks import BitmapMask, InstanceMasks, Mask, masks_from_arrays, masks_to_arrays
from toolbox.structures import Batch, Targets

_TENSORS = tuple(entry.name for entry in fields(Targets) if entry.name != "masks")


def batch_to_tensors(batch: Batch) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A batch taken apart.

    Returns:
        `image.<i>`, `targets.<field>` and `masks.<array>`; and ids and sizes as plain values. Masks of a plugin's own
        class cannot be told from outside: they are left out, and their class is named as `lost_masks`.
    """
    tensors = {f"image.{index}": image for index, image in enumerate(batch.images)}
    told: dict[str, Any] = {
        "images": len(batch),
        "image_ids": list(batch.image_ids),
        "original_sizes": [[int(height), int(width)] for height, width in batch.original_sizes],
        "lost_masks": None,
    }
    if batch.targets is not None:
        tensors |= {
            f"targets.{name}": value
            for name in _TENSORS
            if isinstance(value := getattr(batch.targets, name, None), Tensor)
        }
        masks = batch.targets.masks
        if isinstance(masks, InstanceMasks):
            tensors |= {f"masks.{name}": torch.from_numpy(a) for name, a in masks_to_arrays(masks).items()}
        elif masks is not None:
            told["lost_masks"] = type(masks).__name__
    return tensors, told


def batch_from_tensors(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> Batch:
    """What `batch_to_tensors` took apart.

    Raises:
        KeyError, ValueError, TypeError: something is missing, or contradicts the rest.
    """
    arrays = {name.removeprefix("masks."): t.numpy() for name, t in tensors.items() if name.startswith("masks.")}
    given = {name: tensors[f"targets.{name}"] for name in _TENSORS if f"targets.{name}" in tensors}
    targets = Targets(**given, masks=masks_from_arrays(arrays) if arrays else None) if given else None
    images = [tensors[f"image.{index}"] for index in range(told["images"])]
    if not images or any(image.ndim != 3 or image.dtype != torch.uint8 for image in images):
        raise ValueError("an image is not (C, h, w) of uint8")
    if targets is not None and len(targets.boxes) != len(images):
        raise ValueError(f"{len(images)} images have {len(targets.boxes)} rows of targets")
    return Batch(
        images=images,
        original_sizes=[(int(height), int(width)) for height, width in told["original_sizes"]],
        image_ids=list(told["image_ids"]),
        targets=targets,
    )


def faults_in(batch: Batch) -> list[str]:
    """Targets that are not finite, each with its image's id: data that is at fault, not the training."""
    if batch.targets is None:
        return []
    faults = []
    for row, image_id in enumerate(batch.image_ids):
        for name in ("boxes", "area", "keypoints"):
            value = getattr(batch.targets, name)
            faults += [] if value is None else _not_finite(f"image {image_id}: {name}", value[row])
        masks = batch.targets.masks
        if isinstance(masks, InstanceMasks):
            faults += [
                f"image {image_id}: the mask of object {index} is not finite"
                for index, mask in enumerate(masks.images[row])
                if not _is_finite(mask)
            ]
    return faults


def _not_finite(what: str, values: Tensor) -> list[str]:
    """(G, …) → a line for the first object whose values are not all finite."""
    bad = (~values.isfinite()).reshape(len(values), -1).any(1).nonzero().flatten().tolist()
    if not bad:
        return []
    more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
    return [f"{what} of object {bad[0]} {values[bad[0]].flatten().tolist()}{more}"]


def _is_finite(mask: Mask) -> bool:
    own = [mask.matrix] if isinstance(mask, BitmapMask) else [mask.matrix, *mask.parts]
    return all(bool(np.isfinite(values).all()) for values in own)
