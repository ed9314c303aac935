"""Everything that a run needs to go on exactly: tensors and plain values in one file.

Random states are not among them: every step seeds the generators anew from (seed, step), and the data's order and
augmentation are functions of (seed, step) too. So nothing that happens between two steps (an evaluation, a restart) can
shift them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toolbox.engine.ema import AveragedWeights
from toolbox.engine.setbacks import Setbacks
from toolbox.engine.window import Window
from toolbox.errors import CheckpointError
from toolbox.weights import kind_of_file, load_weights, not_weights, replacing


@dataclass
class TrainingState:
    """What changes during a run.

    Attributes:
        model: the detector.
        optimizer: torch's.
        scaler: of float16 gradients; disabled otherwise.
        ema: averaged weights, or None.
        step: optimizer steps done.
        window: what happened since the last line of metrics.
        setbacks: steps that were skipped, and returns to an earlier state.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: AveragedWeights | None = None
    step: int = 0
    window: Window = field(default_factory=Window)
    setbacks: Setbacks = field(default_factory=Setbacks)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, for `torch.load(weights_only=True)`."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "window": self.window.state_dict(),
            "setbacks": self.setbacks.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Take over what `state_dict` gave.

        Raises:
            CheckpointError: it belongs to another model or optimizer.
        """
        load_weights(self.model, state["model"], source)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise CheckpointError(f"{source}: the optimizer's state does not fit: {error}") from error
        if state["scaler"]:  # empty after a device that needs none; a run may go on elsewhere
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            if state["ema"] is None:
                raise CheckpointError(f"{source}: has no averaged weights; resume without train.ema")
            self.ema.load_state_dict(state["ema"])
        self.step = state["step"]
        if "window" in state:  # older checkpoints have none
            self.window.load_state_dict(state["window"])
        if "setbacks" in state:
            self.setbacks.load_state_dict(state["setbacks"])

    def best_weights(self) -> dict[str, Tensor]:
        """What is kept as the trained model: the averages where they are on."""
        return self.model.state_dict() if self.ema is None else self.ema.state_dict()


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a crash leaves the old one whole.

    Raises:
        StorageError: there is no room for it; the old one is whole.
    """
    # An open file instead of a path: torch's own writer does not pass on what the system says.
    with replacing(path, needed=size_of(state)) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def size_of(state: Any) -> int:
    """Bytes of the tensors in nested mappings and lists."""
    if isinstance(state, Tensor):
        return state.nbytes
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(size_of, inner))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: it cannot be read, or is not a checkpoint of a run.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except Exception as error:  # the reader raises a dozen kinds for a file that is damaged or of another kind
        raise CheckpointError(f"{path}: {_why_unreadable(Path(path))}") from error
    keys = {"step", "model", "optimizer", "scaler", "ema"}
    if not isinstance(state, dict) or not keys <= set(state):
        raise CheckpointError(f"{path}: not a checkpoint of a run; a trained model alone cannot be resumed")
    return state


def _why_unreadable(path: Path) -> str:
    """torch's own words are about archives and pickles; these are about files."""
    again = "copy it again from where it was whole, or train anew with another --run"
    kind = kind_of_file(path)
    if kind == "empty":
        return f"the checkpoint is empty; {again}"
    if kind == "safetensors":
        return "not a checkpoint of a run; a trained model alone cannot be resumed"
    if kind == "other":
        return f"{not_weights(path)}, and not a checkpoint of a run"
    kept = path.with_name("model.safetensors")
    use = f"; the trained model beside it, {kept.name}, can still be used" if kept.is_file() else ""
    return f"the checkpoint is damaged or cut short; {again}{use}"


def seed_step(seed: int, step: int, part: int = 0) -> None:
    """Seed torch (on every device), numpy and Python from (seed, step, part); step -1 is before the first.

    A step's parts are its micro-batches, so that they are the same whichever process takes them.
    """
    torch_seed, numpy_seed, python_seed = np.random.SeedSequence([seed, step + 1, part]).generate_state(3, np.uint64)
    torch.manual_seed(int(torch_seed >> np.uint64(1)))  # torch takes signed 64-bit seeds
    np.random.seed(int(numpy_seed & np.uint64(0xFFFFFFFF)))
    random.seed(int(python_seed))
