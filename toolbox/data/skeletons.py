"""Skeletons from COCO categories: joints, left/right pairs, limbs and sigmas."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from toolbox.errors import DataError, did_you_mean
from toolbox.structures import Skeleton

logger = logging.getLogger("toolbox")

COCO_SIGMAS: dict[str, float] = {
    "nose": 0.026,
    **{f"{side}_eye": 0.025 for side in ("left", "right")},
    **{f"{side}_ear": 0.035 for side in ("left", "right")},
    **{f"{side}_shoulder": 0.079 for side in ("left", "right")},
    **{f"{side}_elbow": 0.072 for side in ("left", "right")},
    **{f"{side}_wrist": 0.062 for side in ("left", "right")},
    **{f"{side}_hip": 0.107 for side in ("left", "right")},
    **{f"{side}_knee": 0.087 for side in ("left", "right")},
    **{f"{side}_ankle": 0.089 for side in ("left", "right")},
}
DEFAULT_SIGMA = 0.05
_PAIR_FIELDS = ("flip_pairs", "pairs", "symmetry")


def skeleton_of(
    categories: Sequence[Mapping[str, Any]], where: str, sigmas: Sequence[float] | None = None
) -> Skeleton | None:
    """The joints that the categories share, or None when no category has any.

    Left/right pairs are taken from the category's own `flip_pairs`, `pairs` or `symmetry` (joint names, or numbers from
    1 as in COCO's `skeleton`), else from joint names that differ in left and right only. Sigmas are those given, else
    the category's own `sigmas`, else COCO's for COCO's joints, else 0.05 each.

    Args:
        categories: of COCO.
        where: the file, for messages.
        sigmas: in order of the joints.

    Raises:
        DataError: categories with different joints, or a field that does not fit the joints.
    """
    with_joints = [category for category in categories if category.get("keypoints")]
    if not with_joints:
        return None
    first = with_joints[0]
    names = _names(first, where)
    for category in with_joints[1:]:
        if _names(category, where) != names:
            raise DataError(
                f"{where}: categories '{first['name']}' and '{category['name']}' have different keypoints; "
                f"a data set has one skeleton: choose with 'classes', or set 'keypoints: false'"
            )
    try:
        return Skeleton(
            names=names,
            pairs=_pairs(first, names),
            limbs=tuple((int(a) - 1, int(b) - 1) for a, b in first.get("skeleton", ())),
            sigmas=_sigmas(first, names, sigmas, where),
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where}: category '{first['name']}': {error}") from error


def _names(category: Mapping[str, Any], where: str) -> tuple[str, ...]:
    names = category["keypoints"]
    if not isinstance(names, list) or not all(isinstance(name, (str, int)) for name in names):
        raise DataError(
            f"{where}: category '{category['name']}': keypoints is {names!r:.60}; it is a list of joint names, "
            "or left out of a category without joints"
        )
    return tuple(map(str, names))


def _pairs(category: Mapping[str, Any], names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    for name in _PAIR_FIELDS:
        if name in category:
            return tuple((_joint(a, names), _joint(b, names)) for a, b in category[name])
    return left_right_pairs(names)


def _joint(joint: int | str, names: tuple[str, ...]) -> int:
    if isinstance(joint, str):
        if joint not in names:
            raise ValueError(f"there is no joint '{joint}'{did_you_mean(joint, names)}")
        return names.index(joint)
    return int(joint) - 1


def left_right_pairs(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Index pairs of joints whose names differ in left and right (l and r) only: `left_eye`, `EyeLeft`, `leg_l_2`."""
    index = {name: i for i, name in enumerate(names)}
    pairs = []
    for name, i in index.items():
        words = (
            re.sub("left", "right", name, count=1),
            re.sub("Left", "Right", name, count=1),
            re.sub("LEFT", "RIGHT", name, count=1),
            re.sub(r"(?<![A-Za-z])l(?![A-Za-z])", "r", name, count=1),
            re.sub(r"(?<![A-Za-z])L(?![a-z])", "R", name, count=1),
        )
        other = next((word for word in words if word != name and word in index), None)
        if other is not None:
            pairs.append((i, index[other]))
    return tuple(pairs)


def _sigmas(
    category: Mapping[str, Any], names: tuple[str, ...], given: Sequence[float] | None, where: str
) -> tuple[float, ...]:
    chosen = given if given is not None else category.get("sigmas")
    if chosen is not None:
        return tuple(map(float, chosen))
    if set(names) == set(COCO_SIGMAS):
        return tuple(COCO_SIGMAS[name] for name in names)
    logger.info(
        "%s: no OKS sigmas for the %d keypoints of '%s'; %g is used for each (set 'sigmas' to change)",
        where,
        len(names),
        category["name"],
        DEFAULT_SIGMA,
    )
    return (DEFAULT_SIGMA,) * len(names)
