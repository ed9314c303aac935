"""What the rows of foreign weights mean: a state dict has as many as there are classes, but no names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from toolbox.data.skeletons import skeleton_of
from toolbox.errors import CheckpointError, DataError, counted, near_path
from toolbox.schema import Config
from toolbox.structures import Skeleton

COCO_ROWS = 90  # of category ids 1 … 90 in torchvision's models, ten of which COCO does not use


@dataclass(frozen=True)
class ClassTable:
    """Classes in the order of their labels.

    Attributes:
        names: of the K classes.
        category_ids: the data's own id of each.
        skeleton: joints, or None.
        source: where they come from, for messages.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    skeleton: Skeleton | None
    source: str

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shown(self) -> str:
        """Number, source and the first names, e.g. `3 classes of mine.json (cat, dog, cow)`."""
        names = ", ".join(self.names[:4]) + (", …" if len(self) > 4 else "")
        return f"{counted(len(self), 'class', 'classes')} of {self.source} ({names})"


@cache
def coco_classes() -> ClassTable:
    """COCO's 80 classes, with the joints of persons."""
    text = (files("toolbox.weights") / "coco.json").read_text(encoding="utf-8")
    return _of_categories(json.loads(text)["categories"], "COCO")


def _all_coco_rows() -> ClassTable:
    """A class for every row of torchvision's models, those that COCO does not use too."""
    known = dict(zip(coco_classes().category_ids, coco_classes().names, strict=True))
    ids = tuple(range(1, COCO_ROWS + 1))
    names = tuple(known.get(category, f"unused {category}") for category in ids)
    return ClassTable(names, ids, coco_classes().skeleton, "COCO with unused ids")


def read_classes(text: str) -> ClassTable:
    """The classes that a user names.

    Args:
        text: `coco`; `coco-90`, with a class for each of the ten ids that COCO does not use; a COCO annotation file; a
            text file with a name a line; or names with commas between. Without ids in it, they count from 1.

    Raises:
        CheckpointError: there is no such file, or it names no classes.
    """
    if text in ("coco", "coco-90"):
        return coco_classes() if text == "coco" else _all_coco_rows()
    path = Path(text)
    if path.is_file():
        return _of_file(path)
    if path.suffix in (".json", ".txt", ".names") or "/" in text:
        raise CheckpointError(
            f"--classes {text}: no such file{near_path(path)}; give a COCO annotation file, a file with a name a line, "
            "names with commas between, or coco"
        )
    return _of_names(text.split(","), "--classes")


def classes_of_data(config: Config) -> ClassTable | str:
    """The classes of the config's data sets, or why they cannot be known: the data need not be on this machine."""
    why = f"{config.path} names no data set"
    for split, plan in (("val", config.data.val), ("train", config.data.train)):  # the smaller one first
        if plan is None:
            continue
        try:
            dataset: Any = plan.build()
        except DataError as error:
            why = f"data.{split} cannot be read ({str(error).partition(chr(10))[0]})"
            continue
        source = f"data.{split} in {config.path}"
        return ClassTable(tuple(dataset.classes), tuple(dataset.category_ids), dataset.skeleton, source)
    return why


def classes_of_meta(meta: Mapping[str, Any], source: str) -> ClassTable | None:
    """The classes that a checkpoint of MMDetection names; their ids are COCO's for COCO's classes, else 1 … K."""
    data = meta.get("dataset_meta")
    found = meta.get("CLASSES") or (data.get("classes") if isinstance(data, Mapping) else None)
    if not isinstance(found, list | tuple) or not found or not all(isinstance(name, str) for name in found):
        return None
    coco = coco_classes()
    if tuple(found) == coco.names:
        return ClassTable(coco.names, coco.category_ids, None, source)
    return ClassTable(tuple(found), tuple(range(1, len(found) + 1)), None, source)


def assumed_classes(rows: int, joints: int | None) -> ClassTable | None:
    """Whose classes they can only be: COCO's 80 by their number, and its persons by that of their joints."""
    coco = coco_classes()
    if rows in (len(coco), COCO_ROWS):
        return coco
    if rows == 1 and coco.skeleton is not None and joints == len(coco.skeleton.names):
        return ClassTable(coco.names[:1], coco.category_ids[:1], coco.skeleton, "COCO's persons")
    return None


def rows_of(table: ClassTable, count: int) -> list[int]:
    """Which of `count` rows belongs to each class.

    They are as many as the classes, in their order; or the row of category id i is the i-th, as in torchvision's own
    training on COCO; or they are COCO's, and the table holds some of its classes.

    Raises:
        ValueError: none of that, with what would be.
    """
    if count == len(table):
        return list(range(count))
    ids = table.category_ids
    if count == max(ids) and min(ids) > 0:
        return [category - 1 for category in ids]
    coco = dict(zip(coco_classes().category_ids, coco_classes().names, strict=True))
    if all(coco.get(category) == name for category, name in zip(ids, table.names, strict=True)):
        if count == COCO_ROWS:
            return [category - 1 for category in ids]
        if count == len(coco):
            return [list(coco).index(category) for category in ids]
    by_id = f" or {max(ids)} (one for every category id up to the largest)" if max(ids) > len(ids) else ""
    rows, are = counted(count, "class", "classes"), "is" if len(table) == 1 else "are"
    raise ValueError(f"has rows for {rows}, but there {are} {table.shown}; {len(table)}{by_id} would fit")


def _of_file(path: Path) -> ClassTable:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix != ".json":
        return _of_names(text.splitlines(), str(path))
    try:
        categories = json.loads(text)["categories"]
        return _of_categories(sorted(categories, key=lambda category: category["id"]), str(path))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"--classes {path}: has no list 'categories' with 'id' and 'name' ({type(error).__name__}: {error}); "
            "give a COCO annotation file, or a text file with a name a line"
        ) from error


def _of_categories(categories: Sequence[Mapping[str, Any]], source: str) -> ClassTable:
    names = tuple(str(category["name"]) for category in categories)
    ids = tuple(int(category["id"]) for category in categories)
    return _checked(ClassTable(names, ids, skeleton_of(categories, source), source))


def _of_names(lines: Sequence[str], source: str) -> ClassTable:
    names = tuple(name for line in lines if (name := line.strip()))
    return _checked(ClassTable(names, tuple(range(1, len(names) + 1)), None, source))


def _checked(table: ClassTable) -> ClassTable:
    twice = [name for name in table.names if table.names.count(name) > 1]
    if not table.names or twice:
        fault = f"names '{twice[0]}' more than once" if twice else "names no class"
        raise CheckpointError(f"--classes {table.source}: {fault}; give every class one name")
    return table
