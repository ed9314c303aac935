"""What is written wrong in a sweep, and what is given to the wrong command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from planted.mistake import RUN, Mistake, on_command_line, several, write

HEAD = "base: run.yaml\nmetrics: {box AP: bbox.AP}\n"
VARIANTS = "variants: {a: , b: {set: {train.lr: 0.01}}}\n"
COMMAND = "sweep sweep.yaml --run out"


def files(text: str) -> Callable[[Path], None]:
    return several(write(RUN), write(text, "sweep.yaml"))


def sweep(
    name: str, text: str, at: str, fault: str | list[str], right: str | list[str], command: str = COMMAND
) -> Mistake:
    return on_command_line("sweeps", name, command, at, fault, right, plant=files(text))


MISTAKES: tuple[Mistake, ...] = (
    sweep("misspelt metric", HEAD.replace("bbox.AP", "bbox.APx") + VARIANTS, "sweep.yaml:2:19: ", "'APx'",
          "did you mean 'AP'?"),
    sweep("kind of metric that is none", HEAD.replace("bbox.AP", "masks.AP") + VARIANTS, "sweep.yaml:2:19: ",
          "'masks.AP'", "segm"),
    sweep("joints' metric of a model without joints", HEAD.replace("bbox.AP", "keypoints.AP") + VARIANTS,
          "sweep.yaml:2:19: ", ["keypoints.AP", "no keypoint head"], "remove the column"),
    sweep("masks' metric where all masks are taken out",
          HEAD.replace("bbox.AP", "segm.AP") + "variants: {a: }\nset: {model.instance: {}}\n", "sweep.yaml:2:19: ",
          ["segm.AP", "no mask head"], "remove the column"),
    sweep("metric at more detections than there are", HEAD.replace("bbox.AP", "bbox.AP@300") + VARIANTS,
          "sweep.yaml:2:19: ", "AP@300", "test.detections: 300"),
    sweep("metric of a class that is not in the data", HEAD.replace("bbox.AP", "bbox.per_class.circel") + VARIANTS,
          "sweep.yaml:2:19: ", "'circel'", "did you mean 'circle'?"),
    sweep("base that is relative to another folder", HEAD.replace("run.yaml", "../run.yaml") + VARIANTS,
          "sweep.yaml:1:7: ", "../run.yaml", "relative to the sweep's own folder"),
    sweep("misspelt base", HEAD.replace("run.yaml", "rum.yaml") + VARIANTS, "sweep.yaml:1:7: ", "rum.yaml",
          "did you mean 'run.yaml'?"),
    sweep("variants as a list", HEAD + "variants:\n  - a\n  - b\n", "sweep.yaml:4:3: ",
          ["variants", "a list"], "no dash"),
    sweep("a variant that is a list", HEAD + "variants:\n  a:\n    - train.lr: 0.1\n", "sweep.yaml:5:5: ",
          ["variants.a", "a list"], "{set: {train.lr: 0.02}}"),
    sweep("a variant's values without set", HEAD + "variants:\n  a: {train.lr: 0.1}\n", "sweep.yaml:4:7: ",
          "'train.lr'", "{set: {train.lr: …}}"),
    sweep("a section in place of a dotted key", HEAD + "variants:\n  a: {set: {train: {lr: 3}}}\n", 
          "sweep.yaml:4:20: ", ["'steps'", "replaces all of 'train'"], "write train.lr: 3"),
    sweep("sweep given to train", HEAD + VARIANTS, "sweep.yaml: ", "this is a sweep", "rcnn sweep sweep.yaml",
          "train sweep.yaml"),
    sweep("sweep given to check", HEAD + VARIANTS, "sweep.yaml: ", "this is a sweep", "rcnn sweep sweep.yaml",
          "check sweep.yaml"),
    sweep("config given to sweep", HEAD + VARIANTS, "run.yaml: ", "this is a config", "rcnn train run.yaml",
          "sweep run.yaml"),
)  # fmt: skip
