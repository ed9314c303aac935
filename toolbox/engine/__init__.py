"""Training and evaluation, as functions."""

from __future__ import annotations

from toolbox.engine.coco_metrics import coco_metrics, coco_results
from toolbox.engine.evaluate import evaluate
from toolbox.engine.nonfinite import TrainingDiverged
from toolbox.engine.progress import OnProgress, Progress
from toolbox.engine.train import train

__all__ = ["OnProgress", "Progress", "TrainingDiverged", "coco_metrics", "coco_results", "evaluate", "train"]
