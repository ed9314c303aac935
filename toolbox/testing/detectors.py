"""What is asked of a whole detector; its parts are given built, as `settings`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolbox.structures import Detections
from toolbox.testing.case import Case, Check, check, difference, expect, make_targets, mapped


def _images(seed: int = 0) -> list[Tensor]:
    """Two images of different sizes: (3, 64, 96) and (3, 64, 64) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(256, (3, 64, width), dtype=torch.uint8, generator=generator) for width in (96, 64)]


def _fresh(case: Case) -> Any:
    made = case.make()
    for name, parameter in made.named_parameters():
        parameter.grad = None  # the parts are shared by all that the case makes
        expect(bool(parameter.isfinite().all()), f"{name} is not finite")
    return made


@check(
    "losses",
    "forward(images, targets) gives finite scalar losses, with objects and without, connected to every parameter",
    "see RCNN.forward in toolbox/models/detector.py",
)
def _losses(case: Case) -> None:
    model = _fresh(case).train()
    for objects in (1, 0):
        losses = model(_images(), make_targets(objects))
        wrong = [name for name, value in losses.items() if value.ndim or not value.isfinite()]
        expect(bool(losses) and not wrong, f"losses {losses}, {objects} objects an image")
        for parameter in model.parameters():
            parameter.grad = None
        torch.stack(list(losses.values())).sum().backward()
        unreached = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        expect(not unreached, f"with {objects} objects an image, no gradient in {', '.join(unreached[:5])}")


@check(
    "detections",
    "predict(images, original_sizes, image_ids) gives Detections of each image, in pixels of the original",
    "see RCNN.predict in toolbox/models/detector.py",
)
def _detections(case: Case) -> None:
    model = _fresh(case).eval()
    sizes = [(128, 192), (128, 128)]
    found = model.predict(_images(), original_sizes=sizes, image_ids=[5, 9])
    expect(len(found) == 2 and all(isinstance(one, Detections) for one in found), f"{type(found)} of {len(found)}")
    expect([one.image_id for one in found] == [5, 9], f"image ids {[one.image_id for one in found]} for 5 and 9")
    for one, (height, width) in zip(found, sizes, strict=True):
        expect(tuple(one.image_size) == (height, width), f"image_size {one.image_size} for {(height, width)}")
        inside = (one.boxes >= 0).all() and (one.boxes <= torch.tensor([width, height, width, height])).all()
        expect(bool(inside), f"boxes outside an image of {width} × {height}")


@check("repeatable", "evaluation gives the same twice, and leaves images as they were", "no state between calls")
def _repeatable(case: Case) -> None:
    model, images = _fresh(case).eval(), _images()
    kept = mapped(images, Tensor.clone)
    first, second = ([vars(one) for one in model.predict(images)] for _ in range(2))
    differs = difference(first, second) or difference(kept, images)
    expect(differs is None, f"{differs}")


DETECTOR_CHECKS: tuple[Check, ...] = (_losses, _detections, _repeatable)
