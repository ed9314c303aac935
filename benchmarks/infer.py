"""Mask R-CNN R50-FPN on one image, ours and torchvision's: one process, the same weights, interleaved, stage by stage.

    python benchmarks/infer.py      # 800 x 1216, about 100 detections; without and with the allocator setting
    python benchmarks/infer.py --size 400 608 --repeats 3 --threads 1

Weights are random, with damped residual branches (otherwise the proposals collapse), and the score threshold is set so
that about 100 detections come out. Our column ends with COCO RLE; torchvision's with full-size float masks, and what it
takes to get RLE from them stands in a row of its own. Peak memory is of a process that runs that model only.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from pycocotools import mask as coco_mask
from torch import Tensor, nn

import toolbox
from toolbox.models import detector as detector_module
from toolbox.weights.torchvision import from_torchvision

ROOT = Path(__file__).resolve().parents[1]
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "200000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
STAGES = ("backbone", "fpn", "rpn", "box pool", "box head", "box select", "mask pool", "mask head", "paste", "encode")


class Stopwatch:
    """Seconds by stage, of calls that are wrapped with it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def wrap(self, owner: object, name: str, stage: str) -> None:
        """Replace `owner.name` by a version that is timed."""
        function: Callable = getattr(owner, name)

        def timed(*arguments: object, **keywords: object) -> object:
            start = time.perf_counter()
            result = function(*arguments, **keywords)
            self.seconds[stage] += time.perf_counter() - start
            return result

        setattr(owner, name, timed)


def torchvision_model(classes: int) -> nn.Module:
    """Random weights that give spread-out proposals and scores."""
    torch.manual_seed(0)
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=classes + 1
    )
    for module in model.backbone.body.modules():
        if isinstance(module, torchvision.models.resnet.Bottleneck):
            nn.init.constant_(module.bn3.weight, 0.2)
    nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.05)
    model.transform.resize = lambda image, target: (image, target)
    return model.eval()


def our_model(peer: nn.Module, classes: int) -> nn.Module:
    """The same weights in our model."""
    config = toolbox.load_config(
        ROOT / "configs/torchvision/mask_rcnn_r50_fpn.yaml", ["model.backbone.weights=null", "model.backbone.norm=bn"]
    )
    model = toolbox.build_detector(config, classes=[f"class {index}" for index in range(classes)])
    model.load_state_dict(from_torchvision(peer.state_dict()))
    return model.eval()


def watch_ours(model: nn.Module, watch: Stopwatch) -> None:
    mask = model.instance["mask"]
    for owner, name, stage in (
        (model.backbone, "forward", "backbone"),
        (model.neck, "forward", "fpn"),
        (model.rpn, "forward", "rpn"),
        (model.rpn, "propose", "rpn"),
        (model.box.extractor, "forward", "box pool"),
        (model.box.head, "forward", "box head"),
        (model.box, "predict", "box select"),
        (mask.extractor, "forward", "mask pool"),
        (mask.head, "forward", "mask head"),
        (mask.head, "predict", "mask head"),
        (detector_module, "to_original", "paste"),
    ):
        watch.wrap(owner, name, stage)


def watch_torchvision(model: nn.Module, watch: Stopwatch) -> None:
    heads = model.roi_heads
    for owner, name, stage in (
        (model.backbone.body, "forward", "backbone"),
        (model.backbone.fpn, "forward", "fpn"),
        (model.rpn, "forward", "rpn"),
        (heads.box_roi_pool, "forward", "box pool"),
        (heads.box_head, "forward", "box head"),
        (heads.box_predictor, "forward", "box head"),
        (heads, "postprocess_detections", "box select"),
        (heads.mask_roi_pool, "forward", "mask pool"),
        (heads.mask_head, "forward", "mask head"),
        (heads.mask_predictor, "forward", "mask head"),
        (model.transform, "postprocess", "paste"),
    ):
        watch.wrap(owner, name, stage)


def make_image(height: int, width: int) -> Tensor:
    """(3, height, width) uint8: smooth noise, so that proposals differ from place to place."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, height // 32, width // 32, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return (smooth[0] * 255).to(torch.uint8)


def set_threshold(peer: nn.Module, ours: nn.Module, image: Tensor, detections: int) -> None:
    """The score at which about so many detections survive."""
    peer.roi_heads.score_thresh, peer.roi_heads.detections_per_img = 0.0, detections
    with torch.no_grad():
        scores = run_torchvision(peer, image)["scores"]
    threshold = float(scores[-1]) * (1 - 1e-6)
    peer.roi_heads.score_thresh = threshold
    settings = type(ours.box.test)
    ours.box.test = settings(score_threshold=threshold, nms=0.5, detections=detections)


def run_torchvision(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return model([image.float() / 255])[0]


def encode(found: dict[str, Tensor]) -> list[dict]:
    bitmaps = (found["masks"][:, 0] > 0.5).to(torch.uint8).numpy()
    return [coco_mask.encode(np.asfortranarray(bitmap)) for bitmap in bitmaps]


def compare(arguments: argparse.Namespace) -> None:
    """Both models in this process, taking turns."""
    image = make_image(*arguments.size)
    peer = torchvision_model(arguments.classes)
    ours = our_model(peer, arguments.classes)
    set_threshold(peer, ours, image, arguments.detections)
    theirs, own = run_torchvision(peer, image), ours.predict([image])[0]
    print(f"detections: ours {len(own)}, torchvision {len(theirs['boxes'])}; {agreement(own, theirs)}")
    watches = {"ours": Stopwatch(), "torchvision": Stopwatch()}
    watch_ours(ours, watches["ours"])
    watch_torchvision(peer, watches["torchvision"])
    samples: dict[str, list[dict[str, float]]] = {"ours": [], "torchvision": []}
    for _ in range(arguments.repeats):
        for name in samples:
            watch = watches[name]
            watch.seconds.clear()
            start = time.perf_counter()
            if name == "ours":
                ours.predict([image])
                watch.seconds["total"] = time.perf_counter() - start
            else:
                found = run_torchvision(peer, image)
                watch.seconds["total"] = time.perf_counter() - start
                encode(found)
                watch.seconds["encode"] = time.perf_counter() - start - watch.seconds["total"]
            samples[name].append(dict(watch.seconds))
    medians = {
        name: {stage: statistics.median(run.get(stage, 0.0) for run in runs) for stage in (*STAGES, "total")}
        for name, runs in samples.items()
    }
    print("| | " + " | ".join(STAGES) + " | total |\n|---|" + "---|" * (len(STAGES) + 1))
    for name, row in medians.items():
        print(f"| {name}, s | " + " | ".join(f"{row[stage]:.3f}" for stage in (*STAGES, "total")) + " |")
    ratio = medians["torchvision"]["total"] / medians["ours"]["total"]
    print(f"torchvision / ours, total without its encoding: {ratio:.2f}")


def agreement(own: toolbox.structures.Detections, theirs: dict[str, Tensor]) -> str:
    """How far apart the two lists are, detection by detection of equal rank."""
    if len(own) != len(theirs["boxes"]):
        return "different counts"
    boxes = (own.boxes - theirs["boxes"]).abs().max()
    scores = (own.scores - theirs["scores"]).abs().max()
    equal = sum(a["counts"] == b["counts"] for a, b in zip(own.masks or [], encode(theirs), strict=True))
    return f"largest difference {boxes:.1e} px, score {scores:.1e}; {equal} of {len(own)} masks byte-identical"


def measure_memory(arguments: argparse.Namespace) -> None:
    """One model alone in this process: what its inference adds to the peak."""
    image = make_image(*arguments.size)
    peer = torchvision_model(arguments.classes)
    ours = our_model(peer, arguments.classes)
    set_threshold(peer, ours, make_image(256, 256), arguments.detections)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    _ = ours.predict([image]) if arguments.memory_of == "ours" else run_torchvision(peer, image)
    status = Path("/proc/self/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    print(f"{arguments.memory_of}: peak memory above the loaded models {(peak - before) / 2**20:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1216), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--classes", type=int, default=90)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=("ours", "torchvision"), help=argparse.SUPPRESS)
    parser.add_argument("--timed-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        return measure_memory(arguments)
    if arguments.timed_only:
        return compare(arguments)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {arguments.threads} threads")
    again = [sys.executable, __file__, *sys.argv[1:]]
    for title, environment in (("default allocator", {}), ("allocator setting of glibc", ALLOCATOR)):
        print(f"\n## {title}", flush=True)
        for extra in (["--timed-only"], ["--memory-of", "ours"], ["--memory-of", "torchvision"]):
            subprocess.run(again + extra, env={**os.environ, **environment}, check=True)


if __name__ == "__main__":
    main()
