"""The table of `rcnn show`: what each stage puts out, its parameters, and its cost for one image.

The stages run one by one on the meta device, so a large model costs neither memory nor time here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from toolbox.models.detector import RCNN
from toolbox.structures import FeatureSpec, RoIShape


@dataclass(frozen=True)
class Row:
    """One stage.

    Attributes:
        stage: key in the config.
        component: class names.
        output: what it puts out.
        modules: whose parameters count.
        cost: multiply-adds, or None where it cannot be known.
    """

    stage: str
    component: str
    output: str
    modules: tuple[nn.Module | None, ...]
    cost: int | None


def wiring_lines(model: nn.Module, height: int, width: int) -> list[str]:
    """The table, for one image of `height` × `width` network pixels; a model on the meta device is enough."""
    if isinstance(model, RCNN):
        height, width = (_padded(side, model) for side in (height, width))
        rows = rcnn_rows(model.eval(), height, width)
    else:
        rows = [Row(name, type(child).__name__, "", (child,), None) for name, child in model.named_children()]
    cells = [["stage", "component", "puts out", "parameters", "trained", "multiply-adds"]]
    cells += [_cells(row) for row in rows]
    costs = [row.cost for row in rows if row.cost is not None]
    cells.append(_cells(Row("total", "", "", (model,), sum(costs) if costs else None)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in cells]
    note = f"multiply-adds of convolutions and matrix products, for one image of {height} × {width} pixels"
    return [*lines, note if costs else "multiply-adds are known for detectors of type RCNN"]


def rcnn_rows(model: Any, height: int, width: int) -> list[Row]:
    """The stages of an RCNN on the meta device in evaluation, for one image of `height` × `width` network pixels."""
    # Its stages are protocols, which to a type checker are neither modules nor callable.
    images = torch.empty(1, len(model.backbone.pixels.mean), height, width, device="meta")
    maps, cost = _cost(model.backbone, images)
    rows = [Row("model.backbone", _name(model.backbone), _spell_maps(model.backbone), (model.backbone,), cost)]
    if model.neck is not None:
        maps, cost = _cost(model.neck, maps)
        rows.append(Row("model.neck", _name(model.neck), _spell_maps(model.neck), (model.neck,), cost))

    levels = [maps[name] for name in model.rpn.features]
    _, cost = _cost(model.rpn.head, levels)
    per_cell = model.rpn.anchors.num_anchors
    anchors = per_cell * sum(level.shape[-2] * level.shape[-1] for level in levels)
    proposals = model.rpn.test_counts.after_nms
    output = f"{anchors} anchors, {per_cell} a cell → {proposals} proposals"
    rows.append(Row("model.rpn", _name(model.rpn.head), output, (model.rpn,), cost))

    if model.roi_stage is not None:
        _, cost = _cost(model.roi_stage, _regions(model.box.extractor.out_shape, proposals))
        output = f"{proposals} regions {_spell(model.roi_stage.out_shape)}"
        rows.append(Row("model.roi_stage", _name(model.roi_stage), output, (model.roi_stage,), cost))
    pooled = model.box.extractor.out_shape if model.roi_stage is None else model.roi_stage.out_shape
    _, cost = _cost(model.box.head, _regions(pooled, proposals))
    detections = model.box.test.detections
    output = f"{proposals} regions {_spell(model.box.extractor.out_shape)} → {detections} detections"
    component = f"{_name(model.box.extractor)} → {_name(model.box.head)}"
    rows.append(Row("model.box", component, output, (model.box,), cost))
    return rows + [_instance_row(model, name, pooled, detections) for name in model.instance]


def _instance_row(model: Any, name: str, pooled: RoIShape, detections: int) -> Row:
    branch = model.instance[name]
    shape = pooled if branch.extractor is None else branch.extractor.out_shape
    prediction, cost = _cost(branch.head, _regions(shape, detections))
    if branch.extractor is None and model.roi_stage is not None:
        cost += _cost(model.roi_stage, _regions(model.box.extractor.out_shape, detections))[1]
    source = "shared" if branch.extractor is None else _name(branch.extractor)
    shown = " × ".join(map(str, prediction.shape[1:])) if isinstance(prediction, Tensor) else "a prediction"
    output = f"{detections} regions {_spell(shape)} → {shown} each"
    return Row(f"model.instance.{name}", f"{source} → {_name(branch.head)}", output, (branch,), cost)


def _cost(function: Callable[..., Any], *inputs: Any) -> tuple[Any, int]:
    """Output and multiply-adds of a call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = function(*inputs)
    return output, counter.get_total_flops() // 2


def _padded(side: int, model: RCNN) -> int:
    divisor = model.preprocess.divisor
    return -(-side // divisor) * divisor


def _regions(shape: RoIShape, count: int) -> Tensor:
    return torch.empty(count, shape.channels, shape.height, shape.width, device="meta")


def _spell_maps(stage: Any) -> str:
    features: Mapping[str, FeatureSpec] = stage.out_features
    return ", ".join(f"{name} {spec.channels}/{spec.stride}" for name, spec in features.items())


def _spell(shape: RoIShape) -> str:
    return f"({shape.channels}, {shape.height}, {shape.width})"


def _name(component: Any) -> str:
    return type(component).__name__


def _cells(row: Row) -> list[str]:
    parameters = {id(p): p for module in row.modules if module is not None for p in module.parameters()}.values()
    count = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    cost = "" if row.cost is None else f"{row.cost / 1e9:.2f} G"
    return [row.stage, row.component, row.output, _amount(count), _amount(trained), cost]


def _amount(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def _aligned(cells: list[str], widths: list[int]) -> list[str]:
    """Text to the left, numbers to the right."""
    return [cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))]
