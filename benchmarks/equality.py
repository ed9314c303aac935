"""Are our detectors torchvision's? Largest differences of detections, losses and gradients, on real images.

    python benchmarks/equality.py --data DIR                          # DIR/val, DIR/annotations/instances_val.json, …
    python benchmarks/equality.py --data DIR --models maskrcnn_resnet50_fpn --short 800 --images 2

A table for Markdown: model x quantity x largest difference. Weights are random (torchvision_twins.py); both models get
the same image at network size. Detections are compared in float64 one by one, and in float32, where a choice at a
threshold can fall otherwise, each with the other's nearest of its class; what has none within a tenth of a pixel counts
as unmatched. Losses and gradients are of the same proposals, samples and mask targets, in float64.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision_twins import MODELS, Found, Objects, Twins, detect, gradients, losses, make_twins

from toolbox.data.coco import CocoDataset
from toolbox.data.resize import Resize, resize_image
from toolbox.weights.exchange.classes import ClassTable

PARTS = ("float64", "float32", "training", "live")  # detections of each type; losses, and with live batch norm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="COCO images in DIR/val, annotations in DIR/annotations")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--short", type=int, default=800, help="short edge of the network's images")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--train-short", type=int, default=320, help="short edge for losses and gradients")
    parser.add_argument("--train-images", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.data is None or not (arguments.data / "annotations").is_dir():
        print("skipped: no --data with COCO images and annotations (some of val2017 are enough)")
        return
    print("| model | quantity | images | largest difference |\n|---|---|---|---|")
    for name in arguments.models:
        start = time.perf_counter()
        for quantity, size, value in rows_of_model(name, arguments):
            print(f"| {name} | {quantity} | {size} | {value} |", flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


def rows_of_model(name: str, arguments: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Quantity, size of the images, largest difference."""
    for part in arguments.parts:
        if part == "training":
            yield from _training(name, arguments, live=False)
        elif part == "live":
            yield from _training(name, arguments, live=True) if name.endswith("_v2") else ()
        else:
            yield from _detections(name, arguments, getattr(torch, part))


def twins_on(dataset: CocoDataset, name: str, images: Sequence[Tensor], dtype: torch.dtype) -> Twins:
    """The models, for the data set's classes."""
    classes = ClassTable(dataset.classes, dataset.category_ids, dataset.skeleton, "the data")
    peer_classes = 1 if name.startswith("keypoint") else 90
    return make_twins(name, classes, images, dtype=dtype, peer_classes=peer_classes)


def open_data(name: str, folder: Path) -> CocoDataset:
    """Images with what the model learns, in the order of the file."""
    kind = "person_keypoints" if name.startswith("keypoint") else "instances"
    file = folder / f"annotations/{kind}_val.json"
    return CocoDataset(images=folder / "val", annotations=file, skip_empty=True, masks=name.startswith("mask"))


def load(dataset: CocoDataset, index: int, short: int) -> tuple[Tensor, Objects]:
    """An image at network size, (3, h, w) uint8, and its objects."""
    sample = dataset.load(index)
    pixels = resize_image(sample.image, Resize(short=short, max=short * 5 // 3, method="torchvision"))
    height, width = pixels.shape[:2]
    y, x = height / sample.image.shape[0], width / sample.image.shape[1]
    rows = np.flatnonzero(~sample.crowd)
    scale = torch.tensor([x, y, x, y], dtype=torch.float64)
    objects = Objects(torch.from_numpy(sample.boxes[rows]).double() * scale, torch.from_numpy(sample.labels[rows]))
    if sample.masks is not None:
        bitmaps = np.zeros((len(rows), height, width), np.uint8)
        for bitmap, row in zip(bitmaps, rows, strict=True):
            sample.masks[row].fill((0, 0, *sample.image.shape[1::-1]), bitmap)
        objects.masks = torch.from_numpy(bitmaps)
    if sample.keypoints is not None:
        objects.keypoints = torch.from_numpy(sample.keypoints[rows]) * torch.tensor([x, y, 1])
    return torch.from_numpy(pixels).permute(2, 0, 1), objects


def _batch(dataset: CocoDataset, count: int, short: int) -> tuple[list[Tensor], list[Objects], str]:
    # Masks and keypoints are of small interest on one tiny object: the first images with some.
    objects = np.diff(dataset.index.starts)
    chosen = [index for index in range(len(dataset)) if objects[index] >= 2]
    pairs = [load(dataset, index, short) for index in chosen[:count]]
    images = [image for image, _ in pairs]
    return images, [objects for _, objects in pairs], " ".join(f"{i.shape[1]}×{i.shape[2]}" for i in images)


def _detections(name: str, arguments: argparse.Namespace, dtype: torch.dtype) -> Iterator[tuple[str, str, str]]:
    dataset = open_data(name, arguments.data)
    images, _, size = _batch(dataset, arguments.images, arguments.short)
    twins = twins_on(dataset, name, images, dtype)
    pairs = detect(twins, images)
    kind = str(dtype).removeprefix("torch.")
    proposals = [(ours.proposals, theirs.proposals) for ours, theirs in pairs]
    yield f"proposals, {kind}", size, compare_boxes(proposals)
    if dtype == torch.float64:
        same = all(ours.labels.tolist() == theirs.labels.tolist() for ours, theirs in pairs)
        labels, scores = (torch.cat([getattr(theirs, key) for _, theirs in pairs]) for key in ("labels", "scores"))
        shown = f"{len(labels)}, of {len(labels.unique())} classes, scores {scores.min():.3f} … {scores.max():.3f}"
        yield f"labels of detections, {kind}", size, f"{'equal' if same else 'other'} ({shown})"
        matched = pairs if same else []
    else:
        matched = [nearest(ours, theirs) for ours, theirs in pairs]
        every = sum(len(theirs.labels) for _, theirs in pairs)
        found = sum(len(theirs.labels) for _, theirs in matched)
        yield f"unmatched detections, {kind}", size, f"{every - found} of {every}"
    for field, unit in (("boxes", " px"), ("scores", ""), ("masks", ""), ("keypoints", " px")):
        values = [(getattr(a, field), getattr(b, field)) for a, b in matched]
        if values and values[0][0] is not None:
            yield f"{field} of detections, {kind}", size, f"{max(difference(*pair) for pair in values):.1e}{unit}"


def _training(name: str, arguments: argparse.Namespace, *, live: bool) -> Iterator[tuple[str, str, str]]:
    dataset = open_data(name, arguments.data)
    images, objects, size = _batch(dataset, arguments.train_images, arguments.train_short)
    twins = twins_on(dataset, name, images, torch.float64)
    torch.manual_seed(1)  # torchvision draws the samples
    ours, theirs = losses(twins, images, objects, live=live)
    mode = ", live batch norm" if live else ""
    for key, loss in theirs.items():
        yield f"loss {key}{mode}", size, f"{relative(ours[key], loss):.1e} of {loss.item():.3f}"
    sum(ours.values()).backward()
    sum(theirs.values()).backward()
    found = gradients(twins)
    # A bias that a norm or a softmax behind it takes away has no gradient but rounding.
    least = 1e-6 * max(float(theirs.norm()) for _, theirs in found.values())
    worst = max(found, key=lambda name: relative(*found[name], least))
    yield f"gradients of {len(found)} parameters{mode}", size, f"{relative(*found[worst], least):.1e} ({worst})"


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference."""
    return float((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0.0


def relative(ours: Tensor, theirs: Tensor, least: float = 0.0) -> float:
    """Norm of the difference over the norm of torchvision's, or over `least` where that is larger."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm()) / max(float(theirs.norm()), least)


def compare_boxes(pairs: Sequence[tuple[Tensor, Tensor]]) -> str:
    """Boxes in order where they are equally many, else each of theirs with the nearest of ours."""
    worst, far, count = 0.0, 0, 0
    for ours, theirs in pairs:
        gap = torch.cdist(theirs.double(), ours.double(), p=float("inf")).amin(dim=1)
        in_order = len(ours) == len(theirs) and difference(ours, theirs) < 0.1
        worst = max(worst, difference(ours, theirs) if in_order else float(gap[gap < 0.1].max()))
        far, count = far + int((gap >= 0.1).sum()), count + len(theirs)
    return f"{worst:.1e} px" + (f", {far} of {count} unmatched" if far else f" ({count})")


def nearest(ours: Found, theirs: Found) -> tuple[Found, Found]:
    """The detections of both that have one of their class within a tenth of a pixel in the other."""
    gap = torch.cdist(theirs.boxes.double(), ours.boxes.double(), p=float("inf"))
    gap[theirs.labels[:, None] != ours.labels[None]] = float("inf")
    distance, index = gap.min(dim=1)
    rows = (distance < 0.1).nonzero().squeeze(1)
    return _subset(ours, index[rows]), _subset(theirs, rows)


def _subset(found: Found, rows: Tensor) -> Found:
    chosen = {key: value[rows] for key, value in vars(found).items() if value is not None and key != "proposals"}
    return Found(**chosen)


if __name__ == "__main__":
    main()
