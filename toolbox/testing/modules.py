"""What is asked of everything with a `forward`: pure, trainable, in any precision and memory layout, exportable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from toolbox.testing.case import Case, Check, check, difference, expect, mapped, not_finite, tensors_of, total

_LOOSE = 1e-3  # of float32 sums in another order, relative to the largest value


def _output(module: Any, arguments: tuple[Any, ...]) -> Any:
    with torch.no_grad():
        return module.eval()(*arguments)


@check(
    "inputs unchanged",
    "forward leaves its inputs as they were",
    "no in-place operation on an input: nn.ReLU(inplace=True) only after a layer of your own",
)
def _inputs_unchanged(case: Case) -> None:
    module = case.make()
    arguments = case.arguments(module)
    before = mapped(arguments, Tensor.clone)
    _output(module, arguments)
    changed = difference(before, arguments)
    expect(changed is None, f"changed inputs: {changed}")


@check(
    "repeatable",
    "the same seed gives the same weights and outputs, and evaluation gives the same twice",
    "draw from torch's own generator in the constructor only, and keep no state between calls",
)
def _repeatable(case: Case) -> None:
    module, again = case.make(), case.make()
    arguments = case.arguments(module)
    weights = difference(module.state_dict(), again.state_dict())
    expect(weights is None, f"with one seed, weights differ: {weights}")
    first = _output(module, arguments)
    for what, other in (("two calls", module), ("two instances of one seed", again)):
        differs = difference(first, _output(other, arguments))
        expect(differs is None, f"{what} differ: {differs}")


@check(
    "gradient",
    "the output's gradient reaches every trainable parameter",
    "use each parameter in forward, do not detach; give requires_grad=False to one that is not trained",
)
def _gradient(case: Case) -> None:
    module = case.make().train()
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    arguments = mapped(case.arguments(module), lambda x: x.clone().requires_grad_(x.is_floating_point()))
    total(module(*arguments)).backward()
    unreached = [name for name, parameter in trainable.items() if parameter.grad is None]
    expect(not unreached, f"no gradient in {', '.join(unreached[:5])}")
    wild = [name for name, parameter in trainable.items() if not parameter.grad.isfinite().all()]
    expect(not wild, f"gradient not finite in {', '.join(wild[:5])}")
    alive = not trainable or any(parameter.grad.any() for parameter in trainable.values())
    expect(alive, "the gradient is zero in every parameter")


@check(
    "half precision",
    "under bfloat16 autocast, and as a bfloat16 module, outputs are finite",
    "make new tensors with new_zeros or dtype=x.dtype; compute what overflows in float32: x.float()",
)
def _half_precision(case: Case) -> None:
    module = case.make()
    arguments = case.arguments(module)
    with torch.autocast("cpu", torch.bfloat16):
        wild = not_finite(_output(module, arguments))
    expect(wild is None, f"under autocast, {wild} is not finite")
    halves = mapped(arguments, lambda x: x.bfloat16() if x.ndim != 2 and x.is_floating_point() else x)  # not the rois
    wild = not_finite(_output(module.bfloat16(), halves))
    expect(wild is None, f"as a bfloat16 module, {wild} is not finite")


@check(
    "float64",
    "a float64 module on float64 inputs computes in float64",
    "make new tensors with new_zeros or dtype=x.dtype, and do not cast to float32",
)
def _float64(case: Case) -> None:
    module = case.make()
    arguments = case.arguments(module)
    single = _output(module, arguments)
    double = _output(module.double(), mapped(arguments, lambda x: x.double() if x.is_floating_point() else x))
    narrow = [name for name, x in tensors_of(double).items() if x.is_floating_point() and x.dtype != torch.float64]
    expect(not narrow, f"{', '.join(narrow)} is not float64")
    differs = difference(single, double, _LOOSE)
    expect(differs is None, f"float32 and float64 differ: {differs}")


@check(
    "channels last",
    "inputs in channels-last memory give the same result",
    "use reshape or flatten, which follow the shape, where view fails; never read strides",
)
def _channels_last(case: Case) -> None:
    module = case.make()
    arguments = case.arguments(module)
    plain = _output(module, arguments)
    layout = torch.channels_last
    turned = mapped(arguments, lambda x: x.to(memory_format=layout) if x.ndim == 4 else x)
    differs = difference(plain, _output(module.to(memory_format=layout), turned), _LOOSE)
    expect(differs is None, f"contiguous and channels-last differ: {differs}")


@check(
    "state dict",
    "another instance with its state dict gives the same output",
    "keep what is learned in nn.Parameter and register_buffer, not in plain attributes",
)
def _state_dict(case: Case) -> None:
    module, other = case.make(0).train(), case.make(1)
    with torch.no_grad():
        module(*case.arguments(module, seed=1))  # moves the statistics of norms
    other.load_state_dict({name: value.clone() for name, value in module.state_dict().items()})
    arguments = case.arguments(module)
    differs = difference(_output(module, arguments), _output(other, arguments))
    expect(differs is None, f"outputs differ: {differs}")


class _Flat(nn.Module):
    """A module whose output is a list of tensors, which is what torch.export can return of any class."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any) -> list[Tensor]:
        return list(tensors_of(self.module(*arguments)).values())


@check(
    "export",
    "torch.export takes forward, with any number of images or regions",
    "no branch on values, no .item(), no Python list of lengths; sizes from x.shape",
)
def _export(case: Case) -> None:
    module = case.make().eval()
    arguments, other = case.arguments(module, 3), case.arguments(module, 4)
    count = Dim("count", min=2, max=4096)
    if case.registry.family == "roi_extractor":
        shapes: Any = ({name: {} for name in arguments[0]}, {0: count})
    else:
        shapes = _first_dimension(arguments, count)
    with torch.no_grad():
        program = torch.export.export(_Flat(module), arguments, dynamic_shapes=(shapes,), strict=False)
        differs = difference(_Flat(module)(*other), program.module()(*other), _LOOSE)
    expect(differs is None, f"the exported program, called with 4 rows for the 3 it was traced with: {differs}")


def _first_dimension(value: Any, count: Any) -> Any:
    if isinstance(value, Tensor):
        return {0: count}
    if isinstance(value, Mapping):
        return {key: _first_dimension(part, count) for key, part in value.items()}
    return type(value)(_first_dimension(part, count) for part in value)


@check(
    "no regions",
    "R may be 0, and the gradient still reaches every parameter: an image without objects is an ordinary case",
    "write x.view(len(x), 3, 4), not x.view(len(x), -1, 4); no mean over regions, no max of them",
)
def _no_regions(case: Case) -> None:
    module = case.make().train()
    some, none = module(*case.arguments(module, 3)), module(*case.arguments(module, 0))
    rows, empty = tensors_of(some), tensors_of(none)
    for name, tensor in rows.items():
        wanted = (0, *tensor.shape[1:])
        expect(name in empty and empty[name].shape == wanted, f"{name} has no shape {wanted} for R = 0")
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if trainable:
        total(none).backward()
    unreached = [name for name, parameter in trainable.items() if parameter.grad is None]
    expect(not unreached, f"with R = 0, no gradient in {', '.join(unreached[:5])}")


@check(
    "rows apart",
    "in evaluation, a region's result does not depend on the other regions",
    "compute per region; dimension 0 is never summed, sorted or normalised over",
)
def _rows_apart(case: Case) -> None:
    module = case.make()
    arguments = case.arguments(module, 3)
    one = (*arguments[:-1], arguments[-1][1:2])
    first = mapped(_output(module, arguments), lambda x: x[1:2])
    differs = difference(first, _output(module, one), _LOOSE)
    expect(differs is None, f"one of three regions and the same alone differ: {differs}")


REGION_CHECKS: tuple[Check, ...] = (_no_regions, _rows_apart)
MODULE_CHECKS: tuple[Check, ...] = (
    _inputs_unchanged,
    _repeatable,
    _gradient,
    _half_precision,
    _float64,
    _channels_last,
    _state_dict,
    _export,
)
