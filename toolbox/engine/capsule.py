"""Capsules: a training step that went wrong in one file, and its replay anywhere.

A capsule is a safetensors file: the batch, the weights before the step, and as text what a model file says (config,
classes, skeleton) and what was seen. It holds values and never code, so one that came by mail is safe to open; plugins
that it names are looked for on the machine that opens it, as a model file's are. One file, because that is what can be
mailed, and is written whole or not at all.

The optimizer's state is not in it: losses and gradients do not depend on it, and it would double or triple the size.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolbox.engine.checkpoint import seed_step
from toolbox.engine.devices import autocast
from toolbox.engine.module_statistics import Observation, Statistics, observe
from toolbox.engine.precision import tf32
from toolbox.engine.stored_batch import batch_from_tensors, batch_to_tensors
from toolbox.errors import CheckpointError, ConfigError, Problem
from toolbox.inference.loading import detector_of
from toolbox.structures import Batch
from toolbox.weights import kind_of_file, load_model, save_model
from toolbox.yaml_nodes import COMMAND_LINE

logger = logging.getLogger("toolbox")

VERSION = 1
_EFFECTIVE = ("model", "train.device", "train.tf32", "plugins")  # keys of what an override changes in a replay


@dataclass
class Step:
    """A step that went wrong, and its surroundings.

    Attributes:
        step: its number, from 0.
        seed, rank, world: with the number, all random states: `seed_step` of each micro-batch.
        reason: whether a loss or the gradient's norm was not finite.
        losses: of the step, the mean over its images.
        gradient_norm: before clipping; None where it was not known.
        lr: base learning rate.
        shares: of each micro-batch in the step's loss.
        device: that it ran on, in words.
        autocast: `float16` or `bfloat16`; None for float32.
        loss_scale: of float16 gradients.
        recent: the steps before, oldest first: `step`, `losses`, `lr`.
        faults: values in the targets that are not finite, by image.
        bad_weights: weights that were not finite before the step.
        notes: what could not be kept, and why.
    """

    step: int
    seed: int
    rank: int
    world: int
    reason: str
    losses: dict[str, float]
    gradient_norm: float | None
    lr: float
    shares: list[float]
    device: str
    autocast: str | None
    loss_scale: float
    recent: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    bad_weights: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def autocast_type(self) -> torch.dtype | None:
        """As torch's."""
        return None if self.autocast is None else {"float16": torch.float16, "bfloat16": torch.bfloat16}[self.autocast]


@dataclass
class Capsule:
    """What a capsule holds.

    Attributes:
        step: what was known of the step.
        batches: its micro-batches, as the model got them.
        weights: of the model before the step.
        metadata: what a model file says beside its weights.
        seen: every module's output and every gradient, where the step could be computed once more.
    """

    step: Step
    batches: list[Batch]
    weights: dict[str, Tensor]
    metadata: dict[str, str]
    seen: Observation | None


def look_again(
    model: nn.Module, batches: Sequence[Batch], step: Step, device: torch.device, dtype: torch.dtype | None
) -> Observation:
    """Compute a step once more, from the same random state, and watch every module.

    Args:
        model: with the weights and buffers from before the step.
        batches: micro-batches of the step.
        step: that it is.
        device: of the model.
        dtype: of autocast; None for float32.
    """

    def losses_of(turn: int, batch: Batch) -> Mapping[str, Tensor]:
        seed_step(step.seed, step.step, turn * step.world + step.rank)
        with autocast(device, dtype):
            return model(batch.images, batch.targets)

    parts = [(partial(losses_of, *turn), share) for turn, share in zip(enumerate(batches), step.shares, strict=True)]
    return observe(model, parts, loss_scale=step.loss_scale if dtype is not None else 1.0)


def save_capsule(path: str | Path, capsule: Capsule) -> None:
    """Write a capsule, atomically.

    Raises:
        StorageError: the system does not let it be written.
    """
    tensors = {f"model.{name}": value for name, value in capsule.weights.items()}
    told = []
    for index, batch in enumerate(capsule.batches):
        own, values = batch_to_tensors(batch)
        tensors |= {f"batch.{index}.{name}": value for name, value in own.items()}
        told.append(values)
    seen = None if capsule.seen is None else _told_observation(capsule.seen)
    record = {"version": VERSION, "step": asdict(capsule.step), "batches": told, "seen": seen}
    save_model(path, tensors, {**capsule.metadata, "capsule": json.dumps(_plain(record), allow_nan=False)})


def load_capsule(path: str | Path) -> Capsule:
    """Read what `save_capsule` wrote; nothing in the file is run.

    Raises:
        CheckpointError: it is no capsule, or a damaged one.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: this is a folder; {_capsules_in(path)}")
    if path.is_file() and kind_of_file(path) == "pickle":
        raise _no_capsule(path, "a checkpoint (or another PyTorch pickle)")
    tensors, metadata = load_model(path)
    if "capsule" not in metadata:
        raise _no_capsule(path, "a trained model" if "config" in metadata else "a file of weights")
    text = metadata.pop("capsule")
    try:
        record = json.loads(text)
        if record["version"] > VERSION:
            raise CheckpointError(f"{path}: a newer toolbox wrote this capsule; update the toolbox to replay it")
        batches = [
            batch_from_tensors(_under(tensors, f"batch.{index}."), told) for index, told in enumerate(record["batches"])
        ]
        step = _read_step(record["step"])
        if not batches or len(batches) != len(step.shares):
            raise ValueError(f"{len(batches)} micro-batches with {len(step.shares)} shares")
        seen = None if record["seen"] is None else _read_observation(record["seen"])
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: the capsule is damaged, or something else than a run of this toolbox wrote it "
            f"({type(error).__name__}: {error}); copy it again from where it was whole"
        ) from error
    return Capsule(step, batches, _under(tensors, "model."), metadata, seen)


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
    idle = [key for key in keys if key not in _EFFECTIVE and not key.startswith("model.")]
    if idle:
        message = "is without effect: batch, weights and seed are the capsule's"
        effective = f"a replay takes model.…, {', '.join(_EFFECTIVE[1:])}; leave it out"
        raise ConfigError([Problem(COMMAND_LINE, key, f"{message}; {effective}") for key in idle])


def _no_capsule(path: Path, what: str) -> CheckpointError:
    run = path.parent
    there = f"; {_capsules_in(run)}" if (run / "config.yaml").is_file() else ""
    written = "where a loss is not finite, a run writes the step into its folder capsules/, as step_000500.safetensors"
    return CheckpointError(f"{path}: this is {what}, not a capsule: {written}{there}")


def _capsules_in(folder: Path) -> str:
    inside = folder if folder.name == "capsules" else folder / "capsules"
    files = sorted(inside.glob("*.safetensors"))
    return f"its capsules are {', '.join(map(str, files))}" if files else "there is no capsule in it"


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become words, which `float` reads."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _told_observation(seen: Observation) -> dict[str, Any]:
    return {
        **{name: value for name, value in vars(seen).items() if name not in ("modules", "gradients")},
        "modules": [list(vars(row).values()) for row in seen.modules],
        "gradients": [list(vars(row).values()) for row in seen.gradients],
    }


def _read_observation(told: Mapping[str, Any]) -> Observation:
    return Observation(
        losses=[_floats(losses) for losses in told["losses"]],
        modules=[_read_row(row) for row in told["modules"]],
        gradients=[_read_row(row) for row in told["gradients"]],
        first_module=told["first_module"],
        first_gradient=told["first_gradient"],
    )


def _read_row(values: Sequence[Any]) -> Statistics:
    name, kind, dtype, count, finite, *numbers = values
    return Statistics(str(name), str(kind), str(dtype), int(count), int(finite), *map(float, numbers))


def _read_step(told: Mapping[str, Any]) -> Step:
    known = {entry.name for entry in fields(Step)}
    given = {name: value for name, value in told.items() if name in known}
    norm = given["gradient_norm"]
    step = Step(
        **{
            **given,
            "step": int(given["step"]),
            "seed": int(given["seed"]),
            "rank": int(given["rank"]),
            "world": int(given["world"]),
            "losses": _floats(given["losses"]),
            "gradient_norm": None if norm is None else float(norm),
            "lr": float(given["lr"]),
            "shares": [float(share) for share in given["shares"]],
            "loss_scale": float(given["loss_scale"]),
            "recent": [{**line, "losses": _floats(line["losses"])} for line in given["recent"]],
        }
    )
    step.autocast_type()
    return step


def _floats(numbers: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in numbers.items()}
