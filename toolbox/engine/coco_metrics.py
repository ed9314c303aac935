"""COCO's average precision and recall: hotcoco behind a thin interface, pycocotools where hotcoco is not installed.

Both get the same records, in the form that both read (`_for_evaluators`), and then give the same numbers to the last
digit, and the same arrays of precision and recall; the summary is taken from those arrays here, so that limits other
than 1, 10 and 100 detections an image are summed up alike.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from toolbox.errors import DataError, ToolboxError, counted
from toolbox.metric_names import Kind
from toolbox.structures import Detections

# COCO's own 17 joints; any other skeleton has to bring its sigmas
COCO_SIGMAS = tuple(
    sigma / 10
    for sigma in (0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89)
)

_ALL, _50, _75 = slice(None), slice(0, 1), slice(5, 6)  # rows of the IoU thresholds 0.5, 0.55 … 0.95


def coco_metrics(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    kind: Kind,
    *,
    max_detections: int = 100,
    sigmas: Sequence[float] | None = None,
    backend: Literal["hotcoco", "pycocotools"] | None = None,
) -> dict[str, Any]:
    """COCO's summary of one kind of result.

    Args:
        ground_truth: a COCO annotation file's content.
        results: COCO result records (`coco_results`).
        kind: what is compared.
        max_detections: above 100, `AP@…` and `AR@…` at that many detections an image are added.
        sigmas: of the joints; needed for keypoints, unless there are COCO's 17.
        backend: the package to use; by default hotcoco, or pycocotools where it is not installed.

    Returns:
        COCO's 12 numbers by name (10 for keypoints) and `per_class`, AP by class name. As in COCO's own summary, -1
        where the ground truth has no object of that size or class.
    """
    limits = [20] if kind == "keypoints" else [1, 10, 100]
    if kind != "keypoints" and max_detections > 100:
        limits.append(max_detections)
    coco_type, evaluator_type = _evaluator(backend)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        content = _for_evaluators(ground_truth, kind)
        truth = coco_type(content)
        # pycocotools fails on an empty list of results
        found = truth.loadRes([dict(r) for r in results]) if results else coco_type({**content, "annotations": []})
        evaluator = evaluator_type(truth, found, kind)
        evaluator.params.maxDets = limits
        if kind == "keypoints":
            evaluator.params.kpt_oks_sigmas = np.asarray(_sigmas(ground_truth, sigmas), dtype=np.float64)
        evaluator.evaluate()
        evaluator.accumulate()
    precision = np.asarray(evaluator.eval["precision"])  # (10 IoUs, 101 recalls, K, areas, limits)
    recall = np.asarray(evaluator.eval["recall"])  # (10 IoUs, K, areas, limits)
    summary = _keypoint_summary(precision, recall) if kind == "keypoints" else _box_summary(precision, recall)
    for extra in limits[3:]:
        summary[f"AP@{extra}"] = _mean(precision[..., 0, 3])
        summary[f"AR@{extra}"] = _mean(recall[..., 0, 3])
    names = {category["id"]: str(category["name"]) for category in ground_truth["categories"]}
    at = 0 if kind == "keypoints" else 2
    per_class = {names[c]: _mean(precision[:, :, k, 0, at]) for k, c in enumerate(evaluator.params.catIds)}
    return {**summary, "per_class": per_class}


def coco_results(detections: Sequence[Detections], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """COCO result records: boxes as x y width height, masks as RLE whose counts are text, joints in one flat list.

    Args:
        detections: one entry per image.
        category_ids: label → original category id.
    """
    records = []
    for image in detections:
        boxes = image.boxes.clone()
        boxes[:, 2:] -= boxes[:, :2]
        joints = None if image.keypoints is None else image.keypoints.flatten(1).tolist()
        rows = zip(boxes.tolist(), image.scores.tolist(), image.labels.tolist(), strict=True)
        for row, (box, score, label) in enumerate(rows):
            record = {"image_id": image.image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            if image.masks is not None:
                record["segmentation"] = _text_rle(image.masks[row])
            if joints is not None:
                record["keypoints"] = joints[row]
            records.append(record)
    return records


def records_of(results: Sequence[dict[str, Any]], kind: Kind) -> list[dict[str, Any]]:
    """The records with only what `kind` compares.

    COCO's evaluators take the area of a record that has a box from the box, so a box beside a mask would change which
    masks count as small, medium and large.
    """
    fields = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
    keep = ("image_id", "category_id", "score", fields[kind])
    return [{name: record[name] for name in keep} for record in results]


def _text_rle(rle: Mapping[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _evaluator(backend: str | None) -> tuple[Any, Any]:
    """The classes `COCO` and `COCOeval` of the package."""
    if backend != "pycocotools":
        try:
            hotcoco = importlib.import_module("hotcoco")
        except ImportError:
            if backend is not None:
                raise
        else:
            return hotcoco.COCO, hotcoco.COCOeval
    try:
        coco, cocoeval = importlib.import_module("pycocotools.coco"), importlib.import_module("pycocotools.cocoeval")
    except ImportError as error:
        raise ToolboxError("COCO evaluation needs hotcoco (or pycocotools): pip install hotcoco") from error
    return _in_memory(coco.COCO), cocoeval.COCOeval


def _in_memory(coco_type: Any) -> Any:
    """pycocotools' `COCO` takes a file only; this builds it from the content."""

    def build(content: dict[str, Any]) -> Any:
        coco = coco_type()
        coco.dataset = content
        coco.createIndex()
        return coco

    return build


def _for_evaluators(ground_truth: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """A copy that an evaluator may write into, with only what `kind` compares.

    hotcoco checks the type of every field that it knows, compared or not. Ids count from 1, as pycocotools takes a
    match with annotation 0 for none. Joints are counted where the file does not.
    """
    keep = ["image_id", "category_id", "bbox", "area", "iscrowd"]
    keep += {"bbox": [], "segm": ["segmentation"], "keypoints": ["keypoints", "num_keypoints"]}[kind]
    annotations = []
    for number, record in enumerate(ground_truth["annotations"], start=1):
        annotation = {"id": number, **{name: record[name] for name in keep if name in record}}
        if kind == "keypoints":
            joints = annotation.get("keypoints") or []
            if annotation.get("num_keypoints") is None:
                annotation["num_keypoints"] = sum(v > 0 for v in joints[2::3])
            annotation["keypoints"] = joints or [0] * (3 * _joint_count(ground_truth))
        annotations.append(annotation)
    return {
        "info": {},
        "images": [{name: image[name] for name in ("id", "height", "width")} for image in ground_truth["images"]],
        "annotations": annotations,
        "categories": [{"id": one["id"], "name": str(one["name"])} for one in ground_truth["categories"]],
    }


def _joint_count(ground_truth: Mapping[str, Any]) -> int:
    return max((len(a.get("keypoints") or ()) // 3 for a in ground_truth["annotations"]), default=0)


def _sigmas(ground_truth: Mapping[str, Any], sigmas: Sequence[float] | None) -> Sequence[float]:
    joints = _joint_count(ground_truth)
    if not sigmas and joints in (0, len(COCO_SIGMAS)):
        return COCO_SIGMAS
    if not sigmas:
        raise DataError(
            f"the skeleton of {counted(joints, 'joint')} has no sigmas, and COCO's are for 17; give one per joint"
        )
    if joints and len(sigmas) != joints:
        raise DataError(
            f"{counted(len(sigmas), 'sigma')} for a skeleton of {counted(joints, 'joint')}; give one per joint"
        )
    return sigmas


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(np.mean(known)) if known.size else -1.0


def _box_summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """COCO's 12 numbers; areas are all, small, medium, large and limits 1, 10, 100."""
    summary = {
        "AP": _mean(precision[_ALL, ..., 0, 2]),
        "AP50": _mean(precision[_50, ..., 0, 2]),
        "AP75": _mean(precision[_75, ..., 0, 2]),
    }
    summary |= {f"AP{size}": _mean(precision[..., area, 2]) for area, size in enumerate("sml", start=1)}
    summary |= {f"AR{limit}": _mean(recall[..., 0, at]) for at, limit in enumerate((1, 10, 100))}
    return summary | {f"AR{size}": _mean(recall[..., area, 2]) for area, size in enumerate("sml", start=1)}


def _keypoint_summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """COCO's 10 numbers; areas are all, medium, large and the limit is 20."""
    summary: dict[str, float] = {}
    for name, values in (("AP", precision), ("AR", recall)):
        summary |= {name + at: _mean(values[rows, ..., 0, 0]) for at, rows in (("", _ALL), ("50", _50), ("75", _75))}
        summary |= {name + size: _mean(values[..., area, 0]) for area, size in enumerate("ml", start=1)}
    return summary
