"""The conformance kit: every built-in component keeps its promises, and a component that breaks one is told which."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import toolbox
from toolbox.data import transforms
from toolbox.data.interfaces import Sample, View
from toolbox.data.shapes import Shapes
from toolbox.models.boxes import RandomSampler
from toolbox.models.interfaces import BoxPrediction
from toolbox.registry import FAMILIES
from toolbox.schema import register_builtin
from toolbox.structures import FeatureSpec, PixelStats, Regions, RoIShape, Targets
from toolbox.testing import check_component, checks_of
from toolbox.testing.case import difference

SMALL_SHAPES = {"length": 5, "height": 64, "width": 64}
STAGE_INPUT = {"in_shape": RoIShape(256, 6, 6)}
# Small settings of every built-in component; several rows stand for its forms.
BUILTIN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("ResNet", {"depth": 18, "norm": "gn"}, {}),
    ("ResNet", {"depth": 18, "norm": "bn", "frozen_stages": 3, "out": ["c3", "c5"]}, {}),
    ("ResNet", {"depth": 50, "norm": "gn", "groups": 32, "width_per_group": 4, "stride_in_1x1": True}, {}),
    ("ResNet", {"depth": 50, "norm": "bn", "dilate_c5": True, "out": ["c5"]}, {}),
    ("TimmBackbone", {"name": "mobilenetv3_small_050", "strides": [8, 16, 32]}, {}),
    ("FPN", {"out_channels": 8}, {}),
    ("FPN", {"out_channels": 8, "extra": "conv", "norm": "gn"}, {}),
    ("FPN", {"out_channels": 8, "extra": "none"}, {}),
    ("SimpleFeaturePyramid", {"out_channels": 8}, {"in_features": {"c4": FeatureSpec(8, 16)}}),
    ("ConvRPNHead", {}, {}),
    ("ConvRPNHead", {"convolutions": 0}, {}),
    ("RoIAlign", {"output_size": 5}, {}),
    ("RoIAlign", {"output_size": (4, 7), "sampling_ratio": 0, "mode": "max"}, {}),
    ("RoIPool", {"output_size": 5}, {}),
    ("ResNetStage", {"depth": 18, "norm": "gn"}, STAGE_INPUT),
    ("TwoFCBoxHead", {"channels": 16}, {}),
    ("TwoFCBoxHead", {"channels": 16, "class_agnostic": True}, {}),
    ("ConvFCBoxHead", {"channels": 8, "fc_channels": 16, "norm": "gn"}, {}),
    ("ConvFCBoxHead", {"channels": 8, "convolutions": 1, "fully_connected": 0}, {}),
    ("FCNMaskHead", {"channels": 8}, {}),
    ("FCNMaskHead", {"channels": 8, "class_agnostic": True, "norm": "gn"}, {}),
    ("FCNMaskHead", {"channels": 8, "convolutions": 0, "convention": "torchvision"}, {}),
    *((name, {}, {}) for name in ("BinaryCrossEntropy", "CrossEntropy", "SmoothL1")),
    ("RandomSampler", {"size": 16}, {}),
    ("Shapes", SMALL_SHAPES, {}),
    ("Shapes", {**SMALL_SHAPES, "keypoints": True, "difficulty": "hard"}, {}),
    ("RandomCrop", {"height": 30, "width": 50}, {}),
    ("ScaleJitter", {"height": 50, "width": 50}, {}),
    *((name, {}, {}) for name in ("HorizontalFlip", "VerticalFlip")),
    *((name, {"prob": 1.0}, {}) for name in ("ColorJitter", "PhotometricDistort", "RandomGrayscale", "GaussianBlur")),
    *((name, {"prob": 1.0}, {}) for name in ("GaussianNoise", "RandomSharpness", "RandomAutocontrast")),
    *((name, {"prob": 1.0}, {}) for name in ("RandomEqualize", "RandomInvert", "RandomJPEG")),
    *((name, {}, {}) for name in ("SGD", "Adam", "AdamW", "MultiStep", "Cosine")),
]
ELSEWHERE = {"CocoDataset", "RCNN"}  # these need files, or built parts: tests of their own below


@pytest.mark.parametrize(
    ("name", "settings", "wired"), BUILTIN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_built_in_component_keeps_every_promise(name: str, settings: dict[str, Any], wired: dict[str, Any]) -> None:
    if name == "TimmBackbone":
        pytest.importorskip("timm", reason="extra 'timm' is not installed")
    check_component(name, settings=settings, wired=wired)


def test_every_built_in_component_is_in_the_table() -> None:
    register_builtin()
    families = FAMILIES.values()
    known = {n for family in families for n in family if family.get(n).__module__.startswith("toolbox.")}
    assert known == {name for name, _, _ in BUILTIN} | ELSEWHERE


def test_coco_data_sets_keep_every_promise(tmp_path: Path) -> None:
    shapes = Shapes(**SMALL_SHAPES, seed=3)
    truth = shapes.ground_truth()
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.png"
    for index in range(len(shapes)):
        sample = shapes.load(index)
        cv2.imwrite(str(tmp_path / f"{sample.image_id}.png"), sample.image[..., ::-1])
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "all.json").write_text(json.dumps(truth))
    check_component("CocoDataset", settings={"images": str(tmp_path), "annotations": str(tmp_path / "all.json")})


def test_the_detector_keeps_every_promise() -> None:
    overrides = ["model.neck.out_channels=8", "model.box.head.channels=16", "test.score_threshold=0"]
    root = Path(toolbox.__file__).parents[1]
    config = toolbox.load_config(root / "configs" / "quickstart.yaml", overrides)
    built = toolbox.build_detector(config, classes=("a", "b", "c"))
    parts = {name: getattr(built, name) for name in ("backbone", "neck", "rpn", "box")}
    made = check_component("RCNN", settings={**parts, "instance": dict(built.instance)})
    assert {"losses", "detections", "repeatable"} <= set(made)


# Components that break one promise each, made from one that keeps them all.


class GoodHead(nn.Module):
    """Area of each object, from the mean of its region."""

    def __init__(self, in_shape: RoIShape, num_classes: int, *, weight: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(in_shape.channels, 1)
        self.weight = weight

    def forward(self, regions: Tensor) -> Tensor:
        return self.layer(regions.mean(dim=(2, 3))).squeeze(1)

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        image = regions.rois[:, 0].long()
        wanted = targets.area[image, regions.matched].clamp(min=1).log()
        error = (prediction.float() - wanted).abs()
        count = regions.valid.sum().clamp(min=1)
        return {"area": self.weight * torch.where(regions.valid, error, 0.0).sum() / count}

    def predict(self, prediction: Tensor, labels: Tensor) -> Tensor:
        return prediction.float().exp()

    def to_image(self, values: Tensor, boxes: Tensor, height: int, width: int) -> dict[str, Any]:
        return {"area": values.tolist()}


class UndocumentedHead(GoodHead): ...


class PositionalHead(GoodHead):
    """Takes a setting by position."""

    def __init__(self, in_shape: RoIShape, num_classes: int, weight: float = 1.0) -> None:
        super().__init__(in_shape, num_classes, weight=weight)


class UntypedHead(GoodHead):
    """Has a setting without a type."""

    def __init__(self, in_shape: RoIShape, num_classes: int, *, weight=1.0) -> None:
        super().__init__(in_shape, num_classes, weight=weight)


class MethodlessHead(nn.Module):
    """Has no loss."""

    def __init__(self, in_shape: RoIShape, num_classes: int) -> None:
        super().__init__()

    def forward(self, regions: Tensor) -> Tensor:
        return regions


class EmptyHead(GoodHead):
    """Cannot flatten no regions."""

    def forward(self, regions: Tensor) -> Tensor:
        return super().forward(regions.view(len(regions), -1, 6, 6))


class NeighbourHead(GoodHead):
    """Compares each region with the mean of all."""

    def forward(self, regions: Tensor) -> Tensor:
        return super().forward(regions - regions.mean(dim=0))


class WritingHead(GoodHead):
    """Writes into its input."""

    def forward(self, regions: Tensor) -> Tensor:
        return super().forward(regions.relu_())


class DiceHead(GoodHead):
    """Adds noise in evaluation."""

    def forward(self, regions: Tensor) -> Tensor:
        return super().forward(regions) + torch.rand(len(regions))


class DetachedHead(GoodHead):
    """Has a parameter that nothing uses."""

    def __init__(self, in_shape: RoIShape, num_classes: int) -> None:
        super().__init__(in_shape, num_classes)
        self.unused = nn.Parameter(torch.zeros(1))


class NarrowHead(GoodHead):
    """Overflows to infinity in half precision, where the largest step of 1 is lost."""

    def forward(self, regions: Tensor) -> Tensor:
        x = super().forward(regions)
        return x / (torch.full_like(x, 257.0) - 256.0)


class MixedHead(GoodHead):
    """Makes a float32 tensor, which autocast forgives and a bfloat16 layer does not."""

    def forward(self, regions: Tensor) -> Tensor:
        return self.layer(regions.mean(dim=(2, 3)) + torch.zeros(regions.shape[1])).squeeze(1)


class SingleHead(GoodHead):
    """Computes in float32, whatever it is given."""

    def forward(self, regions: Tensor) -> Tensor:
        return (regions.float().mean(dim=(2, 3)) @ self.layer.weight.float().T + self.layer.bias.float())[:, 0]


class StrideHead(GoodHead):
    """Reads memory instead of shape."""

    def forward(self, regions: Tensor) -> Tensor:
        return super().forward(regions * (2.0 if regions.stride(1) == 1 else 1.0))


class ForgetfulHead(GoodHead):
    """Keeps what it has learned where no state dict sees it."""

    def __init__(self, in_shape: RoIShape, num_classes: int) -> None:
        super().__init__(in_shape, num_classes)
        self.scale = torch.rand(1)

    def forward(self, regions: Tensor) -> Tensor:
        return super().forward(regions) * self.scale.to(regions.dtype)


class BranchingHead(GoodHead):
    """Decides by a value."""

    def forward(self, regions: Tensor) -> Tensor:
        x = super().forward(regions)
        return x if x.sum().item() > 1e6 else x * 2


class VectorLossHead(GoodHead):
    """Returns a loss per region."""

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        return {"area": prediction.abs()}


class ConstantLossHead(GoodHead):
    """Returns a loss that no gradient flows from where there are no regions."""

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        return super().loss(prediction, regions, targets) if len(prediction) else {"area": torch.zeros(())}


class MeanLossHead(GoodHead):
    """Divides by no objects."""

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        return {"area": prediction.float().abs().mean()}


class PaddedLossHead(GoodHead):
    """Counts padding."""

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        return {"area": prediction.float().abs().sum() / max(1, len(prediction))}


class LossWritingHead(GoodHead):
    """Writes into the targets."""

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        targets.area += 1
        return super().loss(prediction, regions, targets)


class ShortHead(GoodHead):
    """Loses a detection on the way to the image."""

    def to_image(self, values: Tensor, boxes: Tensor, height: int, width: int) -> dict[str, Any]:
        return {"area": values.tolist()[1:]}


class WrongStrideBackbone(nn.Module):
    """Promises stride 4 and puts out stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, stride=8, padding=1)
        self.out_features = {"c2": FeatureSpec(4, 4)}
        self.pixels = PixelStats()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c2": self.layer(images)}


class SilentBackbone(nn.Module):
    """Does not say what it puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = PixelStats()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c2": images}


class WideNeck(nn.Module):
    """Promises 4 channels and puts out 8."""

    def __init__(self, in_features: dict[str, FeatureSpec]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_features["c2"].channels, 8, 1)
        self.out_features = {"p2": FeatureSpec(4, 4)}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"p2": self.layer(features["c2"])}


class FlatRPNHead(nn.Module):
    """Two numbers a box instead of four."""

    def __init__(self, in_channels: int, num_anchors: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_channels, num_anchors, 1)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores = [self.layer(x) for x in features]
        return scores, [torch.cat((x, x), dim=1) for x in scores]


class BackgroundlessBoxHead(nn.Module):
    """Forgets the background class."""

    def __init__(self, in_shape: RoIShape, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_shape.channels, 5 * num_classes)

    def forward(self, regions: Tensor) -> BoxPrediction:
        x = self.layer(regions.mean(dim=(2, 3)))
        classes = x.shape[1] // 5
        return BoxPrediction(x[:, :classes], x[:, classes:].unflatten(1, (classes, 4)))


class OtherSizeStage(nn.Module):
    """Promises 3 × 3 and puts out 6 × 6."""

    def __init__(self, in_shape: RoIShape) -> None:
        super().__init__()
        self.out_shape = RoIShape(in_shape.channels, 3, 3)

    def forward(self, regions: Tensor) -> Tensor:
        return regions


class SummedLoss:
    """Sums."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs().sum()


class ExplosiveLoss:
    """Overflows."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.exp() - target).abs()


class DetachedLoss:
    """Cuts the gradient."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.detach() - target).abs() + 0 * prediction


class WritingLoss:
    """Writes into the target."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.float() - target.mul_(2)).abs()


class GreedySampler(RandomSampler):
    """Calls everything foreground."""

    def sample(self, foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index, valid, _ = super().sample(foreground, background)
        return index, valid, valid


class InventiveSampler(RandomSampler):
    """Takes rows that are no candidates where it has too few."""

    def sample(self, foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index, valid, chosen = super().sample(foreground, background)
        return index, valid | (valid.sum(dim=1, keepdim=True) < 2), chosen


class OwnDiceSampler(RandomSampler):
    """Draws from a generator of its own."""

    def sample(self, foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(np.random.randint(1 << 30))
        return super().sample(foreground, background)


class SmallShapes(Shapes):
    """A few small pictures."""

    def __init__(self) -> None:
        super().__init__(**SMALL_SHAPES)


class TwinClassShapes(SmallShapes):
    """Two classes of one name."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = ("circle",) * len(self.classes)


class TurnedShapes(SmallShapes):
    """Gives width before height."""

    def __init__(self) -> None:
        super().__init__()
        self.height = 96

    def size(self, index: int) -> tuple[int, int]:
        return super().size(index)[::-1]


class OutsideShapes(SmallShapes):
    """Boxes that leave the image."""

    def load(self, index: int) -> Sample:
        sample = super().load(index)
        return replace(sample, boxes=sample.boxes + np.float32(30))


class RandomShapes(SmallShapes):
    """Another image each time."""

    def load(self, index: int) -> Sample:
        return super().load(np.random.randint(len(self)))


class LambdaShapes(SmallShapes):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.name = lambda index: index


class TruthlessShapes(SmallShapes):
    """Leaves an object out of the ground truth."""

    def ground_truth(self) -> dict[str, Any]:
        truth = super().ground_truth()
        return {**truth, "annotations": truth["annotations"][1:]}


class FlatteningTransform:
    """A map without an inverse."""

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        return view.moved(np.zeros((2, 3)), view.height, view.width)


class GlobalDiceTransform:
    """Draws from numpy's global generator."""

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        shift = np.random.randint(5)
        return view.moved(np.array([[1.0, 0, shift], [0, 1, 0]]), view.height, view.width)


class WritingTransform:
    """Writes into the matrix that comes in."""

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        view.matrix[0, 2] += 3
        return view


class LambdaTransform(transforms.HorizontalFlip):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.chance = lambda: 0.5


class UphillOptimizer(torch.optim.SGD):
    """Climbs."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr, maximize=True)


class StubbornOptimizer(torch.optim.SGD):
    """Keeps the rate that it was made with."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        self.first = lr

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] = self.first
        return super().step(closure)


class LevellingOptimizer(torch.optim.SGD):
    """Decays every group alike."""

    def __init__(self, params: Any, lr: float, *, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, weight_decay=weight_decay)
        for group in self.param_groups:
            group["weight_decay"] = weight_decay


class AmnesicOptimizer(torch.optim.SGD):
    """Has a momentum that its state dict leaves out."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr, momentum=0.9)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "state": {}}


@dataclass(frozen=True)
class ShortRunSchedule:
    """Divides by the steps after the first."""

    steps: int

    def __call__(self, step: int) -> float:
        return 1 - step / (self.steps - 1)


class CountingSchedule:
    """Counts its calls."""

    def __init__(self, steps: int) -> None:
        self.calls = 0

    def __call__(self, step: int) -> float:
        self.calls += 1
        return 1 / self.calls


# Components that raise on what every component of their family is given.


class FixedWidthHead(GoodHead):
    """Has a width written into it that is not that of its input."""

    def __init__(self, in_shape: RoIShape, num_classes: int) -> None:
        super().__init__(in_shape, num_classes)
        self.layer = nn.Linear(256, 1)

    def forward(self, regions: Tensor) -> Tensor:
        return self.layer(regions.mean(dim=(2, 3)))[:, 0]  # FixedWidthHead.forward


class MisspelledLossHead(GoodHead):
    """Calls a method that is not there, in loss."""

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        return {"area": prediction.flaot().sum()}  # MisspelledLossHead.loss


class MisspelledPredictHead(GoodHead):
    """Calls a method that is not there, in predict."""

    def predict(self, prediction: Tensor, labels: Tensor) -> Tensor:
        return prediction.flaot().exp()  # MisspelledPredictHead.predict


class MisspelledToImageHead(GoodHead):
    """Calls a method that is not there, in to_image."""

    def to_image(self, values: Tensor, boxes: Tensor, height: int, width: int) -> dict[str, Any]:
        return {"area": values.to_list()}  # MisspelledToImageHead.to_image


class MisspelledNeck(WideNeck):
    """Reads a map that is not there."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"p2": self.layer(features["p2"])}  # MisspelledNeck.forward


BROKEN: list[tuple[str, type, str, str]] = [
    ("instance_head", UndocumentedHead, "documented", "none of its own"),
    ("instance_head", PositionalHead, "constructor", "'weight' can be given by position"),
    ("instance_head", UntypedHead, "constructor", "'weight' has no type"),
    ("instance_head", MethodlessHead, "interface", "no method loss, predict, to_image"),
    ("instance_head", EmptyHead, "no regions", "cannot reshape tensor of 0 elements"),
    ("instance_head", NeighbourHead, "rows apart", "one of three regions and the same alone differ"),
    ("instance_head", WritingHead, "inputs unchanged", "output[0] differs by"),
    ("instance_head", DetachedHead, "no regions", "no gradient in unused"),
    ("instance_head", NarrowHead, "half precision", "under autocast, output is not finite"),
    ("instance_head", MixedHead, "half precision", "dtype"),
    ("instance_head", SingleHead, "float64", "output is not float64"),
    ("instance_head", StrideHead, "channels last", "contiguous and channels-last differ"),
    ("instance_head", ForgetfulHead, "state dict", "outputs differ"),
    ("instance_head", BranchingHead, "export", "data-dependent"),
    ("instance_head", VectorLossHead, "loss", "loss 'area' is no scalar"),
    ("instance_head", ConstantLossHead, "no objects", "the loss is not connected to the prediction"),
    ("instance_head", MeanLossHead, "no objects", "loss 'area' is nan"),
    ("instance_head", PaddedLossHead, "padding", "with padding and without"),
    ("instance_head", LossWritingHead, "loss inputs unchanged", ".area differs by 1"),
    ("instance_head", ShortHead, "prediction", "lengths {'area': 3} for D = 4"),
    ("backbone", WrongStrideBackbone, "promises", "c2 is (2, 4, 8, 12), FeatureSpec(channels=4, stride=4) promises"),
    ("backbone", SilentBackbone, "interface", "it sets no out_features"),
    ("neck", WideNeck, "promises", "p2 is (2, 8, 16, 24)"),
    ("rpn_head", FlatRPNHead, "promises", "deltas of shapes"),
    ("box_head", BackgroundlessBoxHead, "promises", "logits (3, 3) for K = 3"),
    ("roi_stage", OtherSizeStage, "promises", "(3, 8, 6, 6), RoIShape(channels=8, height=3, width=3) promises"),
    ("loss", SummedLoss, "element-wise", ""),
    ("loss", ExplosiveLoss, "finite", "for ±10000"),
    ("loss", DetachedLoss, "gradient", "0."),
    ("loss", WritingLoss, "inputs unchanged", "changed: output[1]"),
    ("sampler", GreedySampler, "draw", "a foreground row that is no foreground candidate"),
    ("sampler", InventiveSampler, "few candidates", "valid rows without a candidate"),
    ("sampler", OwnDiceSampler, "repeatable", "two draws of one seed"),
    ("dataset", TwinClassShapes, "classes", "a class twice"),
    ("dataset", TurnedShapes, "samples", "size(0) is (64, 96), the image (height, width) is (96, 64)"),
    ("dataset", OutsideShapes, "samples", "in an image of 64 × 64"),
    ("dataset", RandomShapes, "repeatable", "differs from the first time"),
    ("dataset", LambdaShapes, "pickles", "pickle"),
    ("dataset", TruthlessShapes, "ground truth", "has the categories"),
    ("transform", FlatteningTransform, "views", "a map without inverse"),
    ("transform", GlobalDiceTransform, "repeatable", "two calls with np.random.default_rng(0) differ"),
    ("transform", WritingTransform, "inputs unchanged", "the matrix of the view that came in was changed"),
    ("transform", LambdaTransform, "pickles", "pickle"),
    ("optimizer", UphillOptimizer, "learns", "after 50 steps"),
    ("optimizer", StubbornOptimizer, "learning rate", "with lr = 0"),
    ("optimizer", LevellingOptimizer, "groups", "weight decay [0.5, 0.5]"),
    ("optimizer", AmnesicOptimizer, "state dict", "after three more steps"),
    ("schedule", ShortRunSchedule, "factors", "ZeroDivisionError"),
    ("schedule", CountingSchedule, "no state", "the factor differs at step"),
]


@pytest.fixture(autouse=True)
def forget_what_the_test_registers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    register_builtin()
    for registry in FAMILIES.values():
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    yield


def test_a_head_that_keeps_its_promises_passes_all_checks() -> None:
    FAMILIES["instance_head"].register(GoodHead)
    assert check_component(GoodHead) == tuple(checks_of("instance_head"))
    assert check_component("GoodHead", settings={"weight": 0.5}, skip={"export"})[-1] == "prediction"


@pytest.mark.parametrize(("family", "cls", "name", "got"), BROKEN, ids=[cls.__name__ for _, cls, _, _ in BROKEN])
def test_a_broken_promise_is_named_with_what_came_out_and_what_to_do(
    family: str, cls: type, name: str, got: str
) -> None:
    FAMILIES[family].register(cls)
    with pytest.raises(AssertionError) as caught:
        check_component(cls)
    said = str(caught.value)
    assert said.startswith(f"{family} '{cls.__name__}' breaks the promise '{name}': ")
    assert got in said.partition("\n  got: ")[2].partition("\n  do: ")[0]
    assert len(said.partition("\n  do: ")[2]) > 10


@pytest.mark.parametrize(
    ("family", "cls", "method", "error"),
    [
        ("instance_head", FixedWidthHead, "forward", "mat1 and mat2 shapes cannot be multiplied"),
        ("instance_head", MisspelledLossHead, "loss", "AttributeError: 'Tensor' object has no attribute 'flaot'"),
        ("instance_head", MisspelledPredictHead, "predict", "AttributeError: 'Tensor' object has no attribute 'flaot'"),
        ("instance_head", MisspelledToImageHead, "to_image", "AttributeError: 'Tensor' object has no attribute"),
        ("neck", MisspelledNeck, "forward", "KeyError: 'p2'"),
    ],
)
def test_what_raises_on_ordinary_input_is_blamed_on_no_promise(family: str, cls: type, method: str, error: str) -> None:
    FAMILIES[family].register(cls)
    with pytest.raises(AssertionError) as caught:
        check_component(cls)
    headline, got, remedy = str(caught.value).splitlines()
    assert headline == f"{family} '{cls.__name__}': {method} raises on ordinary input"
    lines = Path(__file__).read_text().splitlines()
    (number,) = [n for n, line in enumerate(lines, 1) if line.endswith(f"# {cls.__name__}.{method}")]
    assert error in got and got.endswith(f" ({__file__}, line {number})")
    assert remedy.startswith("  do: mend it there")


def test_a_constructor_that_raises_is_told_apart_from_what_it_should_set() -> None:
    FAMILIES["instance_head"].register(GoodHead)
    with pytest.raises(AssertionError, match="the constructor raises\n  got: TypeError: .*'wieght'.*\n  do: give sett"):
        check_component(GoodHead, settings={"wieght": 1.0})


def test_noise_in_evaluation_is_found_whichever_check_comes_first() -> None:
    FAMILIES["instance_head"].register(DiceHead)
    with pytest.raises(AssertionError, match="'repeatable'.*\n.*two calls differ"):
        check_component(DiceHead, skip={"rows apart"})


def test_a_class_that_is_not_registered_is_told_how() -> None:
    with pytest.raises(AssertionError, match="GoodHead is not registered.*put @FAMILY.register before the class"):
        check_component(GoodHead)
    with pytest.raises(AssertionError, match="'registered'.*\n.*instance_head has no 'GoodHead'"):
        check_component(GoodHead, family="instance_head")


def test_wrong_arguments_of_the_kit_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing named 'ResNett' is registered; did you mean 'ResNet'"):
        check_component("ResNett")
    with pytest.raises(ValueError, match="no family 'heads'"):
        check_component("ResNet", family="heads")
    with pytest.raises(ValueError, match="skip: no check 'exports' for loss"):
        check_component("SmoothL1", skip={"exports"})


def test_nan_differs_from_everything() -> None:
    """A comparison with NaN is false, so that it must be asked the right way round."""
    nan = torch.tensor([float("nan")])
    assert difference(nan, nan) is not None and difference(torch.zeros(1), nan) is not None
    assert difference(torch.zeros(1), torch.zeros(1)) is None
