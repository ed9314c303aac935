"""Data sets in COCO's JSON format: instances and keypoints."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from toolbox.data.box_doubts import with_sizes
from toolbox.data.coco_file import read_coco_json, whole
from toolbox.data.coco_index import Bad, CocoIndex, CocoParser
from toolbox.data.images import read_image
from toolbox.data.interfaces import Sample
from toolbox.data.segmentation_store import box_outline, rings_with_area
from toolbox.data.skeletons import SkeletonSettings, skeleton_of
from toolbox.errors import DataError, counted, did_you_mean, near_path
from toolbox.masks import Mask, mask_from_coco
from toolbox.registry import DATASETS

logger = logging.getLogger("toolbox")


@DATASETS.register
class CocoDataset:
    """Images of a folder with the objects of a COCO JSON file: polygons, RLE of either kind, crowds, keypoints.

    Category ids may be any numbers: labels count from 0 in the order of the ids, or in the order of `classes`.

    Args:
        images: folder of the image files.
        annotations: the JSON file.
        classes: category names to keep; all by default.
        skip_empty: leave out images with no object, or with crowds only.
        bad: a box that sticks out of its image by more than a pixel is cut to it (`clip`), or its object left out
            (`drop`), or it is an error (`error`); one with no area in the image is left out, or an error.  An object
            without a mask where others have one is an error unless `drop`.
        boxes: how the file writes a box: `xywh`, as COCO does, or `xyxy`, the corners. By default as COCO does, unless
            the boxes together cannot be that (most leave their image, or all lie in one pixel), which is an error.
        masks: read the segmentations, where there are any.
        keypoints: read the keypoints, where there are any.
        skeleton: joint names, left/right pairs, limbs and OKS sigmas, where those of the file are wrong or missing.
        min_keypoints: leave out images whose objects together have fewer labelled joints.
        channels: of the images: 3 for RGB, 1 for grey, 4 for RGBA or four bands; other numbers are bands or pages of
            TIFFs, or `.npy` arrays (h, w, channels).
    """

    def __init__(
        self,
        *,
        images: Path,
        annotations: Path,
        classes: list[str] | None = None,
        skip_empty: bool = False,
        bad: Bad = "clip",
        boxes: Literal["xywh", "xyxy"] | None = None,
        masks: bool = True,
        keypoints: bool = True,
        skeleton: SkeletonSettings | None = None,
        min_keypoints: int = 0,
        channels: int = 3,
    ) -> None:
        self.folder = Path(images)
        self.file = Path(annotations)
        if bad not in ("drop", "clip", "error"):
            raise ValueError(f"bad is 'drop', 'clip' or 'error', not '{bad}'")
        if channels < 1:
            raise ValueError(f"channels is 1 or more, not {channels}")
        if min_keypoints and not keypoints:
            raise ValueError("min_keypoints counts keypoints, which 'keypoints: false' does not read")
        self.channels = channels
        self.boxes = boxes
        content = self._read()
        chosen = _chosen_categories(content["categories"], classes, self.file)
        self.classes = tuple(str(category["name"]) for category in chosen)
        self.category_ids = tuple(int(category["id"]) for category in chosen)
        self.skeleton = skeleton_of(chosen, str(self.file), skeleton) if keypoints else None
        labels: dict[int, int | None] = {category["id"]: None for category in content["categories"]}
        labels.update({category_id: label for label, category_id in enumerate(self.category_ids)})
        joints = len(self.skeleton.names) if self.skeleton else None
        parser = CocoParser(self.file, labels, joints=joints, masks=masks, bad=bad, trust=boxes is not None)
        self.index: CocoIndex = parser.parse(content, skip_empty=skip_empty, min_keypoints=min_keypoints)
        _check_files(self.folder, self.index)

    def _read(self) -> dict[str, Any]:
        """The file, its boxes as COCO writes them."""
        content = read_coco_json(self.file)
        return with_sizes(content) if self.boxes == "xyxy" else content

    def __len__(self) -> int:
        return len(self.index.files)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width as the file declares them."""
        height, width = self.index.sizes[index]
        return int(height), int(width)

    def labels(self, index: int) -> np.ndarray:
        """Labels (G,) int64 of an image's objects, crowds left out."""
        rows = slice(self.index.starts[index], self.index.starts[index + 1])
        return self.index.labels[rows][~self.index.crowd[rows]]

    def load(self, index: int) -> Sample:
        """One image with its objects.

        Raises:
            DataError: the image cannot be read or has other size or channels than declared, or a mask is broken.
        """
        known = self.index
        rows = slice(known.starts[index], known.starts[index + 1])
        return Sample(
            image=read_image(self.folder / known.files[index], self.size(index), self.channels),
            boxes=known.boxes[rows].copy(),
            labels=known.labels[rows].copy(),
            crowd=known.crowd[rows].copy(),
            area=known.area[rows].copy(),
            masks=self._masks(index),
            keypoints=None if known.keypoints is None else known.keypoints[rows].copy(),
            image_id=int(known.image_ids[index]),
        )

    def _masks(self, index: int) -> list[Mask] | None:
        store = self.index.segmentations
        if store is None:
            return None
        height, width = self.size(index)
        masks: list[Mask] = []
        for row in range(self.index.starts[index], self.index.starts[index + 1]):
            try:
                masks.append(mask_from_coco(store.get(row, height, width), height, width))
            except ValueError as error:
                name = self.index.annotation_ids[row]
                raise DataError(
                    f"{self.file}: annotation {name}: {error}; correct it, or set 'masks: false'"
                ) from error
        return masks

    def ground_truth(self) -> dict[str, Any]:
        """The file's own records, of the images, objects and classes that this data set holds.

        They are read from the file again: the evaluator wants their boxes and masks exactly as they are, and training
        need not keep them. What the reader lets pass and evaluators do not is made good: no or null `iscrowd` and
        `area`, rings without an area, crowds without a mask.
        """
        content = self._read()
        image_ids = set(self.index.image_ids.tolist())
        annotation_ids = set(self.index.annotation_ids.tolist())
        by_id = {category["id"]: category for category in content["categories"]}
        return {
            "info": content.get("info", {}),
            "images": [image for image in content["images"] if image["id"] in image_ids],
            "annotations": [
                self._true_record(record) for record in content["annotations"] if record["id"] in annotation_ids
            ],
            "categories": [by_id[category_id] for category_id in self.category_ids],
        }

    def _true_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """An annotation that any evaluator reads; without its mask if masks are not read, and so not checked."""
        x, y, w, h = record["bbox"]
        area = record.get("area")
        known = {**record, "iscrowd": int(record.get("iscrowd") or 0), "area": w * h if area is None else area}
        known.pop("segmentation", None)
        if self.index.segmentations is not None:
            given = record.get("segmentation") or box_outline(x, y, x + w, y + h)
            known["segmentation"] = given if isinstance(given, Mapping) else rings_with_area(given)
        return known


def _chosen_categories(
    categories: Sequence[Mapping[str, Any]], classes: Sequence[str] | None, file: Path
) -> list[Mapping[str, Any]]:
    """The categories in order of their labels."""
    for category in categories:
        has_id = isinstance(category, Mapping) and whole(category.get("id"))
        if not has_id or not isinstance(category.get("name"), (str, int)):
            raise DataError(
                f"{file}: category {category!r:.80} lacks a name, or an id that is a whole number from 0; "
                'write {"id": 1, "name": …}'
            )
    for key in ("id", "name"):
        # As text: names 1 and "1" are the same class to whoever asks for it.
        values = Counter(str(category[key]) for category in categories)
        twice = next((value for value, count in values.items() if count > 1), None)
        if twice is not None:
            raise DataError(f"{file}: two categories have the {key} {twice!r}; they must differ")
    if not categories:
        raise DataError(f"{file}: no categories; a detector needs at least one class")
    if classes is None:
        return sorted(categories, key=lambda category: category["id"])
    if not classes or len(set(classes)) < len(classes):
        raise DataError(f"{file}: 'classes' is {list(classes)}; name each class once, or leave it out for all")
    by_name = {str(category["name"]): category for category in categories}
    unknown = [name for name in classes if name not in by_name]
    if unknown:
        known = ", ".join(by_name)
        raise DataError(f"{file}: no category '{unknown[0]}'{did_you_mean(unknown[0], by_name)} (categories: {known})")
    return [by_name[name] for name in classes]


def _check_files(folder: Path, index: CocoIndex) -> None:
    """Find missing images now, by one listing of each folder, rather than hours into a run."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else f"no such folder{near_path(folder)}"
        raise DataError(f"{folder}: {what}; 'images' is the folder of the image files")
    listings: dict[Path, set[str]] = {}
    missing = []
    for name, image_id in zip(index.files, index.image_ids, strict=True):
        path = folder / name
        if path.parent not in listings:
            listings[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
        if path.name not in listings[path.parent]:
            missing.append((name, int(image_id)))
    if missing:
        listed = ", ".join(f"{name} (image id {image_id})" for name, image_id in missing[:3])
        name = missing[0][0]
        found = _found_elsewhere(folder, name, listings[(folder / name).parent])
        raise DataError(
            f"{folder}: {len(missing)} of {counted(len(index.files), 'image')} "
            f"{'is' if len(missing) == 1 else 'are'} missing, e.g. {listed}{found}; "
            f"check 'images', or take them out of the annotation file"
        )


def _found_elsewhere(folder: Path, name: str, beside: Collection[str]) -> str:
    """Where an image that is missing may be: with another suffix, or with another folder as `images`."""
    other = next((entry for entry in sorted(beside) if Path(entry).stem == Path(name).stem), None)
    if other is not None:
        return f"; there is {other}"
    if "\\" in name and (folder / name.replace("\\", "/")).exists():
        return f"; write / for \\ in its name: {name.replace(chr(92), '/')}"
    for base in (folder.parent, *sorted(entry for entry in folder.iterdir() if entry.is_dir())):
        if (base / name).exists():
            return f"; it lies in {base}: set 'images: {base}'"
    last = Path(name).name
    if (folder / last).exists():
        return f"; {last} lies in {folder} itself: take '{Path(name).parent}/' out of the file's names"
    return ""
