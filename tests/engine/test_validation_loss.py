"""The losses on data.val, and the gradient's norm: what is logged, against what is computed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import toolbox
from toolbox.data.loader import evaluation_loader
from toolbox.engine import train
from toolbox.engine.checkpoint import load_checkpoint, seed_step
from toolbox.engine.datasets import check_watching
from toolbox.engine.distributed import Ranks
from toolbox.engine.validation_loss import validation_losses
from toolbox.errors import ConfigError, ToolboxError
from toolbox.structures import Targets

MakeConfig = Callable[..., Any]
CPU = torch.device("cpu")
QUICKSTART = Path(__file__).resolve().parents[2] / "configs/quickstart.yaml"


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def by_hand(detector: nn.Module, dataset: Any) -> dict[str, float]:
    """Each image alone, through the formula of the tiny detector."""
    detector.eval()
    corner, size = [], []
    for image, boxes in zip(dataset.images, dataset.boxes, strict=True):
        error = (detector.boxes([torch.from_numpy(image.transpose(2, 0, 1).copy())])[0] - torch.from_numpy(boxes)) / 8
        corner.append(error[:2].square().mean().item())
        size.append(error[2:].square().mean().item())
    return {"corner": sum(corner) / len(corner), "size": sum(size) / len(size)}


@pytest.mark.parametrize("ema", [None, 0.9])
def test_it_is_the_mean_over_the_images_with_the_weights_as_evaluated(
    tiny_config: MakeConfig, tiny_images: type, tiny_detector: type, tmp_path: Path, ema: float | None
) -> None:
    config = tiny_config(model={"dropout": 0.5}, val=tiny_images, validation_loss=True, eval_every=6, ema=ema)
    train(config, tmp_path / "run")
    first, last = (line for line in lines(tmp_path / "run") if "eval" in line)
    state = load_checkpoint(tmp_path / "run/checkpoint.pt")
    detector = tiny_detector(1)
    detector.load_state_dict(state["ema"] or state["model"])
    expected = by_hand(detector, tiny_images())
    assert last["val_losses"] == pytest.approx(expected, rel=1e-5)
    assert last["val_loss"] == pytest.approx(sum(expected.values()), rel=1e-5)
    assert first["val_loss"] != last["val_loss"]
    assert f"; val_loss {last['val_loss']:.4f} (corner " in (tmp_path / "run/log.txt").read_text()


def test_it_does_not_change_the_training(tiny_config: MakeConfig, tiny_images: type, tmp_path: Path) -> None:
    for name, asked in (("with", True), ("without", False)):
        config = tiny_config(model={"dropout": 0.5}, val=tiny_images, eval_every=2, validation_loss=asked, ema=0.9)
        train(config, tmp_path / name)
    one, other = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("with", "without"))
    for name in one["model"]:
        assert torch.equal(one["model"][name], other["model"][name])
    assert not any("val_loss" in line for line in lines(tmp_path / "without"))


class Taking(Ranks):
    """Takes turns with others as torchrun's processes do, but one after the other and in this process."""

    shares: ClassVar[dict[int, Any]] = {}

    def gather(self, value: Any) -> list[Any]:
        self.shares[self.rank] = value
        return [self.shares[rank] for rank in range(self.size)] if self.first else []

    def from_first(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize("size", [2, 3, 5])
def test_processes_that_share_the_images_get_the_bits_of_one(size: int) -> None:
    """Of three images; five processes have some without any."""
    small = ["data.val.length=3", "model.box.sampler.size=16", "data.resize.short=96"]
    config = toolbox.load_config(QUICKSTART, small)
    dataset = config.data.val.build()
    torch.manual_seed(0)
    model = toolbox.build_detector(config, classes=dataset.classes, skeleton=dataset.skeleton)

    def losses(ranks: Ranks) -> dict[str, float]:
        return validation_losses(model, dataset, resize=config.data.resize, device=CPU, seed=1, ranks=ranks)

    together = [losses(Taking(rank, size)) for rank in reversed(range(size))]
    assert together[-1] == losses(Ranks()) and len(together[-1]) == 5


def test_regions_are_sampled_alike_in_every_evaluation_and_norms_rest() -> None:
    small = ["model.backbone.norm=bn", "data.val.length=3", "model.box.sampler.size=16", "data.resize.short=96"]
    config = toolbox.load_config(QUICKSTART, small)
    dataset = config.data.val.build()
    torch.manual_seed(0)
    model = toolbox.build_detector(config, classes=dataset.classes, skeleton=dataset.skeleton).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def losses(seed: int) -> dict[str, float]:
        torch.rand(3)  # whatever the generator's state is
        return validation_losses(model, dataset, resize=config.data.resize, device=CPU, seed=seed)

    first = losses(seed=0)
    assert first == losses(seed=0) != losses(seed=1)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    model.eval()
    expected: dict[str, float] = dict.fromkeys(first, 0.0)
    for index, batch in enumerate(evaluation_loader(dataset, resize=config.data.resize)):
        seed_step(0, index)
        for name, loss in model(batch.images, batch.targets).items():
            expected[name] += loss.item() / 3
    assert first == pytest.approx(expected, rel=1e-5)


def test_data_without_the_masks_that_a_loss_needs_is_refused() -> None:
    config = toolbox.load_config(QUICKSTART, ["train.validation_loss=true"])

    class Boxes:
        def __init__(self, dataset: Any) -> None:
            self.dataset = dataset

        def __len__(self) -> int:
            return 1

        def load(self, index: int) -> Any:
            sample = self.dataset.load(index)
            sample.masks = None
            return sample

    with pytest.raises(ConfigError, match=r"has no masks here, but .* needs them to compute its loss") as caught:
        check_watching(config, Boxes(config.data.val.build()))
    assert caught.value.problems[0].key == "data.val"
    with pytest.raises(ConfigError, match=r"validation_loss needs images to compute it on; add data\.val"):
        check_watching(config, None)


def test_a_detector_without_losses_in_evaluation_is_told_of(tiny_images: type) -> None:
    class Silent(nn.Module):
        def forward(self, images: Any, targets: Targets) -> Any:
            return {"loss": torch.zeros(())} if self.training else []

    with pytest.raises(ToolboxError, match="Silent gives no losses in evaluation mode"):
        validation_losses(Silent(), tiny_images(), resize=None, device=CPU, seed=0)


def test_clipping_limits_the_step_and_the_norm_before_it_is_logged(
    tiny_config: MakeConfig, tiny_detector: type, tmp_path: Path
) -> None:
    seed_step(0, -1)
    start = torch.cat([value.flatten() for value in tiny_detector(1).state_dict().values()])

    def one_step(name: str, **settings: Any) -> tuple[float | None, torch.Tensor]:
        """What was logged, and the step at a rate of 1 without weight decay or warm-up: the gradient."""
        config = tiny_config(steps=1, batch=12, lr=1.0, **settings)
        for setting, value in (("schedule", lambda step: 1.0), ("optimizer", None)):
            made = torch.optim.SGD if value is None else (lambda steps, value=value: value)
            object.__setattr__(config.train, setting, type("Made", (), {"build": staticmethod(made)})())
        train(config, tmp_path / name)
        weights = load_checkpoint(tmp_path / name / "checkpoint.pt")["model"]
        moved = start - torch.cat([value.flatten() for value in weights.values()])
        return lines(tmp_path / name)[0].get("grad_norm"), moved

    nothing, gradient = one_step("free")
    loose, same = one_step("loose", clip_norm=1e6)
    tight, clipped = one_step("tight", clip_norm=0.1)
    _, small = one_step("small", clip_value=0.01)
    assert nothing is None and torch.equal(gradient, same)
    assert loose == tight == pytest.approx(gradient.norm().item(), rel=1e-4) and loose > 0.1
    torch.testing.assert_close(clipped, gradient * 0.1 / gradient.norm(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(small, gradient.clamp(-0.01, 0.01), rtol=1e-3, atol=1e-6)
