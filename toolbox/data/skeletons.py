"""Skeletons from COCO categories: joints, left/right pairs, limbs and sigmas."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from toolbox.errors import DataError, counted, did_you_mean
from toolbox.structures import Skeleton

logger = logging.getLogger("toolbox")

Side = Literal["left", "right", "middle"]

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
_SIDES = {"left", "right", "l", "r"}
_PAIR_FIELDS = ("flip_pairs", "pairs", "symmetry")


@dataclass(frozen=True)
class SkeletonSettings:
    """What a config says of the joints; what it leaves out comes from the annotation file.

    Attributes:
        names: of the joints, in the order in which the annotations list them.
        pairs: a left and a right joint, which trade places when an image is mirrored; `[]` for none. By name, or by
            number from 1 as in COCO's `skeleton`.
        limbs: two joints that drawings join by a line, likewise.
        sigmas: OKS sigma of each joint, in the order of the joints.
    """

    names: list[str] | None = None
    pairs: list[tuple[str | int, str | int]] | None = None
    limbs: list[tuple[str | int, str | int]] | None = None
    sigmas: list[float] | None = None

    def __post_init__(self) -> None:
        if self.names is not None and (not self.names or len(set(self.names)) < len(self.names)):
            raise ValueError(f"names are those of one joint or more, each once, got {self.names}")
        if self.sigmas is not None and not all(sigma > 0 for sigma in self.sigmas):
            raise ValueError(f"sigmas are above 0, got {self.sigmas}")


def skeleton_of(
    categories: Sequence[Mapping[str, Any]], where: str, settings: SkeletonSettings | None = None
) -> Skeleton | None:
    """The joints that the categories share, or None when there are none.

    What `settings` say goes before the file. Left/right pairs are else taken from the category's own `flip_pairs`,
    `pairs` or `symmetry` (joint names, or numbers from 1 as in COCO's `skeleton`), else from joint names that differ in
    left and right only. Sigmas are else the category's own `sigmas`, else COCO's for COCO's joints, else 0.05 each.

    Args:
        categories: of COCO.
        where: the file, for messages.
        settings: of the config.

    Raises:
        DataError: categories with different joints, or a field that does not fit the joints.
        ValueError: settings that do not.
    """
    settings = settings or SkeletonSettings()
    with_joints = [category for category in categories if category.get("keypoints")]
    for category in with_joints:
        names = _names(category, where)
        if settings.names is not None and len(settings.names) != len(names):
            raise ValueError(
                f"skeleton names {counted(len(settings.names), 'joint')}, but the category '{category['name']}' of "
                f"{where} has {len(names)}; give a name to each, or leave 'names' out"
            )
        if settings.names is None and names != _names(with_joints[0], where):
            raise DataError(
                f"{where}: categories '{with_joints[0]['name']}' and '{category['name']}' have different keypoints; "
                f"a data set has one skeleton: choose with 'classes', or set 'keypoints: false'"
            )
    if not with_joints and settings.names is None:
        if settings != SkeletonSettings():
            raise ValueError(f"skeleton has no names, and no category of {where} has 'keypoints'; add 'names'")
        return None
    category = with_joints[0] if with_joints else {"name": categories[0]["name"]}
    names = tuple(settings.names or _names(category, where))
    try:
        known = Skeleton(names, _pairs(category, names), _limbs(category), tuple(category.get("sigmas") or ()))
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where}: category '{category['name']}': {error}") from error
    return _completed(known, settings, category, where)


def _completed(known: Skeleton, settings: SkeletonSettings, category: Mapping[str, Any], where: str) -> Skeleton:
    """The file's skeleton with what the config says instead, and sigmas in any case."""
    names = known.names
    given: dict[str, Any] = {}
    wrong: list[str] = []
    for field in ("pairs", "limbs"):
        written = getattr(settings, field)
        if written is not None:
            faults = _faults(written, names)
            wrong += [f"{field}: {fault}" for fault in faults]
            given[field] = () if faults else tuple((_joint(a, names), _joint(b, names)) for a, b in written)
    skeleton = known
    for field, values in {**given, "sigmas": settings.sigmas}.items():
        try:
            skeleton = skeleton if values is None else replace(skeleton, **{field: tuple(values)})
        except ValueError as error:
            wrong.append(str(error))
    if wrong:  # in one line, whose first word says which setting it is about
        raise ValueError(f"skeleton: {'; '.join(wrong)} (joints: {_in_short(names)})")
    alone = [] if settings.pairs is not None else unpaired(skeleton)
    if alone:
        logger.warning(
            "%s: %s: there is no partner on the other side, so mirrored images teach the wrong side; correct the name, "
            "or give the pairs ('skeleton: {pairs: [[left, right], …]}', [] for none)",
            where,
            ", ".join(f"'{name}'" for name in alone),
        )
    return skeleton if skeleton.sigmas else replace(skeleton, sigmas=_default_sigmas(names, category, where))


def unpaired(skeleton: Skeleton) -> list[str]:
    """Joints that are called left or right (l or r) and stand in no pair."""
    paired = {joint for pair in skeleton.pairs for joint in pair}
    return [name for joint, name in enumerate(skeleton.names) if joint not in paired and _SIDES & _words(name)]


def sides(skeleton: Skeleton) -> tuple[Side, ...]:
    """The side of each joint: by its name, or else of a pair the first is left; one without a partner is the middle."""
    found: dict[int, Side] = {}
    for pair in skeleton.pairs:
        words = [_words(skeleton.names[joint]) for joint in pair]
        turned = bool({"right", "r"} & words[0] or {"left", "l"} & words[1])
        found |= dict(zip(pair, ("right", "left") if turned else ("left", "right"), strict=True))
    return tuple(found.get(joint, "middle") for joint in range(len(skeleton.names)))


def _words(name: str) -> set[str]:
    """`leg_l_2`, `EyeLeft` and `LEye` to words in small letters."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


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


def _faults(written: Sequence[tuple[int | str, int | str]], names: tuple[str, ...]) -> list[str]:
    """What is wrong with joints that a config names, each once."""
    found = []
    for joint in dict.fromkeys(joint for pair in written for joint in pair):
        if isinstance(joint, str) and joint not in names:
            found.append(f"there is no joint '{joint}'{did_you_mean(joint, names)}")
        elif isinstance(joint, int) and not 1 <= joint <= len(names):
            found.append(f"there is no joint {joint}; numbers go from 1 to {len(names)}, as in COCO's 'skeleton'")
    return found


def _in_short(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:6])}, … {names[-1]}, {len(names)} in all"


def _limbs(category: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    return tuple((int(a) - 1, int(b) - 1) for a, b in category.get("skeleton") or ())


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


def _default_sigmas(names: tuple[str, ...], category: Mapping[str, Any], where: str) -> tuple[float, ...]:
    if set(names) == set(COCO_SIGMAS):
        return tuple(COCO_SIGMAS[name] for name in names)
    logger.info(
        "%s: no OKS sigmas for the %d keypoints of '%s'; %g is used for each (set 'skeleton: {sigmas: […]}' to change)",
        where,
        len(names),
        category["name"],
        DEFAULT_SIGMA,
    )
    return (DEFAULT_SIGMA,) * len(names)
