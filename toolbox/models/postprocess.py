"""Detections from network pixels to original pixels, image by image, on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    values = {name: value.cpu() for name, value in detections.instance.items()}
    results = []
    for image, (height, width) in enumerate(images.original_sizes.tolist()):
        rows = valid[image]
        fields: dict[str, Any] = {}
        for name, head in heads.items():
            own = head.to_image(values[name][image, rows], boxes[image, rows], height, width)
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
