"""A detector's average precision on a data set."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from toolbox.data.interfaces import Dataset
from toolbox.data.loader import evaluation_loader
from toolbox.data.resize import Resize
from toolbox.engine.coco_metrics import Kind, coco_metrics, coco_results, records_of
from toolbox.engine.progress import Heartbeat, OnProgress, Progress
from toolbox.errors import DataError, did_you_mean

logger = logging.getLogger("toolbox")


def evaluate(
    detector: nn.Module,
    dataset: Dataset,
    *,
    resize: Resize | None,
    device: torch.device,
    batch: int = 1,
    workers: int = 0,
    max_detections: int = 100,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Run a detector over a data set and compare with its ground truth.

    Args:
        detector: has `predict`, as RCNN; its labels are the data set's.
        dataset: images and objects.
        resize: how images are brought to network size; None keeps their own.
        device: where to run; the detector is moved there and left in the mode it was in.
        batch: images that go through the network together.
        workers: loader processes.
        max_detections: of the detector per image; above 100, the metrics at that number are added.
        on_progress: called after every batch.

    Returns:
        COCO's numbers by name, with `per_class`, under `bbox`, and under `segm` and `keypoints` where both the detector
        and the ground truth have them.
    """
    loader = evaluation_loader(dataset, resize=resize, batch=batch, workers=workers, pin_memory=device.type == "cuda")
    training = detector.training
    predict: Any = detector.predict
    detector.to(device).eval()
    results: list[dict[str, Any]] = []
    predicted: set[Kind] = {"bbox"}
    done, heartbeat = 0, Heartbeat("evaluating", len(dataset))
    try:
        with torch.inference_mode():
            for images in loader:
                found = predict(images.images, images.original_sizes, images.image_ids)
                results += coco_results(found, dataset.category_ids)
                predicted |= {"segm"} if any(d.masks is not None for d in found) else set()
                predicted |= {"keypoints"} if any(d.keypoints is not None for d in found) else set()
                done += len(images)
                heartbeat(done)
                if on_progress is not None:
                    on_progress(Progress("eval", done, len(dataset)))
    finally:
        detector.train(training)
    return _metrics(dataset, results, predicted, max_detections)


def _metrics(
    dataset: Dataset, results: list[dict[str, Any]], predicted: set[Kind], max_detections: int
) -> dict[str, Any]:
    ground_truth = dataset.ground_truth()
    annotated = ground_truth["annotations"]
    known: dict[Kind, bool] = {
        "bbox": True,
        "segm": any(annotation.get("segmentation") for annotation in annotated),
        "keypoints": any(annotation.get("keypoints") for annotation in annotated),
    }
    sigmas = dataset.skeleton.sigmas if dataset.skeleton is not None else None
    metrics: dict[str, Any] = {}
    for kind in (kind for kind in known if kind in predicted):
        if not known[kind]:
            logger.info("%s are predicted, but the ground truth has none to compare with", kind)
            continue
        metrics[kind] = coco_metrics(
            ground_truth, records_of(results, kind), kind, max_detections=max_detections, sigmas=sigmas
        )
    return metrics


def check_classes(classes: Sequence[str], dataset: Dataset, source: str, target: str) -> None:
    """Refuse a data set whose labels mean something else than the model's.

    Args:
        classes: name of each of the model's labels.
        dataset: what it is to be evaluated on.
        source: where `classes` come from, e.g. `data.train`, for the message.
        target: what `dataset` is, e.g. `data.val`.

    Raises:
        DataError: names or order differ.
    """
    there = tuple(dataset.classes)
    classes = tuple(classes)
    if there == classes:
        return
    lacking = [name for name in classes if name not in there]
    extra = [name for name in there if name not in classes]
    if not lacking and not extra:
        difference = "they are the same in another order; give both data sets the same 'classes'"
    else:
        parts = (
            [f"{target} lacks {', '.join(map(repr, lacking[:5]))}{did_you_mean(lacking[0], extra)}"] if lacking else []
        )
        parts += [f"{source} lacks {', '.join(map(repr, extra[:5]))}"] if extra else []
        difference = "; ".join(parts)
    raise DataError(f"the classes of {target} ({len(there)}) are not those of {source} ({len(classes)}): {difference}")
