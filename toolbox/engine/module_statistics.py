"""What every module put out in a step, and every parameter's gradient: looked at after a step went wrong.

The step is computed once more with hooks, so that steps that go well cost nothing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

_PIECE = 2**22  # values that are widened to float64 at a time: 32 MB where memory is short as it is


@dataclass
class Statistics:
    """Of the values of one or more tensors; minimum, maximum, mean and rms are of the finite ones.

    Attributes:
        name: of the module or parameter.
        kind: class of the module; empty for a parameter.
        dtype: of the tensors, e.g. `float16`; several are joined by commas.
        count: values.
        finite: how many of them are finite numbers.
        minimum, maximum: infinite without a finite value.
        total, squares: sum of the finite values, and of their squares.
    """

    name: str
    kind: str = ""
    dtype: str = ""
    count: int = 0
    finite: int = 0
    minimum: float = math.inf
    maximum: float = -math.inf
    total: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> float:
        """NaN without a finite value."""
        return self.total / self.finite if self.finite else math.nan

    @property
    def rms(self) -> float:
        """NaN without a finite value."""
        return math.sqrt(self.squares / self.finite) if self.finite else math.nan

    @property
    def not_finite(self) -> float:
        """Share of the values that are infinite or no numbers."""
        return 1 - self.finite / self.count if self.count else 0.0

    @property
    def magnitude(self) -> float:
        """Largest finite absolute value; 0 without one."""
        return max(-self.minimum, self.maximum, 0.0)

    @torch.no_grad()
    def add(self, values: Tensor) -> None:
        """Count the values of a floating tensor in."""
        name = str(values.dtype).removeprefix("torch.")
        if name not in self.dtype.split(", "):
            self.dtype = f"{self.dtype}, {name}" if self.dtype else name
        self.count += values.numel()
        if values.numel() == 0:
            return
        rows = values.detach() if values.ndim else values.detach()[None]
        for piece in rows.split(max(1, _PIECE * len(rows) // rows.numel())):
            self._add(piece)

    def _add(self, piece: Tensor) -> None:
        finite = piece.isfinite()
        wide = piece.double()
        low, high = wide.where(finite, math.inf).amin(), wide.where(finite, -math.inf).amax()
        kept = wide.where(finite, 0.0)
        read = torch.stack([finite.sum().double(), low, high, kept.sum(), kept.square().sum()]).tolist()
        self.finite += int(read[0])
        self.minimum, self.maximum = min(self.minimum, read[1]), max(self.maximum, read[2])
        self.total += read[3]
        self.squares += read[4]


@dataclass
class Observation:
    """A step, looked at closely.

    Attributes:
        losses: of each micro-batch, by name.
        modules: of each module's output, in the order in which they first returned.
        gradients: of each parameter that got one, after all backward passes; not scaled.
        first_module: the first module to return something that is not finite; None if none did.
        first_gradient: the first parameter on the way back from the loss whose gradient is not finite; None if none.
    """

    losses: list[dict[str, float]] = field(default_factory=list)
    modules: list[Statistics] = field(default_factory=list)
    gradients: list[Statistics] = field(default_factory=list)
    first_module: str | None = None
    first_gradient: str | None = None

    @property
    def bad_losses(self) -> list[str]:
        """Names of the losses that are not finite in any micro-batch."""
        return list(dict.fromkeys(k for losses in self.losses for k, v in losses.items() if not math.isfinite(v)))

    @property
    def largest(self) -> Statistics | None:
        """The module with the output of largest magnitude."""
        return max(self.modules, key=lambda row: row.magnitude, default=None)

    def origin(self) -> str:
        """Where what is not finite came up first, in words."""
        if self.first_module is not None:
            row = next(row for row in self.modules if row.name == self.first_module)
            return f"the first output that is not finite is that of {row.name} ({row.kind})"
        if self.bad_losses:
            return f"every module's output is finite; it came up in the loss itself: {', '.join(self.bad_losses)}"
        if self.first_gradient is not None:
            return f"the losses are finite; the first gradient that is not, on the way back, is {self.first_gradient}'s"
        return "computed again, the losses and gradients are finite"


def observe(
    model: nn.Module,
    parts: Sequence[tuple[Callable[[], Mapping[str, Tensor]], float]],
    *,
    loss_scale: float = 1.0,
) -> Observation:
    """Compute losses and gradients with an eye on every module. The gradients that were there are lost.

    Args:
        model: whose modules are watched.
        parts: for each micro-batch, a function that gives its losses, and its share of the step.
        loss_scale: of float16 gradients; what is told of them is without it.
    """
    seen = Observation()
    model.zero_grad(set_to_none=True)
    with _watched(model, seen):
        for losses_of, share in parts:
            losses = losses_of()
            seen.losses.append({name: float(value.detach()) for name, value in losses.items()})
            total = sum(losses.values()) * (share * loss_scale)
            if isinstance(total, Tensor) and total.requires_grad:
                total.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            row = Statistics(name)
            row.add(parameter.grad / loss_scale)
            seen.gradients.append(row)
    model.zero_grad(set_to_none=True)
    return seen


@contextlib.contextmanager
def _watched(model: nn.Module, seen: Observation) -> Iterator[None]:
    """Hooks on every module's output and every gradient."""
    rows: dict[str, Statistics] = {}

    def watch_output(name: str, kind: str) -> Callable[..., None]:
        def look(module: nn.Module, _: Any, output: Any) -> None:
            tensors = [tensor for tensor in _tensors(output) if tensor.is_floating_point()]
            if not tensors:
                return
            if name not in rows:
                rows[name] = Statistics(name, kind)
                seen.modules.append(rows[name])
            before = rows[name].count - rows[name].finite
            for tensor in tensors:
                rows[name].add(tensor)
            if seen.first_module is None and rows[name].count - rows[name].finite > before:
                seen.first_module = name

        return look

    def watch_gradient(name: str) -> Callable[[Tensor], None]:
        def look(parameter: Tensor) -> None:
            if seen.first_gradient is None and parameter.grad is not None and not parameter.grad.isfinite().all():
                seen.first_gradient = name

        return look

    handles = [
        module.register_forward_hook(watch_output(name, type(module).__name__))
        for name, module in model.named_modules()
        if name  # the model itself puts out the losses, which are looked at on their own
    ]
    handles += [
        parameter.register_post_accumulate_grad_hook(watch_gradient(name))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module returns: nested mappings, sequences and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from _tensors(getattr(value, entry.name))
