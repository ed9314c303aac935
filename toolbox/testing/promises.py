"""Channels, strides and shapes: what each family states against what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from toolbox.models.interfaces import BoxPrediction
from toolbox.structures import FeatureSpec, PixelStats, RoIShape
from toolbox.testing.case import Case, Check, check, expect

_REMEDY = "state what comes out, or put out what is stated; the next stage is built from it"


def _run(case: Case, module: Any, count: int = 2) -> Any:
    with torch.no_grad():
        return module.eval()(*case.arguments(module, count))


def _check_maps(maps: Any, specs: Mapping[str, FeatureSpec], height: int, width: int) -> None:
    expect(isinstance(maps, Mapping), f"forward returns {type(maps).__name__}, not name → map")
    expect(list(maps) == list(specs), f"the maps {list(maps)} for out_features {list(specs)}")
    for name, spec in specs.items():
        wanted = (2, spec.channels, -(-height // spec.stride), -(-width // spec.stride))
        expect(maps[name].shape == wanted, f"{name} is {tuple(maps[name].shape)}, {spec} promises {wanted}")
    strides = [spec.stride for spec in specs.values()]
    expect(strides == sorted(strides), f"strides {strides}, which do not grow")


@check("promises", "maps have the names, channels and strides of out_features, finest first", _REMEDY)
def _backbone(case: Case) -> None:
    module = case.make()
    height, width = case.arguments(module)[0].shape[-2:]
    _check_maps(_run(case, module), module.out_features, height, width)
    expect(isinstance(module.pixels, PixelStats), f"pixels is {type(module.pixels).__name__}, not PixelStats")
    if "in_channels" in case.registry.wiring(case.cls):
        other = case.make(in_channels=5)
        count = len(other.pixels.mean)
        expect(count == 5, f"with in_channels=5, pixels has statistics of {count} channels")
        _run(case, other)


@check("promises", "maps have the names, channels and strides of out_features, finest first", _REMEDY)
def _neck(case: Case) -> None:
    module = case.make()
    _check_maps(_run(case, module), module.out_features, 64, 96)


@check("promises", "per level, objectness (N, A, H, W) and deltas (N, 4 A, H, W)", _REMEDY)
def _rpn_head(case: Case) -> None:
    module = case.make()
    (levels,) = case.arguments(module)
    logits, deltas = _run(case, module)
    anchors = case.wired["num_anchors"]
    for name, maps, channels in (("objectness", logits, anchors), ("deltas", deltas, 4 * anchors)):
        wanted = [(2, channels, *level.shape[-2:]) for level in levels]
        shapes = [tuple(x.shape) for x in maps]
        expect(shapes == wanted, f"{name} of shapes {shapes} for {wanted}")


@check("promises", "R regions come out as (R, *out_shape)", _REMEDY)
def _pooled(case: Case) -> None:
    module = case.make()
    shape = module.out_shape
    expect(isinstance(shape, RoIShape), f"out_shape is {type(shape).__name__}, not RoIShape")
    got = tuple(_run(case, module, 3).shape)
    wanted = (3, shape.channels, shape.height, shape.width)
    expect(got == wanted, f"{got}, {shape} promises {wanted}")


@check("promises", "BoxPrediction with logits (R, K + 1), and deltas (R, K, 4) or (R, 1, 4)", _REMEDY)
def _box_head(case: Case) -> None:
    out = _run(case, case.make(), 3)
    expect(isinstance(out, BoxPrediction), f"forward returns {type(out).__name__}")
    classes = case.wired["num_classes"]
    expect(out.logits.shape == (3, classes + 1), f"logits {tuple(out.logits.shape)} for K = {classes}")
    allowed = ((3, classes, 4), (3, 1, 4))
    expect(tuple(out.deltas.shape) in allowed, f"deltas {tuple(out.deltas.shape)}, one of {allowed} is wanted")


PROMISES: dict[str, Check] = {
    "backbone": _backbone,
    "neck": _neck,
    "rpn_head": _rpn_head,
    "roi_extractor": _pooled,
    "roi_stage": _pooled,
    "box_head": _box_head,
}
