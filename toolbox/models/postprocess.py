"""Detections from network pixels to original pixels, image by image, on the host."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from toolbox.models.boxes import clip_boxes
from toolbox.models.interfaces import InstanceHead
from toolbox.structures import DetectionBatch, Detections, ImageBatch


def to_original(detections: DetectionBatch, images: ImageBatch, heads: Mapping[str, InstanceHead]) -> list[Detections]:
    """Scale boxes back, drop padding, and let each instance head finish its values for the image.

    Args:
        detections: (N, D, …) in network pixels.
        images: sizes before and after resizing.
        heads: the instance heads by branch name.
    """
    scales = images.scales.flip(1).repeat(1, 2)[:, None, :].to(detections.boxes.dtype)  # x y x y
    boxes = clip_boxes(detections.boxes / scales, images.original_sizes).cpu()
    scores, labels, valid = detections.scores.cpu(), detections.labels.cpu(), detections.valid.cpu()
    values = {
        name: value if works_on_network_pixels(heads[name]) else value.cpu()
        for name, value in detections.instance.items()
    }
    network_sizes = images.sizes.tolist()
    results = []
    for image, (height, width) in enumerate(images.original_sizes.tolist()):
        rows = valid[image]
        fields: dict[str, Any] = {}
        for name, head in heads.items():
            own = finish(
                head,
                values[name][image, rows.to(values[name].device)],
                boxes[image, rows],
                (height, width),
                detections.boxes[image, rows.to(detections.boxes.device)],
                network_sizes[image],
            )
            twice = fields.keys() & own.keys()
            if twice:
                raise ValueError(f"branch '{name}' gives '{twice.pop()}', which another branch gives already")
            fields.update(own)
        results.append(
            Detections(
                image_size=(height, width),
                boxes=boxes[image, rows],
                scores=scores[image, rows],
                labels=labels[image, rows],
                masks=fields.pop("masks", None),
                keypoints=fields.pop("keypoints", None),
                extras=fields,
                image_id=images.image_ids[image],
            )
        )
    return results


def finish(
    head: InstanceHead,
    values: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    network_boxes: Tensor,
    network_size: tuple[int, int],
) -> Mapping[str, Any]:
    """A head's `to_image` with what it takes.

    Args:
        head: of an instance branch.
        values: (D, …), what it kept of an image's detections.
        boxes: (D, 4) in original pixels.
        size: height and width of the original image.
        network_boxes: (D, 4) in network pixels.
        network_size: height and width of the image at network size.
    """
    to_image: Any = head.to_image
    if not works_on_network_pixels(head):
        return to_image(values, boxes, *size)
    return to_image(values, boxes, *size, network_boxes=network_boxes, network_size=network_size)


def works_on_network_pixels(head: InstanceHead) -> bool:
    """Whether a head's `to_image` asks for the boxes in network pixels, and so for values on the device."""
    return "network_boxes" in inspect.signature(head.to_image).parameters
