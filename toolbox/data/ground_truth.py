"""The objects of any data set as a COCO dict, for those that have no COCO file."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolbox.data.interfaces import Dataset, Sample


def coco_ground_truth(dataset: Dataset) -> dict[str, Any]:
    """Load every sample and write its objects as COCO does; masks become RLE, annotation ids count from 1."""
    images = []
    annotations: list[dict[str, Any]] = []
    for index in range(len(dataset)):
        sample = dataset.load(index)
        height, width = sample.image.shape[:2]
        images.append({"id": sample.image_id, "file_name": f"{sample.image_id}.png", "height": height, "width": width})
        for row in range(len(sample)):
            annotation = _annotation(sample, row, dataset.category_ids)
            annotations.append({"id": len(annotations) + 1, **annotation})
    joints: dict[str, Any] = {}
    if dataset.skeleton is not None:
        limbs = [[a + 1, b + 1] for a, b in dataset.skeleton.limbs]
        joints = {"keypoints": list(dataset.skeleton.names), "skeleton": limbs}
    categories = [
        {"id": category_id, "name": name, **joints}
        for category_id, name in zip(dataset.category_ids, dataset.classes, strict=True)
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _annotation(sample: Sample, row: int, category_ids: tuple[int, ...]) -> dict[str, Any]:
    x1, y1, x2, y2 = sample.boxes[row].tolist()
    annotation: dict[str, Any] = {
        "image_id": sample.image_id,
        "category_id": category_ids[int(sample.labels[row])],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": float(sample.area[row]),
        "iscrowd": int(sample.crowd[row]),
    }
    if sample.masks is not None:
        rle = sample.masks[row].to_rle(*sample.image.shape[:2])
        annotation["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    if sample.keypoints is not None:
        keypoints = sample.keypoints[row]
        annotation["keypoints"] = np.where(np.arange(3) == 2, keypoints.astype(int), keypoints).ravel().tolist()
        annotation["num_keypoints"] = int((keypoints[:, 2] > 0).sum())
    return annotation
