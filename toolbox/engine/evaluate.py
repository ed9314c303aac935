"""A detector's average precision on a data set."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from toolbox.data.interfaces import Dataset
from toolbox.data.loader import evaluation_loader
from toolbox.data.resize import Resize
from toolbox.engine.coco_metrics import Kind, coco_metrics, coco_results, records_of
from toolbox.engine.distributed import ALONE, Ranks
from toolbox.engine.progress import Heartbeat, OnProgress, Progress
from toolbox.errors import DataError
from toolbox.structures import Skeleton

logger = logging.getLogger("toolbox")

_SHOWN = 30  # class names in a message


class Interrupted(Exception):
    """An evaluation was given up."""


def evaluate(
    detector: nn.Module,
    dataset: Dataset,
    *,
    resize: Resize | None,
    device: torch.device,
    batch: int = 1,
    workers: int = 0,
    max_detections: int = 100,
    ranks: Ranks = ALONE,
    interrupted: Callable[[], bool] = lambda: False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Run a detector over a data set and compare with its ground truth.

    Several processes take turns by image, and all of them get the metrics of the whole.

    Args:
        detector: has `predict`, as RCNN; its labels are the data set's.
        dataset: images and objects.
        resize: how images are brought to network size; None keeps their own.
        device: where to run; the detector is moved there and left in the mode it was in.
        batch: images that go through the network together.
        workers: loader processes.
        max_detections: of the detector per image; above 100, the metrics at that number are added.
        ranks: this process among those that evaluate together.
        interrupted: asked after every batch whether to give up.
        on_progress: called after every batch.

    Raises:
        Interrupted: `interrupted` said so, in any process.

    Returns:
        COCO's numbers by name, with `per_class`, under `bbox`, and under `segm` and `keypoints` where both the detector
        and the ground truth have them.
    """
    loader = evaluation_loader(
        dataset,
        resize=resize,
        batch=batch,
        workers=workers,
        rank=ranks.rank,
        world=ranks.size,
        pin_memory=device.type == "cuda",
    )
    training = detector.training
    predict: Any = detector.predict
    detector.to(device).eval()
    results: list[list[dict[str, Any]]] = []  # by image
    predicted: set[Kind] = {"bbox"}
    done, stopped, heartbeat = 0, False, Heartbeat("evaluating", len(dataset))
    try:
        with torch.inference_mode():
            for images in loader:
                found = predict(images.images, images.original_sizes, images.image_ids)
                results += [coco_results([one], dataset.category_ids) for one in found]
                predicted |= {"segm"} if any(d.masks is not None for d in found) else set()
                predicted |= {"keypoints"} if any(d.keypoints is not None for d in found) else set()
                done = min(done + len(images) * ranks.size, len(dataset))
                heartbeat(done)
                if on_progress is not None:
                    on_progress(Progress("eval", done, len(dataset)))
                stopped = interrupted()
                if stopped:
                    break
    finally:
        detector.train(training)
    if ranks.any(stopped):
        raise Interrupted
    shares = ranks.gather((results, predicted))
    return ranks.from_first(_metrics_of_all(dataset, shares, max_detections) if ranks.first else {})


def _metrics_of_all(
    dataset: Dataset, shares: Sequence[tuple[list[list[dict[str, Any]]], set[Kind]]], max_detections: int
) -> dict[str, Any]:
    """Metrics of what the processes found, who took the images in turn."""
    by_turn = zip_longest(*(results for results, _ in shares), fillvalue=[])
    results = [record for turn in by_turn for image in turn for record in image]
    return _metrics(dataset, results, set().union(*(predicted for _, predicted in shares)), max_detections)


def metrics_of_nothing(dataset: Dataset, kind: Kind, *, max_detections: int = 100) -> dict[str, Any]:
    """What an evaluation gives that has found nothing: 0, and COCO's -1 where there is nothing to find.

    Args:
        dataset: whose ground truth counts.
        kind: of result.
        max_detections: as in `evaluate`.

    Returns:
        COCO's numbers by name; none at all where the ground truth has nothing of that kind.
    """
    ground_truth = dataset.ground_truth()
    if not _annotated(ground_truth)[kind]:
        return {}
    sigmas = dataset.skeleton.sigmas if dataset.skeleton is not None else None
    return coco_metrics(ground_truth, [], kind, max_detections=max_detections, sigmas=sigmas)


def _annotated(ground_truth: dict[str, Any]) -> dict[Kind, bool]:
    """The kinds of result that a ground truth has."""
    annotated = ground_truth["annotations"]
    return {
        "bbox": True,
        "segm": any(annotation.get("segmentation") for annotation in annotated),
        "keypoints": any(annotation.get("keypoints") for annotation in annotated),
    }


def _metrics(
    dataset: Dataset, results: list[dict[str, Any]], predicted: set[Kind], max_detections: int
) -> dict[str, Any]:
    ground_truth = dataset.ground_truth()
    known = _annotated(ground_truth)
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
        DataError: names or order differ; both lists, names that are spelled alike, and what to do.
    """
    there, here = tuple(dataset.classes), tuple(classes)
    if there == here:
        return
    lacking = [name for name in here if name not in there]
    extra = [name for name in there if name not in here]
    raise DataError(
        f"the classes of {target} are not those of {source}: {_difference(lacking, extra, source, target)}\n"
        f"  {source} ({len(here)}): {_listed(here)}\n"
        f"  {target} ({len(there)}): {_listed(there)}\n"
        f"  {_way_out(here, there, source, target)}"
    )


def check_skeleton(skeleton: Skeleton | None, dataset: Dataset, source: str, target: str) -> None:
    """Refuse a data set whose joints are not the model's; other OKS sigmas are a warning, the data set's own count.

    Args:
        skeleton: the model's.
        dataset: what it is to be evaluated on.
        source: where `skeleton` comes from, e.g. `data.train`, for the message.
        target: what `dataset` is, e.g. `data.val`.

    Raises:
        DataError: names or order differ.
    """
    here, there = (one.names if one is not None else () for one in (skeleton, dataset.skeleton))
    if here != there:
        row = next((row for row, pair in enumerate(zip(here, there, strict=False)) if pair[0] != pair[1]), None)
        first = "" if row is None else f", the first that differs is {there[row]!r} for {here[row]!r}"
        raise DataError(
            f"the joints of {target} are not those of {source}{first}\n"
            f"  {source} ({len(here)}): {_listed(here) or 'none'}\n"
            f"  {target} ({len(there)}): {_listed(there) or 'none'}\n"
            f"  correct 'keypoints' of the categories in one of the files, or give {target} the names by 'skeleton'"
        )
    if skeleton and dataset.skeleton and skeleton.sigmas != dataset.skeleton.sigmas:
        logger.warning(
            "%s has other OKS sigmas than %s; keypoint AP is computed with those of %s, so give both the same "
            "'skeleton' unless that is meant",
            target,
            source,
            target,
        )


def _difference(lacking: Sequence[str], extra: Sequence[str], source: str, target: str) -> str:
    if not lacking and not extra:
        return "they are the same in another order"
    alike = spelled_alike(lacking, extra)
    parts = [f"spelled alike: {', '.join(f'{b!r} ~ {a!r}' for a, b in alike[:5])}"] if alike else []
    for names, where in ((lacking, target), (extra, source)):
        alone = [name for name in names if not any(name in pair for pair in alike)]
        parts += [f"{where} lacks {', '.join(map(repr, alone[:5]))}{', …' if len(alone) > 5 else ''}"] if alone else []
    return "; ".join(parts)


def spelled_alike(names: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of a name and another that was probably meant to be the same: `Cat` and `cat`, `traffic-light`."""
    free = list(others)
    pairs = []
    for name in names:
        folded = {_folded(other): other for other in free}
        near = difflib.get_close_matches(_folded(name), folded, n=1, cutoff=0.8)
        if near:
            pairs.append((name, folded[near[0]]))
            free.remove(folded[near[0]])
    return pairs


def _folded(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum()) or name


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", … ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else "")


def _way_out(here: Sequence[str], there: Sequence[str], source: str, target: str) -> str:
    in_order = f"'classes: [{', '.join(here)}]'" if len(here) <= _SHOWN else f"the 'classes' of {source}, in its order"
    if set(here) <= set(there):
        return f"give {target} {in_order}"
    both = [name for name in here if name in there]
    lacking, extra = [name for name in here if name not in both], [name for name in there if name not in both]
    alike = spelled_alike(lacking, extra)
    absent = [name for name in lacking if name not in dict(alike)]
    ways = ["correct the names in one of the files"] if extra else []
    if absent:
        ways.append(
            f"add {_listed([repr(name) for name in absent])} to the 'categories' of {target}'s file, where a category "
            f"may have no objects, and to its 'classes' where they are set"
        )
    if source.startswith("data.") and both:
        ways.append(f"give both data sets the classes that both have: 'classes: [{_listed(both)}]'")
    elif not source.startswith("data.") and len(extra) > len(alike):
        ways[-1] += f"; then give {target} {in_order}"
    return ", or ".join(ways)
