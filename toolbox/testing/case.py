"""What every check of the kit works on: a component, how to build it, and small things to feed it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from toolbox.errors import told
from toolbox.masks import InstanceMasks, PolygonMask
from toolbox.models.postprocess import finish
from toolbox.registry import Registry
from toolbox.structures import FeatureSpec, Regions, RoIShape, Skeleton, Targets

NUM_CLASSES = 3
NUM_ANCHORS = 3
BACKBONE_MAPS = {f"c{level}": FeatureSpec(4 * level, 2**level) for level in range(2, 6)}
PYRAMID = {f"p{level}": FeatureSpec(8, 2**level) for level in range(2, 7)}
SKELETON = Skeleton(("nose", "left", "right"), pairs=((1, 2),), limbs=((0, 1), (0, 2)), sigmas=(0.05, 0.1, 0.1))


class Broken(Exception):
    """What a check got instead of what is promised."""


def expect(holds: bool, got: str) -> None:
    """Say what was got, unless it is what was promised."""
    if not holds:
        raise Broken(got)


@dataclass
class Case:
    """A component under test.

    Attributes:
        cls: the class.
        registry: of its family.
        settings: constructor arguments that YAML would give.
        wired: constructor arguments that the builder would fill in; the kit's own where they are not given.
    """

    cls: type
    registry: Registry
    settings: dict[str, Any] = field(default_factory=dict)
    wired: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        defaults: dict[str, dict[str, Any]] = {
            "backbone": {"in_channels": 3},
            "neck": {"in_features": BACKBONE_MAPS},
            "rpn_head": {"in_channels": 8, "num_anchors": NUM_ANCHORS},
            "roi_extractor": {"in_features": PYRAMID},
            "roi_stage": {"in_shape": RoIShape(8, 6, 6)},
            "box_head": {"in_shape": RoIShape(8, 6, 6), "num_classes": NUM_CLASSES},
            "instance_head": {"in_shape": RoIShape(8, 6, 6), "num_classes": NUM_CLASSES, "skeleton": SKELETON},
            "schedule": {"steps": 100},
        }
        known = defaults.get(self.registry.family, {})
        takes = self.registry.wiring(self.cls)
        self.wired = {**{name: value for name, value in known.items() if name in takes}, **self.wired}

    @property
    def name(self) -> str:
        return f"{self.registry.family} '{self.cls.__name__}'"

    def make(self, seed: int = 0, **wired: Any) -> Any:
        """A fresh instance; its weights depend on `seed` alone."""
        torch.manual_seed(seed)
        return self.cls(**{**self.wired, **wired}, **self.settings)

    def arguments(self, module: Any, count: int = 2, seed: int = 0) -> tuple[Any, ...]:
        """What `forward` of a module takes: `count` images or regions."""
        generator = torch.Generator().manual_seed(seed)
        family = self.registry.family
        if family == "backbone":
            side = max(spec.stride for spec in module.out_features.values())
            height, width = (max(64, 2 * side), max(96, 3 * side))
            return (torch.randn(count, len(module.pixels.mean), height, width, generator=generator),)
        if family == "neck":
            return (make_maps(self.wired["in_features"], count, generator),)
        if family == "rpn_head":
            specs = {name: FeatureSpec(self.wired["in_channels"], spec.stride) for name, spec in PYRAMID.items()}
            return (list(make_maps(specs, count, generator).values()),)
        if family == "roi_extractor":
            return make_maps(self.wired["in_features"], 2, generator), make_regions(count).rois
        shape = self.wired["in_shape"]
        return (torch.randn(count, shape.channels, shape.height, shape.width, generator=generator),)


@dataclass(frozen=True)
class Check:
    """One promise, and how it is tried.

    Attributes:
        name: for `skip`.
        promise: what a component of the family does.
        remedy: what to do where it does not.
        attempt: raises `Broken` where it does not, or whatever the component raises.
    """

    name: str
    promise: str
    remedy: str
    attempt: Callable[[Case], None]

    def run(self, case: Case) -> None:
        """Try it.

        Raises:
            AssertionError: it is broken.
        """
        try:
            self.attempt(case)
        except Exception as error:
            if not isinstance(error, Broken):
                _refuse_ordinary_error(case)
            got = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
            raise AssertionError(
                f"{case.name} breaks the promise '{self.name}': {self.promise}\n  got: {got}\n  do: {self.remedy}"
            ) from error


def _refuse_ordinary_error(case: Case) -> None:
    """Say so where a component raises on ordinary input: then no promise is to blame, and no promise's advice helps.

    Raises:
        AssertionError: it does; with the method, the error and the component's line.
    """
    steps = ["the constructor"]
    try:
        component = case.make()
        for step, call in _ordinary_calls(case, component):
            steps.append(step)
            call()
    except Exception as error:
        reason = told(error, getattr(sys.modules.get(case.cls.__module__), "__file__", None))
        where, remedy = "raises on ordinary input", "mend it there; the promises are tried after that"
        if len(steps) == 1:
            where, remedy = "raises", "give settings= (and wired=) that it takes, or mend it there"
        raise AssertionError(f"{case.name}: {steps[-1]} {where}\n  got: {reason}\n  do: {remedy}") from error


def _ordinary_calls(case: Case, component: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The methods of a component with a `forward`, in the order of the pipeline, on four images or regions."""
    made: Any = component  # what a family's methods are, a type checker cannot see
    if not isinstance(component, nn.Module) or case.registry.family == "detector":
        return
    yield "forward", lambda: made.train()(*case.arguments(made, 4))
    with torch.no_grad():
        prediction = made.eval()(*case.arguments(made, 4))
    if case.registry.family == "instance_head":
        regions = make_regions(4)
        boxes = regions.rois[:, 1:]
        yield "loss", lambda: made.loss(prediction.clone(), make_regions(4), make_targets())
        yield "predict", lambda: made.predict(prediction.clone(), regions.labels)
        values = made.predict(prediction.clone(), regions.labels)
        yield "to_image", lambda: finish(made, values, boxes, (64, 96), boxes * 2, (128, 192))


def check(name: str, promise: str, remedy: str) -> Callable[[Callable[[Case], None]], Check]:
    """Decorator: make a function of a case a `Check`."""
    return lambda attempt: Check(name, promise, remedy, attempt)


def tensors_of(value: Any, name: str = "output") -> dict[str, Tensor]:
    """All tensors inside mappings, sequences and dataclasses, by a name that says where."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, Mapping):
        parts = [(f"{name}[{key!r}]", part) for key, part in value.items()]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(f"{name}.{part.name}", getattr(value, part.name)) for part in dataclasses.fields(value)]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        parts = [(f"{name}[{index}]", part) for index, part in enumerate(value)]
    else:
        return {}
    return {key: tensor for inner, part in parts for key, tensor in tensors_of(part, inner).items()}


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Nested arguments with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(part, change) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tensors = {part.name: mapped(getattr(value, part.name), change) for part in dataclasses.fields(value)}
        return dataclasses.replace(value, **tensors)
    return value


def difference(one: Any, other: Any, tolerance: float = 0.0) -> str | None:
    """Where two nested outputs differ by more than `tolerance`, relative to the largest value; None if nowhere."""
    first, second = tensors_of(one), tensors_of(other)
    if first.keys() != second.keys():
        return f"{sorted(first)} against {sorted(second)}"
    for name, a in first.items():
        b = second[name]
        if a.shape != b.shape:
            return f"{name} is {tuple(a.shape)} against {tuple(b.shape)}"
        gap = (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
        largest = a.double().abs().max().item() if a.numel() else 0.0
        if not gap <= tolerance * max(1.0, largest):
            return f"{name} differs by {gap:.3g}, its largest value is {largest:.3g}"
    return None


def not_finite(value: Any) -> str | None:
    """The first tensor that holds NaN or infinity."""
    return next((name for name, tensor in tensors_of(value).items() if not tensor.isfinite().all()), None)


def total(value: Any) -> Tensor:
    """A scalar that depends on every entry of every tensor, each with a weight of its own."""
    parts = []
    for tensor in tensors_of(value).values():
        weights = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        parts.append((tensor.double() * weights).sum())
    expect(bool(parts), "no tensor came out")
    return torch.stack(parts).sum()


def make_maps(specs: Mapping[str, FeatureSpec], count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Maps of images of 64 × 96 pixels: name → (N, C, 64 / stride, 96 / stride), at least one cell."""
    return {
        name: torch.randn(count, spec.channels, -(-64 // spec.stride), -(-96 // spec.stride), generator=generator)
        for name, spec in specs.items()
    }


def make_regions(count: int) -> Regions:
    """`count` regions of 20 × 20 pixels, on two images in turn, each matched with the one object of its image."""
    corner = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * 30
    rois = torch.cat(((torch.arange(count) % 2)[:, None].float(), corner, corner + 20), dim=1)
    zeros = torch.zeros(count, dtype=torch.int64)
    return Regions(rois, torch.arange(count) % NUM_CLASSES, zeros, zeros == 0, torch.arange(count))


def make_targets(objects: int = 1) -> Targets:
    """Two images of 64 × 96 pixels with one object each, or none: boxes, square masks and joints."""
    boxes = torch.tensor([[[5.0, 5, 35, 35]], [[10.0, 10, 40, 30]]])[:, :objects]
    corners = torch.tensor([[0, 1], [2, 1], [2, 3], [0, 3]])
    masks = [[PolygonMask([box[corners].numpy()]) for box in image] for image in boxes]
    yes = torch.ones(2, objects, dtype=torch.bool)
    joints = torch.tensor([[15.0, 15, 2], [20, 20, 1], [0, 0, 0]]).expand(2, objects, 3, 3).clone()
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    labels = torch.zeros(2, objects, dtype=torch.int64)
    return Targets(boxes, labels, yes, ~yes, area, keypoints=joints, masks=InstanceMasks(masks))
