"""Names of what an evaluation gives (engine/coco_metrics.py): `segm.AP`, `bbox.per_class.cat`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, cast

from toolbox.errors import did_you_mean

Kind = Literal["bbox", "segm", "keypoints"]

# `AP@300`, `AR@300` and `per_class.NAME` come on top.
METRICS: dict[str, tuple[str, ...]] = {
    "bbox": ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
    "segm": ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"),
}


def split_metric(name: str) -> tuple[Kind, str]:
    """`segm.AP` → `segm` and `AP`.

    Raises:
        ValueError: there is no such number, and what there is.
    """
    kind, _, number = name.partition(".")
    known = METRICS.get(kind)
    if known is None and "loss" in name:
        raise ValueError(f"'{name}' is a loss, of which less is better; name a metric of the evaluation, e.g. segm.AP")
    if known is None:
        near = did_you_mean(kind, METRICS) or f" (kinds: {', '.join(METRICS)})"
        raise ValueError(f"expected a kind and a number of it, e.g. segm.AP, got '{name}'{near}")
    if number not in known and not re.fullmatch(r"A[PR]@\d+|per_class\..+", number):
        near = did_you_mean(number, known) or f" (it has {', '.join(known)})"
        raise ValueError(f"{kind} has no number '{number}'{near}")
    return cast(Kind, kind), number


def value_of(metrics: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    """A number of an evaluation by its name; None where there is none, or nothing to find (COCO's -1)."""
    kind, _, number = name.partition(".")
    numbers: Mapping[str, Any] = metrics.get(kind, {})
    if number.startswith("per_class."):
        numbers, number = numbers.get("per_class", {}), number.removeprefix("per_class.")
    value = numbers.get(number)
    return None if value is None or value < 0 else float(value)
