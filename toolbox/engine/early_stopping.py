"""Ending a run that no longer improves."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from toolbox.data.interfaces import Dataset
from toolbox.engine.evaluate import metrics_of_nothing
from toolbox.errors import ConfigError, counted
from toolbox.metric_names import split_metric, value_of
from toolbox.schema import Config
from toolbox.sections import EarlyStopping, TrainConfig

logger = logging.getLogger("toolbox")


class Patience:
    """How many evaluations ago a run was best.

    It has no state of its own in the checkpoint: an evaluation is made after its checkpoint and written down before
    the next step, so that what is on record decides the same in a resumed run as in one that was never stopped.

    Args:
        settings: what to wait for; None waits for ever.
        records: lines of `metrics.jsonl`, up to the step that the run goes on from.
    """

    def __init__(self, settings: EarlyStopping | None, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self.settings = settings
        self.values: dict[int, float] = {}
        if settings is not None:
            for record in records:
                if not record.get("end"):  # of a run that was made longer: one of that length would not have it
                    self._add(record["step"], record.get("watched", {}).get(settings.metric))

    def see(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float | None]:
        """Take an evaluation into account; what belongs into its record, by the metric's name."""
        if self.settings is None:
            return {}
        name = self.settings.metric
        value = value_of(metrics, name)
        if value is None:
            logger.warning("train.early_stopping: the evaluation has no %s, so it does not count", name)
        self._add(step, value)
        return {name: value}

    def _add(self, step: int, value: float | None) -> None:
        if value is not None:
            self.values[step] = value

    @property
    def verdict(self) -> str | None:
        """Why the run should end now, or None."""
        if self.settings is None:
            return None
        best, waited = None, 0
        for step in sorted(self.values):
            if best is None or self.values[step] > self.values[best] + self.settings.min_delta:
                best, waited = step, 0
            else:
                waited += 1
        if best is None or waited < self.settings.patience:
            return None
        ago = counted(waited, "evaluation")
        return f"{self.settings.metric} was best after step {best} ({self.values[best]:.4f}), {ago} ago"


def warn_of_endless(settings: TrainConfig) -> None:
    """Say that a run is over before its early stopping can end it."""
    if settings.early_stopping is None or settings.eval_every is None:
        return
    evaluations = settings.early_stopping.patience + 1
    if evaluations * settings.eval_every >= settings.steps:
        logger.warning(
            "train.early_stopping cannot end this run: that takes %d evaluations, one every %d steps, and it has %d "
            "steps; lower patience or train.eval_every",
            evaluations,
            settings.eval_every,
            settings.steps,
        )


def check_watched(config: Config, name: str, setting: str, val_set: Dataset | None) -> None:
    """See that an evaluation on `data.val` will have a metric.

    Args:
        name: of the metric, e.g. `segm.AP`.
        setting: of section `train`, that wants it.
        val_set: what is evaluated on, or None.

    Raises:
        ConfigError: there is nothing to evaluate on, or the metric will have no value there.
    """
    plan = config.plan["train"]
    if val_set is None:
        raise ConfigError([plan.problem(f"{setting} watches {name} on data.val, and there is none; add it", setting)])
    kind, number = split_metric(name)
    found = metrics_of_nothing(val_set, kind, max_detections=config.test.detections)
    if value_of({kind: found} if found else {}, name) is not None:
        return
    if not found:
        why = f"data.val has no ground truth for {kind}"
    elif number.startswith("per_class.") and number.removeprefix("per_class.") not in found["per_class"]:
        why = f"data.val has no such class (it has {', '.join(found['per_class'])})"
    elif "@" in number and number not in found:
        why = f"it is computed only where test.detections is that number, not {config.test.detections}"
    else:
        why = "no object of data.val counts for it"
    raise ConfigError([plan.problem(f"{name} would never have a value: {why}", setting)])
