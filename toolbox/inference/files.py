"""Predict image files and write what was found: COCO results and pictures."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from toolbox.engine.coco_metrics import coco_results
from toolbox.errors import DataError
from toolbox.inference.images import read_image
from toolbox.inference.pictures import write_picture
from toolbox.inference.predictor import Predictor
from toolbox.structures import Detections
from toolbox.visualize import draw_detections, picture_scale
from toolbox.weights import replacing

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Image files behind files, folders (with their subfolders) and glob patterns, each once, in the order given.

    A path that is neither is kept, so that it is reported with the images that cannot be read.

    Raises:
        DataError: a folder or a pattern without any image.
    """
    found: dict[Path, None] = {}
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES]
            if not files:
                raise DataError(f"{entry}: no image in this folder (looked for {', '.join(IMAGE_SUFFIXES)})")
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
    that `COCO("images.json").loadRes("predictions.json")` works. Both are written as images come and get their names
    when the block ends, so a run that is broken off leaves no half file.

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
        self._stack = ExitStack()

    @property
    def results_path(self) -> Path:
        return self.path / "predictions.json"

    def __enter__(self) -> ResultFolder:
        try:
            (self.path / "pictures" if self.pictures else self.path).mkdir(parents=True, exist_ok=True)
            temporary = self._stack.enter_context(replacing(self.results_path))
            self._results = self._stack.enter_context(temporary.open("w", encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{self.path}: results cannot be written here: {error.strerror}") from None
        self._results.write("[")
        return self

    def add(self, file: Path, image: np.ndarray, detections: Detections) -> None:
        """Write one image's results; `detections.image_id` is its id."""
        records = coco_results([detections], self.predictor.category_ids)
        for record in records:
            self._results.write(("," if self.count else "") + "\n" + json.dumps(record))
            self.count += 1
        height, width = detections.image_size
        row = {"id": detections.image_id, "file_name": file.as_posix(), "height": height, "width": width}
        if self.pictures:
            row["picture"] = self._draw(file, image, detections)
        self.images.append(row)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._results.write("\n]\n")
            self._write_table()
        self._stack.__exit__(kind, error, trace)

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
                images[index] = read_image(file)
                problems.append(None)
            except DataError as error:
                problems.append(error)
        for (index, image), detections in zip(images.items(), predictor(images.values()), strict=True):
            detections.image_id = start + index + 1
            folder.add(chunk[index], image, detections)
        yield from problems
