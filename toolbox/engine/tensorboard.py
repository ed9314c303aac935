"""The logger `TensorBoard`: curves, pictures and the config in the run's folder."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from toolbox.engine.loggers import Outcome, RunStart
from toolbox.errors import ToolboxError
from toolbox.registry import LOGGERS

log = logging.getLogger("toolbox")

_CLASSES = "eval_per_class/"  # what stands before the first "/" is a group of curves


@LOGGERS.register
class TensorBoard:
    """Event files in `tensorboard/` of the run folder; `tensorboard --logdir runs` shows all runs beside each other.

    Args:
        pictures: also what each evaluation draws.
        per_class: also the AP of each class.
    """

    def __init__(self, *, pictures: bool = True, per_class: bool = True) -> None:
        self._torch = _torch_tensorboard()
        self._with_pictures = pictures
        self._with_classes = per_class
        self._writer: Any = None

    def start(self, run: RunStart) -> None:
        """Open a new event file; its first entry tells readers to drop later steps of the files before."""
        folder = run.folder / "tensorboard"
        _wait_for_a_later_name(folder)
        self._writer = self._torch.SummaryWriter(str(folder), purge_step=run.step + 1 if run.step else 0)
        if run.step == 0:
            self._writer.add_text("config", f"```yaml\n{run.config}\n```", 0)
        self._writer.flush()
        log.info("TensorBoard: tensorboard --logdir %s", folder)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """`train/…`"""
        self._write({f"train/{name}": value for name, value in values.items()}, step)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """`eval/bbox/AP`, …; classes in a group of their own, `eval_per_class/bbox/cat`."""
        tagged = {_tag(name): value for name, value in values.items()}
        shown = {tag: value for tag, value in tagged.items() if self._with_classes or not tag.startswith(_CLASSES)}
        self._write(shown, step)

    def pictures(self, step: int, files: Sequence[Path]) -> None:
        """The files as they are: `add_image` would store them as PNG, at several times the size."""
        if not self._with_pictures:
            return
        for file in files:
            self._writer.file_writer.add_summary(_picture(f"pictures/{file.stem}", file.read_bytes()), step)
        self._writer.flush()

    def end(self, outcome: Outcome, reason: str) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a kill right after the next checkpoint must not lose what was logged before it


def _torch_tensorboard() -> Any:
    try:
        return importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise ToolboxError("TensorBoard needs tensorboard: pip install 'rcnn-toolbox[tensorboard]'") from error


def _tag(name: str) -> str:
    """`bbox/AP` → `eval/bbox/AP`, `bbox/per_class/cat` → `eval_per_class/bbox/cat`."""
    kind, _, rest = name.partition("/")
    class_name = rest.removeprefix("per_class/")
    return f"eval/{name}" if class_name == rest else f"{_CLASSES}{kind}/{class_name}"


def _picture(tag: str, content: bytes) -> Any:
    """A summary that holds an encoded RGB picture."""
    summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
    pixels: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    height, width = pixels.shape[:2]
    image = summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
    return summary(value=[summary.Value(tag=tag, image=image)])


def _wait_for_a_later_name(folder: Path) -> None:
    """Files are read in the order of their names, which hold the second they were opened in."""
    seconds = [name.split(".")[3] for name in (file.name for file in folder.glob("events.out.tfevents.*"))]
    delay = max((int(second) + 1 for second in seconds if second.isdigit()), default=0) - time.time()
    if 0 < delay <= 1:
        time.sleep(delay)
