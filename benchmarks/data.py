"""Images per second of our training loader beside torchvision's reference pipeline for detection.

    python benchmarks/data.py [CONFIG] [--workers 0 1 2] [--images 100] [--repeats 3]      about a minute

Ours: decode, resize in uint8, augment, collate; normalising is left to the device. Torchvision's, of its
references/detection: Pillow decodes, polygons become bitmaps, flip, float32; then the model's first step
(GeneralizedRCNNTransform) resizes and normalises images and bitmaps in float32 and pads them to a batch. That step runs
in the training process, and on a GPU if there is one, so torchvision is shown with and without it.

Without CONFIG the images are those of COCO beside the project, or drawn for the run, at 800 × 1333 with flips. With
one, its data.train (a CocoDataset, or ours is measured alone), data.resize and data.transforms; torchvision's flips.

"A core" counts processor time of all processes, so that the numbers hold on a machine with other work. All runs take
turns, one thread a process; the median is shown.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

import toolbox
from toolbox.data import CocoDataset
from toolbox.data.interfaces import Dataset, Transform
from toolbox.data.loader import training_loader
from toolbox.data.resize import Resize
from toolbox.data.transforms import HorizontalFlip
from toolbox.errors import ToolboxError
from toolbox.sections import DataConfig

COCO = Path(__file__).resolve().parents[1] / "../shared/data/coco_small"


def draw_images(folder: Path, count: int) -> CocoDataset:
    """JPEGs of 640 × 480 of smooth noise under grain, each with seven polygons of 20 points."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(count):
        coarse = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        pixels = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)
        pixels = cv2.add(pixels, rng.integers(0, 24, pixels.shape, dtype=np.uint8))
        cv2.imwrite(str(folder / f"{number}.jpg"), pixels)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": 480, "width": 640})
        for _ in range(7):
            radius, turns = rng.uniform(20, 100), np.linspace(0, 2 * np.pi, 20, endpoint=False)
            centre = rng.uniform([radius, radius], [640 - radius, 480 - radius])
            ring = centre + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)
            (x1, y1), (x2, y2) = ring.min(axis=0), ring.max(axis=0)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0, "area": radius**2 * 3}
                | {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": [ring.ravel().tolist()]}
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "disc"}]}
    (folder / "objects.json").write_text(json.dumps(content))
    return CocoDataset(images=folder, annotations=folder / "objects.json")


class ToTargets:
    """references/detection/coco_utils.py: boxes as corners, polygons and run lengths as full-size bitmaps."""

    def __call__(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        width, height = image.size
        objects = [record for record in target["annotations"] if not record.get("iscrowd")]
        boxes = torch.as_tensor([record["bbox"] for record in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(min=0, max=width)
        boxes[:, 1::2].clamp_(min=0, max=height)
        masks = []
        for record in objects:
            bitmaps = coco_mask.decode(run_lengths(record["segmentation"], height, width))
            masks.append(torch.as_tensor(bitmaps, dtype=torch.uint8).any(dim=2))
        keep = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
        labels = torch.tensor([record["category_id"] for record in objects], dtype=torch.int64)
        stacked = torch.stack(masks) if masks else torch.zeros((0, height, width), dtype=torch.bool)
        return image, {"boxes": boxes[keep], "labels": labels[keep], "masks": stacked[keep]}


def run_lengths(segmentation: Any, height: int, width: int) -> list[Any]:
    """Of polygons, or of run lengths whose counts are a list or a string; torchvision's scripts take polygons only."""
    if isinstance(segmentation, list):
        return coco_mask.frPyObjects(segmentation, height, width)
    packed = isinstance(segmentation["counts"], str)
    return [segmentation] if packed else coco_mask.frPyObjects([segmentation], height, width)


class References(torchvision.datasets.CocoDetection):
    """torchvision's set with the preset `hflip` of references/detection/presets.py, which flips Pillow's images."""

    def __init__(self, folder: Path, file: Path) -> None:
        super().__init__(str(folder), str(file))
        self.to_targets = ToTargets()
        self.to_float = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float, scale=True)])

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, records = super().__getitem__(index)
        image, target = self.to_targets(image, {"annotations": records})
        if torch.rand(1) < 0.5:
            width = image.size[0]
            image = v2.functional.horizontal_flip(image)
            target["boxes"][:, [0, 2]] = width - target["boxes"][:, [2, 0]]
            target["masks"] = target["masks"].flip(-1)
        return self.to_float(image), target


def as_lists(samples: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(zip(*samples, strict=True))


class Measured:
    """One pipeline with one number of workers: batches, and what is done with each."""

    def __init__(self, batches: Iterable[Any], then: Any = None) -> None:
        self.batches = batches
        self.then = then

    def run(self) -> tuple[float, float]:
        """Images per second once it runs, and per second of processor time in all processes."""
        before = processor_seconds()
        images, began = 0, 0.0
        for number, batch in enumerate(self.batches):
            if self.then is not None:
                self.then(*batch)
            if number == 0:  # workers have started
                began, first = time.perf_counter(), len(batch[0] if isinstance(batch, tuple) else batch)
            images += len(batch[0] if isinstance(batch, tuple) else batch)
        seconds = time.perf_counter() - began
        return (images - first) / seconds, images / (processor_seconds() - before)


def processor_seconds() -> float:
    """Of this process and the workers that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def pipelines(
    dataset: Dataset, resize: Resize, transforms: Sequence[Transform], workers: int, images: int
) -> dict[str, Measured]:
    """The pipelines that this data set allows, by name."""
    ours = training_loader(
        dataset, resize=resize, transforms=transforms, batch=2, seed=0, steps=max(2, images // 2), workers=workers
    )
    made = {"ours": Measured(ours)}
    if isinstance(dataset, CocoDataset) and dataset.index.segmentations is not None:
        step = GeneralizedRCNNTransform(resize.shorts, resize.max, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        peer = References(dataset.folder, dataset.file)
        order = torch.utils.data.RandomSampler(peer, num_samples=max(2, images // 2) * 2)
        settings: dict[str, Any] = {"sampler": order, "num_workers": workers, "collate_fn": as_lists}
        for name, then in (("torchvision", step), ("torchvision, not yet resized", None)):
            loader = torch.utils.data.DataLoader(peer, batch_size=2, drop_last=True, **settings)
            made[name] = Measured(loader, then)
    return made


def chosen(config: str | None, overrides: Sequence[str], folder: Path) -> tuple[str, Dataset, DataConfig | None]:
    """What is measured: its description, the data set, and the config's section."""
    if config is not None:
        data = toolbox.load_config(config, overrides).data
        if data.train is None:
            raise ToolboxError(f"{config}: there is no data.train to measure on")
        return f"data.train of {config}", data.train.build(), data
    if COCO.is_dir():
        file = COCO / "annotations/instances_train.json"
        return "50 images of COCO", CocoDataset(images=COCO / "train", annotations=file), None
    return "48 drawn JPEGs of 640 × 480", draw_images(folder, 48), None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="a YAML file; its section data is measured")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the config")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=100, help="in each run")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if min(arguments.workers) < 0 or arguments.images < 2 or arguments.repeats < 1:
        parser.error("--workers is 0 or more, --images 2 or more, --repeats 1 or more")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        title, dataset, data = chosen(arguments.config, arguments.overrides, Path(folder))
        resize = data.resize if data is not None and data.resize is not None else Resize(short=800, max=1333)
        transforms = [HorizontalFlip()] if data is None else [plan.build() for plan in data.transforms]
        print(f"{title}, batches of 2; torch {torch.__version__}, torchvision {torchvision.__version__}")
        print("| loader processes | | images/s | images/s a core |\n|---|---|---|---|", flush=True)
        for workers in arguments.workers:
            report(pipelines(dataset, resize, transforms, workers, arguments.images), workers, arguments.repeats)


def report(made: dict[str, Measured], workers: int, repeats: int) -> None:
    found: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(repeats):
        for name, one in made.items():
            found[name].append(one.run())
    medians = {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
    for name, (rate, a_core) in medians.items():
        times = f" (ours: {medians['ours'][1] / a_core:.1f} times)" if name != "ours" else ""
        print(f"| {workers} | {name} | {rate:.1f} | {a_core:.1f}{times} |", flush=True)


if __name__ == "__main__":
    main()
