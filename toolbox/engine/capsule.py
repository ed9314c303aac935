"""Capsules: a training step that went wrong, in one file.

A capsule is a safetensors file: the batch, the weights before the step, and as text what a model file says (config,
classes, skeleton) and what was seen. It holds values and never code, so one that came by mail is safe to open; plugins
that it names are looked for on the machine that opens it, as a model file's are. One file, because that is what can be
mailed, and is written whole or not at all.

The optimizer's state is not in it: losses and gradients do not depend on it, and it would double or triple the size.
"""

from __future__ import annotations

import json
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
from toolbox.engine.stored_batch import batch_from_tensors, batch_to_tensors
from toolbox.errors import CheckpointError
from toolbox.structures import Batch
from toolbox.weights import kind_of_file, load_model, save_model

VERSION = 1


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
