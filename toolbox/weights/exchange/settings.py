"""Settings of torchvision's models that no tensor's shape tells: with others, the same weights find other boxes."""

from __future__ import annotations

import json
from typing import Any

from toolbox.plan import Plan
from toolbox.schema import Config

_ALIGN = {"aligned": False, "sampling_ratio": 2}
_OF_TORCHVISION: dict[str, Any] = {
    "backbone.stride_in_1x1": False,
    "rpn.anchors.rounding": True,
    "rpn.anchors.whole_strides": True,
    "rpn.anchors.offset": 0.0,
    **{f"box.extractor.{name}": value for name, value in _ALIGN.items()},
    **{f"instance.{task}.extractor.{name}": value for task in ("mask", "keypoint") for name, value in _ALIGN.items()},
    "instance.mask.head.convention": "torchvision",
}


def unlike_torchvision(config: Config) -> list[str]:
    """Overrides that would make a config's model work as torchvision's, e.g. `model.box.extractor.aligned=false`."""
    overrides = []
    for key, wanted in _OF_TORCHVISION.items():
        found = _value(config.model, key.split("."))
        if found is not None and found != wanted:
            overrides.append(f"model.{key}={wanted if isinstance(wanted, str) else json.dumps(wanted)}")
    return overrides


def _value(plan: Any, path: list[str]) -> Any:
    """What a config has at a key, or None where it has no such thing."""
    for name in path:
        try:
            plan = plan[name] if isinstance(plan, Plan | dict) else None
        except KeyError:
            return None
    return plan
