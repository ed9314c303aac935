"""The replay of a training step that went wrong, from its capsule alone, anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from toolbox.engine.capsule import Capsule, load_capsule, look_again
from toolbox.engine.module_statistics import Observation
from toolbox.engine.precision import tf32
from toolbox.errors import ConfigError, Problem
from toolbox.inference.loading import detector_of
from toolbox.yaml_nodes import COMMAND_LINE

_EFFECTIVE = ("model", "train.device", "train.tf32", "plugins")  # keys of what an override changes


@dataclass(frozen=True)
class Replay:
    """A step computed again from its capsule.

    Attributes:
        path: of the capsule.
        then: the capsule's own record.
        now: what was seen this time.
        device: that it was computed on.
    """

    path: Path
    then: Capsule
    now: Observation
    device: torch.device

    @property
    def losses(self) -> dict[str, float]:
        """Of the step, the mean over its images."""
        means: dict[str, float] = {}
        for losses, share in zip(self.now.losses, self.then.step.shares, strict=True):
            for name, value in losses.items():
                means[name] = means.get(name, 0.0) + value * share
        return means

    @property
    def reproduced(self) -> bool:
        """Whether this time, too, what was not finite then is not: a loss, or a gradient."""
        if self.then.step.reason == "gradient":
            return bool(self.now.bad_losses) or self.now.first_gradient is not None
        return bool(self.now.bad_losses)

    def verdict(self) -> str:
        """Whether it happened again, where it came up, and what that says."""
        step, seen = self.then.step, self.then.seen
        here = f"here ({self.device.type}, {self._precision})"
        there = f"on {step.device} in {step.autocast or 'float32'}"
        what = "gradient" if step.reason == "gradient" else "loss"
        if self.reproduced:
            lines = [f"reproduced: the {what} is not finite {here}; {self.now.origin()}"]
            if seen is not None and seen.first_module != self.now.first_module:
                lines.append(f"then, {there}, {seen.origin()}")
        else:
            lines = [f"not reproduced: the {what} was not finite {there}, and is finite {here}", *self._why_not(there)]
        if step.bad_weights:
            first, *more = step.bad_weights
            bad = f"{first} and {len(more)} more" if more else first
            lines.append(f"weights were not finite before the step already ({bad}): the step before it is the cause")
        return "\n".join([*lines, *(f"the data is at fault: {fault}" for fault in step.faults)])

    @property
    def _precision(self) -> str:
        return (self.then.step.autocast or "float32") if self.device.type == "cuda" else "float32"

    def _why_not(self, there: str) -> list[str]:
        step, seen, largest = self.then.step, self.then.seen, self.now.largest
        lines = [] if seen is None else [f"then, {there}, {seen.origin()}"]
        dtype = step.autocast_type()
        if dtype is not None and self._precision == "float32" and largest is not None:
            limit = torch.finfo(dtype).max
            beyond = "more than" if largest.magnitude > limit else "less than"
            lines.append(
                f"the largest magnitude of an output in float32 is {largest.magnitude:.4g}, of {largest.name} "
                f"({largest.kind}), {beyond} the {limit:.6g} at which {step.autocast} ends"
            )
        if step.device != self.device.type:
            lines.append("a GPU draws other random numbers, so sampled regions and dropout differ from the run's")
        return lines


def replay(
    path: str | Path, *, device: str = "cpu", overrides: Sequence[str] = (), plugins: Sequence[str | Path] = ()
) -> Replay:
    """Compute the step of a capsule again, from the capsule alone, and look at every module.

    Args:
        path: the file.
        device: `cpu` (in float32), or `cuda` (in the step's own precision).
        overrides: `key=value` of the config, e.g. to try another setting of the model on the very same step.
        plugins: files and modules that the model needs and that are not where the run had them.

    Raises:
        CheckpointError: it is no capsule, is damaged, or needs a plugin that is not there.
        ConfigError: an override is wrong, or changes nothing of the step.
    """
    path = Path(path)
    capsule = load_capsule(path)
    loaded = detector_of(path, capsule.weights, capsule.metadata, overrides, plugins)
    _refuse_idle(overrides)
    chosen = torch.device(device)
    model = loaded.model.to(chosen).train()
    dtype = capsule.step.autocast_type() if chosen.type == "cuda" else None
    with tf32(loaded.config.train.tf32):
        return Replay(path, capsule, look_again(model, capsule.batches, capsule.step, chosen, dtype), chosen)


def _refuse_idle(overrides: Sequence[str]) -> None:
    """Say of overrides that change nothing: batch, weights and random states are the capsule's."""
    keys = [override.partition("=")[0] for override in overrides]
    idle = [key for key in keys if not any(key == name or key.startswith(f"{name}.") for name in _EFFECTIVE)]
    if idle:
        message = "is without effect: batch, weights and seed are the capsule's"
        effective = f"a replay takes model.…, {', '.join(_EFFECTIVE[1:])}; leave it out"
        raise ConfigError([Problem(COMMAND_LINE, key, f"{message}; {effective}") for key in idle])
