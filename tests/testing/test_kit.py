"""The conformance kit: a component that breaks a promise is told which, with what came out and what to do."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from broken import heads, loggers, parts, stages

from toolbox.registry import FAMILIES
from toolbox.testing import check_component, checks_of
from toolbox.testing.case import difference

BROKEN: list[tuple[str, type, str, str]] = [
    ("instance_head", heads.UndocumentedHead, "documented", "none of its own"),
    ("instance_head", heads.PositionalHead, "constructor", "'weight' can be given by position"),
    ("instance_head", heads.UntypedHead, "constructor", "'weight' has no type"),
    ("instance_head", heads.MethodlessHead, "interface", "no method loss, predict, to_image"),
    ("instance_head", heads.EmptyHead, "no regions", "cannot reshape tensor of 0 elements"),
    ("instance_head", heads.NeighbourHead, "rows apart", "one of three regions and the same alone differ"),
    ("instance_head", heads.WritingHead, "inputs unchanged", "output[0] differs by"),
    ("instance_head", heads.DetachedHead, "no regions", "no gradient in unused"),
    ("instance_head", heads.NarrowHead, "half precision", "under autocast, output is not finite"),
    ("instance_head", heads.MixedHead, "half precision", "dtype"),
    ("instance_head", heads.SingleHead, "float64", "output is not float64"),
    ("instance_head", heads.StrideHead, "channels last", "contiguous and channels-last differ"),
    ("instance_head", heads.ForgetfulHead, "state dict", "outputs differ"),
    ("instance_head", heads.BranchingHead, "export", "data-dependent"),
    ("instance_head", heads.VectorLossHead, "loss", "loss 'area' is no scalar"),
    ("instance_head", heads.ConstantLossHead, "no objects", "the loss is not connected to the prediction"),
    ("instance_head", heads.MeanLossHead, "no objects", "loss 'area' is nan"),
    ("instance_head", heads.PaddedLossHead, "padding", "with padding and without"),
    ("instance_head", heads.LossWritingHead, "loss inputs unchanged", ".area differs by 1"),
    ("instance_head", heads.ShortHead, "prediction", "lengths {'area': 3} for D = 4"),
    (
        "backbone",
        stages.WrongStrideBackbone,
        "promises",
        "c2 is (2, 4, 8, 12), FeatureSpec(channels=4, stride=4) promises",
    ),
    ("backbone", stages.SilentBackbone, "interface", "it sets no out_features"),
    ("neck", stages.WideNeck, "promises", "p2 is (2, 8, 16, 24)"),
    ("rpn_head", stages.FlatRPNHead, "promises", "deltas of shapes"),
    ("box_head", stages.BackgroundlessBoxHead, "promises", "logits (3, 3) for K = 3"),
    ("roi_stage", stages.OtherSizeStage, "promises", "(3, 8, 6, 6), RoIShape(channels=8, height=3, width=3) promises"),
    ("loss", parts.SummedLoss, "element-wise", ""),
    ("loss", parts.ExplosiveLoss, "finite", "for ±10000"),
    ("loss", parts.DetachedLoss, "gradient", "0."),
    ("loss", parts.WritingLoss, "inputs unchanged", "changed: output[1]"),
    ("sampler", parts.GreedySampler, "draw", "a foreground row that is no foreground candidate"),
    ("sampler", parts.InventiveSampler, "few candidates", "valid rows without a candidate"),
    ("sampler", parts.OwnDiceSampler, "repeatable", "two draws of one seed"),
    ("dataset", parts.TwinClassShapes, "classes", "a class twice"),
    ("dataset", parts.TurnedShapes, "samples", "size(0) is (64, 96), the image (height, width) is (96, 64)"),
    ("dataset", parts.OutsideShapes, "samples", "in an image of 64 × 64"),
    ("dataset", parts.RandomShapes, "repeatable", "differs from the first time"),
    ("dataset", parts.LambdaShapes, "pickles", "pickle"),
    ("dataset", parts.TruthlessShapes, "ground truth", "has the categories"),
    ("transform", parts.FlatteningTransform, "views", "a map without inverse"),
    ("transform", parts.GlobalDiceTransform, "repeatable", "two calls with np.random.default_rng(0) differ"),
    ("transform", parts.WritingTransform, "inputs unchanged", "the matrix of the view that came in was changed"),
    ("transform", parts.LambdaTransform, "pickles", "pickle"),
    ("optimizer", parts.UphillOptimizer, "learns", "after 50 steps"),
    ("optimizer", parts.StubbornOptimizer, "learning rate", "with lr = 0"),
    ("optimizer", parts.LevellingOptimizer, "groups", "weight decay [0.5, 0.5]"),
    ("optimizer", parts.AmnesicOptimizer, "state dict", "after three more steps"),
    ("schedule", parts.ShortRunSchedule, "factors", "ZeroDivisionError"),
    ("schedule", parts.CountingSchedule, "no state", "the factor differs at step"),
    ("logger", loggers.NestedLogger, "a whole run", "KeyError: 'bbox'"),
    ("logger", loggers.FirstRunLogger, "a resumed run", "FileExistsError"),
    ("logger", loggers.AveragingLogger, "an empty run", "ZeroDivisionError"),
    ("logger", loggers.PoppingLogger, "inputs unchanged", "scalars changed them to {'losses/box'"),
]


def test_a_head_that_keeps_its_promises_passes_all_checks() -> None:
    FAMILIES["instance_head"].register(heads.GoodHead)
    assert check_component(heads.GoodHead) == tuple(checks_of("instance_head"))
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
        ("instance_head", heads.FixedWidthHead, "forward", "mat1 and mat2 shapes cannot be multiplied"),
        ("instance_head", heads.MisspelledLossHead, "loss", "AttributeError: 'Tensor' object has no attribute 'flaot'"),
        (
            "instance_head",
            heads.MisspelledPredictHead,
            "predict",
            "AttributeError: 'Tensor' object has no attribute 'flaot'",
        ),
        ("instance_head", heads.MisspelledToImageHead, "to_image", "AttributeError: 'Tensor' object has no attribute"),
        ("neck", stages.MisspelledNeck, "forward", "KeyError: 'p2'"),
    ],
)
def test_what_raises_on_ordinary_input_is_blamed_on_no_promise(family: str, cls: type, method: str, error: str) -> None:
    FAMILIES[family].register(cls)
    with pytest.raises(AssertionError) as caught:
        check_component(cls)
    headline, got, remedy = str(caught.value).splitlines()
    assert headline == f"{family} '{cls.__name__}': {method} raises on ordinary input"
    file = inspect.getfile(cls)
    lines = Path(file).read_text().splitlines()
    (number,) = [n for n, line in enumerate(lines, 1) if line.endswith(f"# {cls.__name__}.{method}")]
    assert error in got and got.endswith(f" ({file}, line {number})")
    assert remedy.startswith("  do: mend it there")


def test_a_constructor_that_raises_is_told_apart_from_what_it_should_set() -> None:
    FAMILIES["instance_head"].register(heads.GoodHead)
    with pytest.raises(AssertionError, match="the constructor raises\n  got: TypeError: .*'wieght'.*\n  do: give sett"):
        check_component(heads.GoodHead, settings={"wieght": 1.0})


def test_noise_in_evaluation_is_found_whichever_check_comes_first() -> None:
    FAMILIES["instance_head"].register(heads.DiceHead)
    with pytest.raises(AssertionError, match="'repeatable'.*\n.*two calls differ"):
        check_component(heads.DiceHead, skip={"rows apart"})


def test_a_class_that_is_not_registered_is_told_how() -> None:
    with pytest.raises(AssertionError, match="GoodHead is not registered.*put @FAMILY.register before the class"):
        check_component(heads.GoodHead)
    with pytest.raises(AssertionError, match="'registered'.*\n.*instance_head has no 'GoodHead'"):
        check_component(heads.GoodHead, family="instance_head")


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
