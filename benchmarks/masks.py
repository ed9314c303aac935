"""100 masks of 28 x 28 into an 800 x 1333 image: ours straight to COCO RLE, torchvision's by way of full-size bitmaps.

    python benchmarks/masks.py [--masks 100] [--repeats 5]

One process, one thread, interleaved; the bytes are compared. Then what each convention of pasting costs at best: mask
AP of perfect 28 x 28 masks in perfect boxes, on the synthetic set.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Literal

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from toolbox.data import Shapes
from toolbox.engine.coco_metrics import coco_metrics, coco_results, records_of
from toolbox.masks import InstanceMasks, encode_roi_masks
from toolbox.structures import Detections

HEIGHT, WIDTH = 800, 1333


def make_masks(count: int) -> tuple[Tensor, Tensor]:
    """Smooth probabilities (D, 28, 28) and boxes (D, 4) of 30 to 330 pixels a side."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 1, 5, 5, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, size=(28, 28), mode="bicubic")[:, 0].mul(3).sigmoid()
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH - 200.0, HEIGHT - 200.0])
    side = 30 + 300 * torch.rand(count, 2, generator=generator)
    return masks, torch.cat((corner, corner + side), dim=1)


def through_bitmaps(masks: Tensor, boxes: Tensor) -> list[bytes]:
    pasted = paste_masks_in_image(masks[:, None], boxes, (HEIGHT, WIDTH))
    bitmaps = (pasted[:, 0] > 0.5).to(torch.uint8).numpy()
    return [coco_mask.encode(np.asfortranarray(bitmap))["counts"] for bitmap in bitmaps]


def directly(masks: Tensor, boxes: Tensor) -> list[bytes]:
    return [rle["counts"] for rle in encode_roi_masks(masks, boxes, HEIGHT, WIDTH)]


def best_ap(convention: Literal["torchvision", "detectron2"]) -> float:
    """Mask AP of the ground truth itself, rasterised at 28 x 28 in its own boxes and pasted back."""
    dataset = Shapes(length=40, height=96, width=96, objects=(2, 4), difficulty="easy", seed=5)
    results = []
    for index in range(len(dataset)):
        sample = dataset.load(index)
        boxes = torch.from_numpy(sample.boxes)
        rois = torch.cat((torch.zeros(len(boxes), 1), boxes), dim=1)
        masks = InstanceMasks([sample.masks or []]).rasterise(rois, torch.arange(len(boxes)), (28, 28))
        found = Detections(
            image_size=(96, 96),
            boxes=boxes,
            scores=torch.ones(len(boxes)),
            labels=torch.from_numpy(sample.labels),
            masks=encode_roi_masks(masks, boxes, 96, 96, convention=convention),
            image_id=sample.image_id,
        )
        results += coco_results([found], dataset.category_ids)
    return coco_metrics(dataset.ground_truth(), records_of(results, "segm"), "segm")["AP"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    masks, boxes = make_masks(arguments.masks)
    equal = directly(masks, boxes) == through_bitmaps(masks, boxes)
    seconds: dict[str, list[float]] = {"ours": [], "torchvision": []}
    for _ in range(arguments.repeats):
        for name, function in (("ours", directly), ("torchvision", through_bitmaps)):
            start = time.perf_counter()
            function(masks, boxes)
            seconds[name].append(time.perf_counter() - start)
    ours, theirs = (1000 * statistics.median(seconds[name]) for name in ("ours", "torchvision"))
    print(f"ours {ours:.1f} ms, torchvision + pycocotools {theirs:.1f} ms, ratio {theirs / ours:.0f}; ", end="")
    print("byte-identical" if equal else "NOT identical")
    for convention in ("torchvision", "detectron2"):
        print(f"best mask AP at 96 pixels, pasted as {convention}: {best_ap(convention):.3f}")


if __name__ == "__main__":
    main()
