"""Predict image files and write what was found: COCO results and pictures."""

from __future__ import annotations

import glob
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
import torch

from toolbox.engine.coco_metrics import coco_results
from toolbox.errors import DataError, near_path
from toolbox.inference.images import read_image
from toolbox.inference.pictures import write_picture
from toolbox.inference.predictor import Predictor
from toolbox.structures import Detections
from toolbox.visualize import draw_detections, picture_scale
from toolbox.weights import replacing

logger = logging.getLogger("toolbox")

LARGEST_EXTRA = 1024  # numbers a detection
_KNOWN = ("id", "image_id", "category_id", "bbox", "score", "segmentation", "keypoints", "area", "iscrowd", "caption")
# HEIC is not read, but somebody with a folder of it is told so.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm", ".pnm"),
    *(".gif", ".avif", ".jp2", ".j2k", ".heic", ".heif"),
)
ARRAY_SUFFIXES = (".npy",)


def find_images(inputs: Sequence[str], channels: int = 3) -> list[Path]:
    """Image files behind files, folders (with their subfolders) and glob patterns, each once, in the order given.

    A path that is neither is kept, so that it is reported with the images that cannot be read. In folders, `.npy` files
    are images only where those have other channels than 3: beside photos they hold something else.

    Raises:
        DataError: a folder or a pattern without any image, or no input exists.
    """
    here = f" (paths are relative to the current folder, {Path.cwd()})"
    absent = [entry for entry in inputs if not Path(entry).exists() and not glob.has_magic(entry)]
    if len(absent) == len(inputs):
        raise DataError(
            "\n".join(
                f"{entry}: no such file or folder{near_path(entry) or ('' if Path(entry).is_absolute() else here)}"
                for entry in absent
            )
        )
    suffixes = IMAGE_SUFFIXES if channels == 3 else IMAGE_SUFFIXES + ARRAY_SUFFIXES
    found: dict[Path, None] = {}
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            named = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in suffixes]
            files = [file for file in named if not file.is_dir()]
            if not files:
                raise DataError(f"{entry}: no image in this folder (looked for {', '.join(suffixes)})")
        elif not path.exists() and glob.has_magic(entry):
            files = [file for file in map(Path, sorted(glob.glob(entry, recursive=True))) if file.is_file()]
            if not files:
                raise DataError(f"{entry}: no file matches this pattern")
        else:
            files = [path]
        found.update(dict.fromkeys(files))
    return list(found)


class ResultFolder:
    """What a prediction run leaves: `predictions.json`, `images.json` and `pictures/`.

    `predictions.json` is the plain COCO results list that every COCO evaluator loads. Its image ids count the inputs
    from 1; `images.json` says which file each is, and holds the categories, in the form of a COCO annotation file, so
    that `COCO("images.json").loadRes("predictions.json")` works. What plugin branches predict stands in the records
    under its own key (`extra_values`). Both files are written as images come and get their names when the block ends,
    so a run that is broken off leaves no half file; where no image comes at all, nothing is written.

    Args:
        path: the folder; made when missing.
        predictor: whose classes the results carry.
        pictures: also draw each image.
        threshold: lowest score that is drawn; the results hold every detection.
    """

    def __init__(
        self, path: str | os.PathLike[str], predictor: Predictor, *, pictures: bool = True, threshold: float = 0.5
    ) -> None:
        self.path = Path(path)
        self.predictor = predictor
        self.pictures = pictures
        self.threshold = threshold
        self.images: list[dict[str, Any]] = []
        self.count = 0
        self._taken: set[str] = set()
        self._left_out: set[str] = set()
        self._stack = ExitStack()
        self._results: TextIO | None = None

    @property
    def results_path(self) -> Path:
        return self.path / "predictions.json"

    def __enter__(self) -> ResultFolder:
        return self

    def add(self, file: Path, image: np.ndarray, detections: Detections) -> None:
        """Write one image's results; `detections.image_id` is its id."""
        self._results = self._results or self._open()
        records = coco_results([detections], self.predictor.category_ids)
        for record, extras in zip(records, extra_values(detections, self._left_out), strict=True):
            self._results.write(("," if self.count else "") + "\n" + json.dumps(record | extras))
            self.count += 1
        height, width = detections.image_size
        row = {"id": detections.image_id, "file_name": file.as_posix(), "height": height, "width": width}
        if self.pictures:
            row["picture"] = self._draw(file, image, detections)
        self.images.append(row)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._results is not None:
            self._results.write("\n]\n")
            self._write_table()
        self._stack.__exit__(kind, error, trace)

    def _open(self) -> TextIO:
        try:
            (self.path / "pictures" if self.pictures else self.path).mkdir(parents=True, exist_ok=True)
            temporary = self._stack.enter_context(replacing(self.results_path))
            results = self._stack.enter_context(temporary.open("w", encoding="utf-8"))
        except OSError as error:
            raise DataError(
                f"{self.path}: results cannot be written here: {error.strerror}; name a folder with --out"
            ) from None
        results.write("[")
        return results

    def _write_table(self) -> None:
        names = zip(self.predictor.category_ids, self.predictor.classes, strict=True)
        categories = [{"id": category, "name": name} for category, name in names]
        table = {"images": self.images, "categories": categories, "annotations": []}
        with replacing(self.path / "images.json") as temporary:
            temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")

    def _draw(self, file: Path, image: np.ndarray, detections: Detections) -> str:
        picture = draw_detections(
            image,
            detections,
            self.predictor.classes,
            skeleton=self.predictor.skeleton,
            threshold=self.threshold,
            scale=picture_scale(*image.shape[:2]),
        )
        name, number = file.stem, 2
        while name.lower() in self._taken:  # two folders may hold files of one name
            name, number = f"{file.stem}-{number}", number + 1
        self._taken.add(name.lower())
        target = Path("pictures") / f"{name}.jpg"
        write_picture(self.path / target, picture)
        return target.as_posix()


def extra_values(detections: Detections, left_out: set[str]) -> list[dict[str, Any]]:
    """What plugin branches predicted, as JSON: per detection, key → value.

    Arrays and tensors of up to 1024 numbers become lists. A key whose values are larger, are no plain data, or that
    COCO uses itself is left out.

    Args:
        detections: of one image.
        left_out: keys that were; a new one is said in the log and added.
    """
    rows: list[dict[str, Any]] = [{} for _ in range(len(detections))]
    for key, values in detections.extras.items():
        try:
            if key in _KNOWN:
                raise ValueError(f"COCO's readers know another '{key}'")
            plain = [_plain(value) for value in values]
            for row, value in zip(rows, plain, strict=True):
                row[key] = value
        except (TypeError, ValueError) as error:
            for row in rows:
                row.pop(key, None)
            if key not in left_out:
                left_out.add(key)
                logger.warning("predictions.json goes without '%s' (%s); toolbox.Predictor gives it", key, error)
    return rows


def _plain(value: Any) -> Any:
    """A value as JSON knows it; numbers that are not finite become null.

    Raises:
        ValueError: it is too large, or of another kind.
    """
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        count = math.prod(value.shape)
        if count > LARGEST_EXTRA:
            raise ValueError(f"{count} numbers a detection, the most written are {LARGEST_EXTRA}")
        return _plain(value.tolist())
    if isinstance(value, bytes):  # the counts of an RLE
        return value.decode("ascii")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise ValueError(f"{type(value).__name__} cannot be written as JSON")


def predict_files(predictor: Predictor, files: Sequence[Path], folder: ResultFolder) -> Iterator[DataError | None]:
    """Predict each file into a folder of results; per file, in order, None or what was wrong with it.

    Files that cannot be read do not stop the others. Image ids count the files from 1.
    """
    for start in range(0, len(files), predictor.batch):
        chunk = files[start : start + predictor.batch]
        images: dict[int, np.ndarray] = {}
        problems: list[DataError | None] = []
        for index, file in enumerate(chunk):
            try:
                images[index] = read_image(file, predictor.channels)
                problems.append(None)
            except DataError as error:
                problems.append(error)
        for (index, image), detections in zip(images.items(), predictor(images.values()), strict=True):
            detections.image_id = start + index + 1
            folder.add(chunk[index], image, detections)
        yield from problems
