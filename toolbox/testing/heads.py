"""What is asked of an instance head beside its forward: loss, prediction, and the way back to the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from toolbox.models.postprocess import finish
from toolbox.structures import Regions, Targets
from toolbox.testing.case import (
    Case,
    Check,
    check,
    difference,
    expect,
    make_regions,
    make_targets,
    mapped,
    not_finite,
)

_SCENE = (64, 96)  # height and width of the image that detections come back to


def _losses(head: Any, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
    losses = head.loss(prediction, regions, targets)
    expect(isinstance(losses, dict) and bool(losses), f"loss returns {losses!r}, not name → scalar")
    for name, value in losses.items():
        expect(isinstance(value, Tensor) and value.ndim == 0, f"loss '{name}' is no scalar: {value!r}")
        expect(bool(value.isfinite()), f"loss '{name}' is {value.item()}")
    return losses


def _unreached(head: Any, losses: Mapping[str, Tensor]) -> list[str]:
    scalar = torch.stack([value.double() for value in losses.values()]).sum()
    expect(scalar.requires_grad, "the loss is not connected to the prediction")
    scalar.backward()
    return [name for name, p in head.named_parameters() if p.requires_grad and p.grad is None]


@check(
    "loss",
    "the losses of foreground regions are finite scalars whose gradient reaches every trainable parameter",
    "return {name: scalar}, computed from the prediction",
)
def _loss(case: Case) -> None:
    head = case.make().train()
    losses = _losses(head, head(*case.arguments(head, 4)), make_regions(4), make_targets())
    unreached = _unreached(head, losses)
    expect(not unreached, f"no gradient in {', '.join(unreached[:5])}")


@check(
    "no objects",
    "without foreground the losses are zero, finite and connected to every parameter, so that DDP can train",
    "divide by regions.valid.sum().clamp(min=1), and where there are no rows return prediction.float().sum() * 0",
)
def _no_objects(case: Case) -> None:
    head = case.make().train()
    losses = _losses(head, head(*case.arguments(head, 0)), make_regions(0), make_targets(0))
    for name, value in losses.items():
        expect(value.item() == 0, f"loss '{name}' is {value.item()} without objects")
    unreached = _unreached(head, losses)
    expect(not unreached, f"no gradient in {', '.join(unreached[:5])}")


@check(
    "padding",
    "rows that are not valid count in no loss",
    "torch.where(regions.valid, value, 0).sum() / regions.valid.sum().clamp(min=1)",
)
def _padding(case: Case) -> None:
    head = case.make().eval()
    prediction, regions = head(*case.arguments(head, 4)), make_regions(4)
    keep = torch.tensor([True, False, True, False])
    alone = head.loss(prediction[keep], regions.subset(keep.nonzero()[:, 0]), make_targets())
    regions.valid = keep
    differs = difference(alone, _losses(head, prediction, regions, make_targets()), 1e-4)
    expect(differs is None, f"with padding and without: {differs}")


@check(
    "loss inputs unchanged",
    "loss and predict leave prediction, regions and targets as they were",
    "no in-place operation (x += …, x.sigmoid_()) on what is passed in",
)
def _loss_inputs_unchanged(case: Case) -> None:
    head = case.make().eval()
    prediction = head(*case.arguments(head, 4)).detach()
    regions, targets = make_regions(4), make_targets()
    kept = mapped((prediction, regions, targets), Tensor.clone)
    head.loss(prediction, regions, targets)
    head.predict(prediction, regions.labels)
    changed = difference(kept, (prediction, regions, targets))
    expect(changed is None, f"changed: {changed}")


@check(
    "loss in half precision",
    "the loss of a bfloat16 prediction is finite",
    "compute the loss in float32: prediction.float()",
)
def _loss_half(case: Case) -> None:
    head = case.make().train()
    with torch.autocast("cpu", torch.bfloat16):
        prediction = head(*case.arguments(head, 4))
        _losses(head, prediction, make_regions(4), make_targets())


@check(
    "prediction",
    "predict keeps an entry per region, and to_image returns fields with an entry per detection, also for none",
    "return {field: values}, each of length len(boxes)",
)
def _prediction(case: Case) -> None:
    head = case.make().eval()
    for count in (4, 0):
        regions = make_regions(count)
        with torch.no_grad():
            values = head.predict(head(*case.arguments(head, count)), regions.labels)
        expect(isinstance(values, Tensor) and len(values) == count, f"predict gives {values!r} for R = {count}")
        wild = not_finite(values)
        expect(wild is None, f"what predict keeps is not finite, R = {count}")
        boxes = regions.rois[:, 1:].clone()
        boxes[:1] = torch.tensor([-5.0, -5, 200, 200])  # larger than the image
        fields = finish(head, values, boxes, _SCENE, boxes * 2, (2 * _SCENE[0], 2 * _SCENE[1]))
        expect(isinstance(fields, Mapping) and bool(fields), f"to_image returns {fields!r}, not field → values")
        lengths = {name: len(value) for name, value in fields.items()}
        expect(set(lengths.values()) == {count}, f"to_image returns fields of lengths {lengths} for D = {count}")
        if isinstance(fields.get("masks"), list):
            sizes = {tuple(rle["size"]) for rle in fields["masks"]} | {_SCENE}
            expect(sizes == {_SCENE}, f"masks of size {sorted(sizes - {_SCENE})} in an image of {_SCENE}")


INSTANCE_HEAD_CHECKS: tuple[Check, ...] = (
    _loss,
    _no_objects,
    _padding,
    _loss_inputs_unchanged,
    _loss_half,
    _prediction,
)
