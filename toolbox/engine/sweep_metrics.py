"""Which of a sweep's metrics its variants can give, known before anything trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from toolbox.data.interfaces import Dataset
from toolbox.errors import did_you_mean
from toolbox.metric_names import Kind
from toolbox.models.builder import first_with_objects
from toolbox.models.detector import RCNN
from toolbox.schema import Config
from toolbox.sweep_file import SweepText
from toolbox.yaml_nodes import Findings

logger = logging.getLogger("toolbox")

# What a head is trained with is what it predicts; the kind that COCO calls it by, and the part of the YAML.
_KINDS: Mapping[str, Kind] = {"masks": "segm", "keypoints": "keypoints"}
_MISSING = {"segm": "its model has no mask head", "keypoints": "its model has no keypoint head"}

WhyNot = Callable[[Config, str, str], str]


def check_metrics(text: SweepText, configs: Mapping[str, Config], why_not: WhyNot) -> None:
    """Refuse a metric that no variant gives, and warn of one that some do not: their cells stay empty.

    Args:
        text: of the sweep.
        configs: variant → its config.
        why_not: config, kind and name of a metric → why it does not give that, or nothing.

    Raises:
        ConfigError: a metric that none gives.
    """
    findings = Findings()
    for metric, (kind, number) in text.metrics.items():
        reasons = {name: why_not(config, kind, number) for name, config in configs.items()}
        lacking = {name: reason for name, reason in reasons.items() if reason}
        if lacking and len(lacking) == len(configs):
            told = "; ".join(dict.fromkeys(lacking.values()))
            message = f"no variant gives {kind}.{number} ({told}): remove the column, or add what gives it"
            findings.add(text.metric_places[metric], f"metrics.{metric}", message)
        elif lacking:
            names = ", ".join(f"'{name}'" for name in lacking)
            told = "; ".join(dict.fromkeys(lacking.values()))
            logger.warning("%s: no %s.%s of %s (%s): left empty in the table", text.path, kind, number, names, told)
    findings.raise_any()


def lacking_in_model(config: Config, kind: str, number: str) -> str:
    """Why a config's model does not give a metric, or nothing."""
    if kind not in _given(config):
        return _MISSING[kind]
    name, _, limit = number.partition("@")
    if not limit:
        return ""
    if kind == "keypoints":
        return f"keypoints have no {name} at a number of detections"
    detections = config.test.detections
    if detections > 100 and detections == int(limit):
        return ""
    return f"{number} is that of test.detections: {limit}, above 100; it is {detections}"


def lacking_in_data(val: Dataset, kind: str, number: str) -> str:
    """Why a data set does not give a metric, or nothing; its first images are loaded, which tells for any kind."""
    inside, _, name = number.partition(".")
    if inside == "per_class" and name not in val.classes:
        return f"data.val has no class '{name}'{did_you_mean(name, val.classes)}"
    ground_truth = next((part for part, known in _KINDS.items() if known == kind), None)
    if ground_truth is None:
        return ""
    sample = first_with_objects(val)
    return "" if sample is None or getattr(sample, ground_truth) is not None else f"data.val has no {ground_truth}"


def _given(config: Config) -> set[Kind]:
    """The kinds that a model predicts, as far as can be known: a plugin's head or detector may give any."""
    everything: set[Kind] = {"bbox", *_KINDS.values()}
    if config.model.cls is not RCNN:
        return everything
    kinds: set[Kind] = {"bbox"}
    for branch in (config.model["instance"] or {}).values():
        if branch is None:
            continue
        head = branch["head"].cls
        if not head.__module__.startswith("toolbox."):
            return everything
        kinds |= {_KINDS[part] for part in getattr(head, "needs", ()) if part in _KINDS}
    return kinds
