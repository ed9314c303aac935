"""What `rcnn check` finds by running each stage once: a `forward` that fails on what it is wired to.

The stages run on the meta device, each on inputs as the stage before promises them, so that one that fails hides no
other.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from toolbox.errors import Problem, told
from toolbox.models.detector import RCNN
from toolbox.plan import Plan
from toolbox.structures import FeatureSpec, RoIShape

_REGIONS = 4
# What a component may do with values, but not without: the meta device has shapes and no data.
_NO_DATA = re.compile(r"(?<![a-z])meta(?![a-z])|data.dependent|\btriton\b", re.IGNORECASE)


def forward_problems(plan: Plan, model: Any, height: int, width: int) -> list[Problem]:
    """A problem at each stage whose `forward` raises.

    Args:
        plan: of the model.
        model: built on the meta device; put into evaluation.
        height, width: of an image in network pixels.
    """
    if not isinstance(model, RCNN):
        return []
    problems = []
    model.eval()
    for stage, module, given, what in _stages(plan, model, height, width):
        try:
            with torch.no_grad(), torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module(given)
        except Exception as error:  # whatever a plugin's code raises
            if not _NO_DATA.search(str(error)):
                name = type(module).__name__
                reason = told(error, getattr(sys.modules.get(type(module).__module__), "__file__", None))
                problems.append(stage.problem(f"{name}.forward fails on {what}: {reason}"))
    return problems


def _stages(plan: Plan, model: Any, height: int, width: int) -> Iterator[tuple[Plan, Any, Any, str]]:
    """Each stage's plan, module and input, and how to call that."""
    divisor = model.preprocess.divisor
    size = [-(-side // divisor) * divisor for side in (height, width)]
    channels = len(model.backbone.pixels.mean)
    images = torch.empty(1, channels, *size, device="meta")
    yield plan["backbone"], model.backbone, images, f"images ({channels}, {size[0]}, {size[1]})"
    maps = _maps(model.backbone.out_features, size)
    if model.neck is not None:
        yield plan["neck"], model.neck, maps, f"maps {_spell(maps)}"
        maps = _maps(model.neck.out_features, size)

    levels = {name: maps[name] for name in model.rpn.features}
    yield plan["rpn"]["head"], model.rpn.head, list(levels.values()), f"maps {_spell(levels)}"
    pooled = model.box.extractor.out_shape
    if model.roi_stage is not None:
        yield plan["roi_stage"], model.roi_stage, *_regions(pooled)
        pooled = model.roi_stage.out_shape
    yield plan["box"]["head"], model.box.head, *_regions(pooled)
    for name, branch in model.instance.items():
        shape = pooled if branch.extractor is None else branch.extractor.out_shape
        yield plan["instance"][name]["head"], branch.head, *_regions(shape)


def _maps(specs: Mapping[str, FeatureSpec], size: list[int]) -> dict[str, Tensor]:
    return {
        name: torch.empty(1, spec.channels, *(-(-side // spec.stride) for side in size), device="meta")
        for name, spec in specs.items()
    }


def _spell(maps: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} ({', '.join(map(str, x.shape[1:]))})" for name, x in maps.items())


def _regions(shape: RoIShape) -> tuple[Tensor, str]:
    sides = (shape.channels, shape.height, shape.width)
    return torch.empty(_REGIONS, *sides, device="meta"), f"regions {sides}"
