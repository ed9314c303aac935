"""A training step of Mask R-CNN R50-FPN: ours, torchvision's and Detectron2's, in one process, taking turns.

    python benchmarks/train_step.py --threads 1     # batch 2, 800 x 1216, with the allocator setting
    python benchmarks/train_step.py --allocator system --sides ours torchvision --repeats 2
    python benchmarks/train_step.py --device cuda --precision bfloat16 --repeats 20
    python benchmarks/train_step.py --profile       # where our step's time goes, by operator

A step is forward, backward and SGD with momentum. Equal for all: random weights (residual branches damped, otherwise
the proposals collapse; ours are handed to the others), images, objects, frozen stem and c2, frozen batch norm, 2000
anchors per level before and 1000 proposals after NMS, 256 anchors and 512 regions per image, 2 x 2 samples per bin,
optimizer and allocator. Each is fed what its own loader would give it, made before the clock starts: ours polygons,
Detectron2 polygons, torchvision bitmaps. Detectron2 is left out where it is not installed. Peak memory on a CPU is of
a process that trains that model only, above what it held before the first step.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from infer import ALLOCATOR, ROOT
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import toolbox
from toolbox.errors import ToolboxError
from toolbox.inference.predictor import choose_device
from toolbox.masks import InstanceMasks, PolygonMask
from toolbox.models.backbones.weights import without_pretrained
from toolbox.structures import Targets
from toolbox.weights.detectron2 import from_detectron2
from toolbox.weights.torchvision import to_torchvision

CLASSES, CORNERS = 80, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Step = Callable[[], Tensor]


def our_model() -> Any:
    """Random weights whose residual branches are damped, and scores that differ from region to region."""
    overrides = ["model.rpn.train.after_nms=1000"]
    config = toolbox.load_config(ROOT / "configs/torchvision/mask_rcnn_r50_fpn.yaml", overrides)
    torch.manual_seed(0)
    with without_pretrained():
        model = toolbox.build_detector(config, classes=[f"class {index}" for index in range(CLASSES)])
    for name, module in model.backbone.named_modules():
        if name.endswith("bn3"):
            nn.init.constant_(module.weight, 0.2)
    nn.init.normal_(model.box.head.predictor.logits.weight, std=0.05)
    return model.train()


def torchvision_model(state: dict[str, Tensor]) -> nn.Module:
    # As maskrcnn_resnet50_fpn builds it from published weights; without weights that would have live batch norms.
    body = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=torchvision.ops.FrozenBatchNorm2d, trainable_layers=3
    )
    model = torchvision.models.detection.MaskRCNN(body, CLASSES + 1, rpn_post_nms_top_n_train=1000)
    model.load_state_dict(to_torchvision(state))
    model.transform.resize = lambda image, target: (image, target)
    return model.train()


def detectron2_model(state: dict[str, Tensor], device: str) -> nn.Module:
    from detectron2 import model_zoo
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    settings = get_cfg()
    settings.merge_from_file(model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
    settings.MODEL.DEVICE = device
    settings.MODEL.ROI_HEADS.NUM_CLASSES = CLASSES
    settings.MODEL.RESNETS.STRIDE_IN_1X1 = False
    settings.MODEL.PIXEL_MEAN, settings.MODEL.PIXEL_STD = ([255 * x for x in values] for values in (MEAN, STD))
    settings.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = settings.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO = 2
    model = build_model(settings)
    fill_detectron2(model, state)
    return model.train()


def fill_detectron2(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Our weights under its names: every number of its own carries its place through the translation to ours."""
    own = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    places, total = {}, 0
    for name, value in own.items():
        places[name] = torch.arange(total, total + value.numel(), dtype=torch.float64).reshape(value.shape)
        total += value.numel()
    flat = torch.cat([value.flatten().cpu() for value in own.values()])
    for name, value in from_detectron2(places).items():
        if name in state:
            flat[value.long().flatten()] = state[name].flatten().cpu()
    parts = flat.split([value.numel() for value in own.values()])
    model.load_state_dict(
        {name: part.reshape(own[name].shape) for name, part in zip(own, parts, strict=True)}, strict=False
    )
    for name, value in from_detectron2(model.state_dict()).items():
        assert torch.equal(value.cpu(), state[name].cpu()), name


def make_images(count: int, height: int, width: int) -> list[Tensor]:
    """(3, height, width) uint8 each: smooth noise, so that proposals differ from place to place."""
    coarse = torch.rand(count, 3, height // 32, width // 32, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return list((smooth * 255).byte())


def make_objects(count: int, height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Labels, boxes (G, 4) and polygons (16, 2): stars of the sizes of COCO's objects, from 16 to 400 pixels."""
    numbers = np.random.default_rng(seed)
    radii = np.exp(numbers.uniform(np.log(8), np.log(min(height, width) / 4), count))
    centres = numbers.uniform(radii[:, None], np.array([width, height]) - radii[:, None])
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    away = radii[:, None] * numbers.uniform(0.5, 1, (count, CORNERS))
    polygons = centres[:, None] + away[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    boxes = np.concatenate([polygons.min(1), polygons.max(1)], axis=1)
    return numbers.integers(0, CLASSES, count), boxes, list(polygons)


def our_step(model: Any, images: list[Tensor], objects: list[Any], device: str) -> Step:
    boxes = torch.tensor(np.stack([boxes for _, boxes, _ in objects]), dtype=torch.float32)
    labels = torch.tensor(np.stack([labels for labels, _, _ in objects]))
    masks = InstanceMasks([[PolygonMask([polygon]) for polygon in polygons] for _, _, polygons in objects])
    sides = boxes[..., 2:] - boxes[..., :2]
    every = torch.ones_like(labels, dtype=torch.bool)
    targets = Targets(boxes, labels, every, ~every, sides.prod(-1), masks=masks)
    model.to(device).to(memory_format=torch.channels_last)  # as toolbox/engine/job.py does
    return lambda: sum(model(images, targets).values())


def torchvision_step(model: nn.Module, images: list[Tensor], objects: list[Any], device: str) -> Step:
    height, width = images[0].shape[-2:]
    targets = []
    for labels, boxes, polygons in objects:
        bitmaps = np.zeros((len(labels), height, width), np.uint8)
        for bitmap, polygon in zip(bitmaps, polygons, strict=True):
            cv2.fillPoly(bitmap, [np.round(polygon).astype(np.int32)], 1)
        made = {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels) + 1}
        targets.append(made | {"masks": torch.from_numpy(bitmaps)})
    model.to(device)

    def step() -> Tensor:
        moved = [{name: value.to(device) for name, value in target.items()} for target in targets]
        return sum(model([image.to(device).float() / 255 for image in images], moved).values())

    return step


def detectron2_step(model: nn.Module, images: list[Tensor], objects: list[Any], device: str) -> Step:
    from detectron2.structures import Boxes, Instances, PolygonMasks
    from detectron2.utils.events import EventStorage

    inputs = []
    for image, (labels, boxes, polygons) in zip(images, objects, strict=True):
        instances = Instances(tuple(image.shape[-2:]))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        instances.gt_classes = torch.tensor(labels)
        instances.gt_masks = PolygonMasks([[polygon.flatten()] for polygon in polygons])
        inputs.append({"image": image, "instances": instances})

    def step() -> Tensor:
        with EventStorage():
            return sum(model(inputs).values())

    return step


def make_sides(names: list[str], arguments: argparse.Namespace) -> dict[str, tuple[nn.Module, Step]]:
    """Model and step of each; all start from our weights."""
    images = make_images(arguments.batch, *arguments.size)
    objects = [make_objects(arguments.objects, *arguments.size, seed) for seed in range(arguments.batch)]
    ours = our_model()
    state = {name: value.clone() for name, value in ours.state_dict().items()}
    device, sides = arguments.device, {}
    for name in names:
        if name == "ours":
            sides[name] = (ours, our_step(ours, images, objects, device))
        elif name == "torchvision":
            model = torchvision_model(state)
            sides[name] = (model, torchvision_step(model, images, objects, device))
        else:
            model = detectron2_model(state, device)
            sides[name] = (model, detectron2_step(model, images, objects, device))
    return sides


def whole_step(model: nn.Module, step: Step, arguments: argparse.Namespace) -> Callable[[], float]:
    """Forward, backward and the update; returns the loss."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A rate at which random weights stay as they are: the work is the same.
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4)
    dtype = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[arguments.precision]

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with contextlib.nullcontext() if dtype is None else torch.autocast(arguments.device, dtype):
            loss = step()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


def count_mask_regions(model: nn.Module, counts: list[int]) -> None:
    """Note how many regions the mask head is run on: as many as foreground was found, so not quite equal."""
    head = model.instance["mask"].head if hasattr(model, "instance") else None
    if head is None:
        heads = model.roi_heads
        head = getattr(heads, "mask_predictor", None) or heads.mask_head.predictor
    next(m for m in head.modules() if isinstance(m, nn.Conv2d)).register_forward_pre_hook(
        lambda module, given: counts.append(len(given[0]))
    )


def compare(names: list[str], arguments: argparse.Namespace) -> None:
    """All in this process, taking turns; medians: seconds of a GPU, and of a CPU its time over all threads."""
    sides = make_sides(names, arguments)
    runs = {name: whole_step(*side, arguments) for name, side in sides.items()}
    regions: dict[str, list[int]] = {name: [] for name in names}
    for name, (model, _) in sides.items():
        count_mask_regions(model, regions[name])
    # On a CPU its own time, over all threads: other work on the machine does not count.
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses = {}
    for turn in range(arguments.repeats + arguments.warmup):
        for name, run in runs.items():
            torch.manual_seed(turn)
            began, worked = time.perf_counter(), time.process_time()
            losses[name] = run()  # waits for the device, as it reads the loss
            took = time.perf_counter() - began
            worked = time.process_time() - worked
            print(f"{name}: {took:.2f} s, {worked:.2f} s of CPU time", file=sys.stderr, flush=True)
            if turn >= arguments.warmup:
                seconds[name].append(took if arguments.device == "cuda" else worked)
    first = losses[names[0]]
    if not all(abs(loss - first) < 0.1 * first for loss in losses.values()):
        print(f"the sides do not compute the same, their losses are {losses}", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name in names:
        print(
            f"| {name} | {medians[name]:.3f} | {min(seconds[name]):.3f} | {medians[name] / medians[names[0]]:.2f} "
            f"| {statistics.mean(regions[name]):.0f} | {losses[name]:.3f} |"
        )


def measure_memory(name: str, arguments: argparse.Namespace) -> None:
    """One model alone in this process: what two training steps add to the peak."""
    model, step = make_sides([name], arguments)[name]
    run = whole_step(model, step, arguments)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(), run()
        print(f"| {name} | {(torch.cuda.max_memory_allocated() - before) / 2**20:.0f} |")
        return
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    run(), run()
    status = Path("/proc/self/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024
    print(f"| {name} | {(peak - before) / 2**20:.0f} |")


def profile(arguments: argparse.Namespace) -> None:
    """Our step by operator."""
    run = whole_step(*make_sides(["ours"], arguments)["ours"], arguments)
    run()
    with torch.profiler.profile(record_shapes=True) as found:
        run()
    key = "self_cuda_time_total" if arguments.device == "cuda" else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=key, row_limit=30, max_name_column_width=50))
    print(found.key_averages(group_by_input_shape=True).table(sort_by=key, row_limit=40, max_name_column_width=40))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1216), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--objects", type=int, default=20, help="per image")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--allocator", choices=("glibc", "system"), default="glibc", help="tuned for all, or for none")
    parser.add_argument("--sides", nargs="+", choices=("ours", "torchvision", "detectron2"))
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    choose_device(arguments.device, instead="--device cpu")
    there = ["ours", "torchvision", *(["detectron2"] if importlib.util.find_spec("detectron2") else [])]
    names = arguments.sides or there
    if not {*names} <= {*there}:
        raise ToolboxError("--sides detectron2: detectron2 is not installed here; install it, or leave it out")
    if arguments.allocator == "glibc" and not ALLOCATOR.items() <= os.environ.items():  # read at a process's start
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        return measure_memory(arguments.memory_of, arguments)
    if arguments.profile:
        return profile(arguments)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {arguments.threads} threads, {arguments}")
    if "detectron2" not in there:
        print("detectron2 is not installed, and left out")
    kind = "s" if arguments.device == "cuda" else "s of CPU time"
    print(
        f"\n| | {kind} per step, median | least | / {names[0]} | mask regions | loss |\n|---|---|---|---|---|---|",
        flush=True,
    )
    compare(names, arguments)
    if not arguments.no_memory:
        print("\n| | peak memory of a step, MiB |\n|---|---|", flush=True)
        for name in names:
            subprocess.run([sys.executable, *sys.argv, "--memory-of", name], check=True)


if __name__ == "__main__":
    main()
