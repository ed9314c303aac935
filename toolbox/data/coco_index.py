"""The lists of a COCO file, checked, and kept in a few arrays.

Arrays rather than lists of dicts: a tenth of the memory, and workers that are forked share them without copying.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from toolbox.data.box_doubts import TOLERANCE, BoxDoubts
from toolbox.data.coco_file import whole
from toolbox.data.segmentation_store import SegmentationStore, box_outline, segmentation_fault
from toolbox.errors import DataError, counted

logger = logging.getLogger("toolbox")

Bad = Literal["drop", "clip", "error"]
_SHOWN = 10  # findings in one message
_MEANING = {
    "id": "a number of its own",
    "image_id": "the id of its image",
    "category_id": "the id of its class",
    "bbox": "[x, y, width, height] in pixels",
}


@dataclass(frozen=True)
class CocoIndex:
    """The images of a COCO file and their objects; objects of image i are rows starts[i] … starts[i + 1].

    Attributes:
        files: I file names.
        image_ids: (I,) int64.
        sizes: (I, 2) int32, height and width.
        starts: (I + 1,) int64.
        annotation_ids: (A,) int64.
        boxes: (A, 4) float32, x1 y1 x2 y2, inside the image.
        labels: (A,) int64.
        crowd: (A,) bool.
        area: (A,) float32.
        keypoints: (A, J, 3) float32, or None.
        segmentations: of the A objects, or None.
    """

    files: tuple[str, ...]
    image_ids: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray
    annotation_ids: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    keypoints: np.ndarray | None
    segmentations: SegmentationStore | None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _pixels(value: Any) -> bool:
    return _finite(value) and 1 <= value < 2**31 and value == int(value)


def _labelled_joints(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(visibility > 0 for row in rows for visibility in (row["keypoints"] or ())[2::3])


class CocoParser:
    """Turns the lists of a COCO file into a CocoIndex, gathering all findings before it fails.

    Args:
        path: of the file, for messages.
        labels: category id → label, or None for a category that is in the file but not chosen.
        joints: J, or None when keypoints are not read.
        masks: read segmentations.
        bad: what to do with boxes that leave the image and masks that are missing.
        trust: take the boxes as they are, whatever they look like together.
    """

    def __init__(
        self,
        path: Path,
        labels: Mapping[int, int | None],
        *,
        joints: int | None,
        masks: bool,
        bad: Bad,
        trust: bool = False,
    ) -> None:
        self.path = path
        self.labels = labels
        self.joints = joints
        self.masks = masks
        self.bad = bad
        self.findings: list[str] = []
        self.dropped: list[str] = []
        self.droppable = False  # whether one of the findings would go away with `bad: drop`
        self.trust = trust
        self.doubts = BoxDoubts()
        self.cut: list[str] = []
        self.unread: set[int] = set()  # ids of images with a finding: their objects get none for that

    def parse(self, content: Mapping[str, Any], *, skip_empty: bool, min_keypoints: int = 0) -> CocoIndex:
        """Check everything, then pack it.

        Raises:
            DataError: the first findings and how many there are.
        """
        images = self._images(content["images"])
        objects = self._objects(content["annotations"], images)
        if self.masks and not any(known["segmentation"] for rows in objects.values() for known in rows):
            self.masks = False
        if self.masks:
            objects = {image_id: self._with_masks(rows, images[image_id]) for image_id, rows in objects.items()}
        self._report()
        if not any(not row["crowd"] for rows in objects.values() for row in rows):
            chosen = " of the chosen classes" if content["annotations"] else ", its list of annotations is empty"
            chosen = " but crowds (iscrowd: 1)" if any(objects.values()) else chosen
            logger.warning("%s: no objects%s; there is nothing to learn or to find", self.path, chosen)
        if skip_empty:
            # Crowds alone give nothing to train on.
            images = {i: image for i, image in images.items() if not all(row["crowd"] for row in objects[i])}
        if min_keypoints:
            images = {i: image for i, image in images.items() if _labelled_joints(objects[i]) >= min_keypoints}
        if not images:
            kept = " with objects of the chosen classes; 'skip_empty: false' keeps the others" if skip_empty else ""
            kept = f" with {min_keypoints} labelled joints; lower 'min_keypoints'" if min_keypoints else kept
            raise DataError(f"{self.path}: no images" + (kept or "; its list of 'images' is empty"))
        return self._pack(images, objects)

    def _images(self, entries: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
        images: dict[int, Mapping[str, Any]] = {}
        for position, entry in enumerate(entries):
            finding = self._image_fault(entry, f"number {position + 1}", images)
            if finding:
                self.findings.append(finding)
                if isinstance(entry, Mapping) and whole(entry.get("id")):
                    self.unread.add(entry["id"])
            else:
                images[entry["id"]] = entry
        return images

    @staticmethod
    def _image_fault(entry: Any, number: str, images: Mapping[int, Any]) -> str:
        if not isinstance(entry, Mapping):
            return f"image {number} is {entry!r:.60}; it is a mapping with id, file_name, height and width"
        absent = [key for key in ("id", "file_name", "height", "width") if entry.get(key) is None]
        if absent:
            return f"image {entry.get('id', number)} has no {', '.join(absent)}; sizes are in pixels, file_name a path"
        if not whole(entry["id"]):
            return f"image id {entry['id']!r} is not a whole number from 0; number the images 1, 2, 3 …"
        if entry["id"] in images:
            return f"two images have id {entry['id']}; ids must differ"
        if not isinstance(entry["file_name"], str):
            return f"image {entry['id']}: file_name is {entry['file_name']!r}; it is a path inside the folder of images"
        if not (_pixels(entry["height"]) and _pixels(entry["width"])):
            size = f"width {entry['width']!r} and height {entry['height']!r}"
            return f"image {entry['id']} is declared with {size}; they are whole numbers of pixels, not text"
        return ""

    def _objects(
        self, entries: Sequence[Mapping[str, Any]], images: Mapping[int, Mapping[str, Any]]
    ) -> dict[int, list[dict[str, Any]]]:
        objects: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
        seen: set[int] = set()
        for position, entry in enumerate(entries):
            number = f"number {position + 1}"
            if not isinstance(entry, Mapping):
                self.findings.append(f"annotation {number} is {entry!r:.60}; it is a mapping with id, bbox …")
                continue
            name = f"annotation {entry.get('id', number)}"
            absent = [key for key in ("id", "image_id", "category_id", "bbox") if entry.get(key) is None]
            unfit = [key for key in ("id", "image_id", "category_id") if not whole(entry.get(key))]
            if absent:
                self.findings.append(f"{name} has no {', '.join(f'{key} ({_MEANING[key]})' for key in absent)}")
            elif unfit:
                wrong = " and ".join(f"{key} {entry[key]!r:.60}" for key in unfit)
                self.findings.append(f"{name}: {wrong} is not a whole number from 0; write numbers, without quotes")
            elif entry["id"] in seen:
                self.findings.append(f"two annotations have id {entry['id']}; ids must differ")
            elif entry["image_id"] in self.unread:
                pass
            elif entry["image_id"] not in images:
                self.findings.append(f"{name} is on image id {entry['image_id']}, which is not among the images")
            elif entry["category_id"] not in self.labels:
                known = ", ".join(map(str, list(self.labels)[:20]))
                self.findings.append(f"{name} has category id {entry['category_id']}; the categories are {known}")
            elif self.labels[entry["category_id"]] is not None:
                row = self._object(entry, name, images[entry["image_id"]])
                if row is not None:
                    objects[entry["image_id"]].append(row)
            if "id" not in unfit:
                seen.add(entry["id"])
        return objects

    def _object(self, entry: Mapping[str, Any], name: str, image: Mapping[str, Any]) -> dict[str, Any] | None:
        """One annotation as a row, or None with a finding."""
        box, crowd, area = entry["bbox"], entry.get("iscrowd"), entry.get("area")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_finite, box)):
            quoted = isinstance(box, list) and any(isinstance(value, str) for value in box)
            numbers = ", numbers without quotes" if quoted else ""
            self.findings.append(f"{name}: bbox is {box}; it is [x, y, width, height] in pixels{numbers}")
            return None
        if crowd not in (None, 0, 1):
            self.findings.append(f"{name}: iscrowd is {crowd!r:.60}; it is 0 or 1")
            return None
        if area is not None and not _finite(area):
            self.findings.append(f"{name}: area is {area!r:.60}; it is a number, or left out for that of the box")
            return None
        inside = self._inside(box, name, image)
        if inside is None:
            return None
        keypoints = None
        if self.joints is not None:
            keypoints = entry.get("keypoints") or [0] * (3 * self.joints)
            if not isinstance(keypoints, list) or not all(map(_finite, keypoints)):
                self.findings.append(f"{name}: keypoints are {keypoints!r:.60}; they are numbers x1 y1 v1 x2 y2 v2 …")
                return None
            if len(keypoints) != 3 * self.joints:
                self.findings.append(f"{name}: {len(keypoints)} keypoint numbers for {self.joints} joints of 3 numbers")
                return None
        return {
            "id": entry["id"],
            "box": inside,
            "label": self.labels[entry["category_id"]],
            "crowd": bool(crowd),
            "area": box[2] * box[3] if area is None else area,
            "keypoints": keypoints,
            "segmentation": (entry.get("segmentation") or None) if self.masks else None,
        }

    def _inside(self, box: Sequence[float], name: str, image: Mapping[str, Any]) -> list[float] | None:
        """x1 y1 x2 y2 cut to the image, or None when `bad` does not want this box."""
        height, width = image["height"], image["width"]
        x, y, w, h = box
        cut = [min(max(x, 0), width), min(max(y, 0), height), min(max(x + w, 0), width), min(max(y + h, 0), height)]
        empty = cut[2] <= cut[0] or cut[3] <= cut[1]
        outside = max(-x, -y, x + w - width, y + h - height) > TOLERANCE
        self.doubts.add(box, name, height, width)
        if not (empty or outside):
            return cut
        fault = "has no area in" if empty else "sticks out of"
        message = f"{name}: bbox {list(box)} {fault} the image ({width} x {height})"
        if empty or self.bad != "clip":
            self._unfit(message, fatal=self.bad == "error")
            return None
        self.cut.append(message)
        return cut

    def _with_masks(self, rows: list[dict[str, Any]], image: Mapping[str, Any]) -> list[dict[str, Any]]:
        kept = []
        for row in rows:
            if row["crowd"] and row["segmentation"] is None:
                row["segmentation"] = box_outline(*row["box"])  # never a mask target; keeps masks and boxes in step
            fault = segmentation_fault(row["segmentation"], image["height"], image["width"])
            if fault:
                # Clipping cannot make a mask, and training on an empty one teaches that the object has none.
                self._unfit(f"annotation {row['id']}: {fault}", fatal=self.bad != "drop")
            else:
                kept.append(row)
        return kept

    def _unfit(self, message: str, *, fatal: bool) -> None:
        (self.findings if fatal else self.dropped).append(message)
        self.droppable = self.droppable or fatal

    def _report(self) -> None:
        corners = self.doubts.hint()
        verdict = "" if self.trust else self.doubts.verdict()
        if self.findings:
            shown = "\n".join(f"  {finding}" for finding in self.findings[:_SHOWN])
            more = f"\n  … and {len(self.findings) - _SHOWN} more" if len(self.findings) > _SHOWN else ""
            hint = "; 'bad: drop' leaves out objects with an unfit box or mask" if self.droppable else ""
            hint += "; 'masks: false' reads boxes only" if self.droppable and self.masks else ""
            hint += f"; {verdict or corners}" if verdict or corners else ""
            faults = counted(len(self.findings), "problem")
            raise DataError(f"{self.path}: {faults}; correct the file{hint}\n{shown}{more}")
        if verdict:
            raise DataError(f"{self.path}: {verdict}")
        for rows, fate in ((self.cut, "boxes cut to their image"), (self.dropped, "objects left out")):
            if rows:
                logger.warning("%s: %s: %d of %d, e.g. %s", self.path, fate, len(rows), self.doubts.total, rows[0])
        if corners:
            logger.warning("%s: %s", self.path, corners)

    def _pack(self, images: Mapping[int, Mapping[str, Any]], objects: Mapping[int, list[dict[str, Any]]]) -> CocoIndex:
        counts = [len(objects[image_id]) for image_id in images]
        rows = [row for image_id in images for row in objects[image_id]]
        joints = self.joints
        return CocoIndex(
            files=tuple(image["file_name"] for image in images.values()),
            image_ids=np.array(list(images), dtype=np.int64),
            sizes=np.array([(image["height"], image["width"]) for image in images.values()], dtype=np.int32),
            starts=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
            annotation_ids=np.array([row["id"] for row in rows], dtype=np.int64),
            boxes=np.array([row["box"] for row in rows], dtype=np.float32).reshape(-1, 4),
            labels=np.array([row["label"] for row in rows], dtype=np.int64),
            crowd=np.array([row["crowd"] for row in rows], dtype=bool),
            area=np.array([row["area"] for row in rows], dtype=np.float32),
            keypoints=None
            if joints is None
            else np.array([row["keypoints"] for row in rows], dtype=np.float32).reshape(-1, joints, 3),
            segmentations=SegmentationStore([row["segmentation"] for row in rows]) if self.masks else None,
        )
