"""Starting from another detector: which rows come from where, by hand; what the table says; and what a run does."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import toolbox
from toolbox.cli import main
from toolbox.engine import train
from toolbox.engine.checkpoint import load_checkpoint
from toolbox.engine.init_from import Transfer, plan_transfer, report
from toolbox.errors import ConfigError
from toolbox.inference.metadata import model_metadata
from toolbox.structures import Skeleton
from toolbox.weights import load_model, save_model

QUICKSTART = Path(__file__).resolve().parents[2] / "configs/quickstart.yaml"
SMALL = ["model.box.head.channels=8", "model.instance.mask.head={type: FCNMaskHead, convolutions: 1, channels: 8}"]
JOINTS = [
    "model.instance.pose={extractor: {type: RoIAlign, output_size: 4}, "
    "head: {type: FCNKeypointHead, convolutions: 1, channels: 8}}"
]


def made(file: Path | None, *overrides: str) -> Any:
    start = [] if file is None else [f"train.init_from={file}"]
    return toolbox.load_config(QUICKSTART, [*SMALL, *start, *overrides])


def known(*classes: str, joints: tuple[str, ...] = (), channels: int = 3) -> dict[str, Any]:
    skeleton = Skeleton(names=joints, sigmas=(0.1,) * len(joints)) if joints else None
    return {"classes": classes, "skeleton": skeleton, "channels": channels}


def kept(file: Path, data: dict[str, Any], *overrides: str) -> dict[str, torch.Tensor]:
    """A detector's random weights, as a run would leave them in a file."""
    torch.manual_seed(1)
    config = made(None, *overrides)
    state = toolbox.build_detector(config, **data).state_dict()
    for value in state.values():  # biases too
        value.copy_(torch.rand_like(value, dtype=torch.float32))
    save_model(file, state, model_metadata(config, data["classes"], range(len(data["classes"])), data["skeleton"]))
    return load_model(file)[0]


def started(config: Any, data: dict[str, Any]) -> tuple[Transfer, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The transfer, the model's weights before it and those after."""
    torch.manual_seed(2)
    model = toolbox.build_detector(config, **data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    transfer = plan_transfer(config, data)
    transfer.apply(model)
    return transfer, before, model.state_dict()


def test_rows_of_classes_with_the_same_name_are_carried_over(tmp_path: Path) -> None:
    theirs = kept(tmp_path / "m.safetensors", known("cat", "dog", "cow"))
    transfer, before, after = started(made(tmp_path / "m.safetensors"), known("bee", "cow", "cat", "ant"))
    head = "box.head.predictor."
    for part in ("weight", "bias"):
        logits, deltas = head + "logits." + part, head + "deltas." + part
        assert torch.equal(after[logits][[1, 2, 4]], theirs[logits][[2, 0, 3]])  # cow, cat, background
        assert torch.equal(after[logits][[0, 3]], before[logits][[0, 3]])
        assert torch.equal(after[deltas][4:8], theirs[deltas][8:12]), "cow"
        assert torch.equal(after[deltas][8:12], theirs[deltas][0:4]), "cat"
        assert torch.equal(after[deltas][[0, 1, 2, 3, 12, 13, 14, 15]], before[deltas][[0, 1, 2, 3, 12, 13, 14, 15]])
        masks = "instance.mask.head.predictor." + part
        assert torch.equal(after[masks][[1, 2]], theirs[masks][[2, 0]])
        assert torch.equal(after[masks][[0, 3]], before[masks][[0, 3]])
    by_name = [name for name in after if "predictor" in name]
    assert len(by_name) == 6
    assert all(torch.equal(after[name], theirs[name]) for name in after if name not in by_name)
    assert "  box.head.predictor" in "\n".join(transfer.lines())
    assert any("in part: 2 of 4 by class name: cow, cat" in line for line in transfer.lines())


def test_as_many_classes_in_another_order_are_not_taken_as_they_are(tmp_path: Path) -> None:
    theirs = kept(tmp_path / "m.safetensors", known("cat", "dog"))
    _, _, after = started(made(tmp_path / "m.safetensors"), known("dog", "cat"))
    assert torch.equal(after["box.head.predictor.logits.bias"], theirs["box.head.predictor.logits.bias"][[1, 0, 2]])


def test_without_a_common_class_the_predictions_start_anew(tmp_path: Path) -> None:
    kept(tmp_path / "m.safetensors", known("cat", "dog"))
    transfer, before, after = started(made(tmp_path / "m.safetensors"), known("bee", "ant", "fly"))
    for name in after:
        assert torch.equal(after[name], before[name]) == ("predictor" in name or before[name].numel() == 0), name
    assert any(
        "box.head.predictor.logits.weight" in line
        and "re-initialised: (3, 8) → (4, 8), no class of the same name" in line
        for line in transfer.lines()
    )


def test_class_agnostic_boxes_and_masks_go_to_any_classes(tmp_path: Path) -> None:
    agnostic = ["model.box.head.class_agnostic=true", "model.instance.mask.head.class_agnostic=true"]
    theirs = kept(tmp_path / "m.safetensors", known("cat", "dog"), *agnostic)
    _, _, after = started(made(tmp_path / "m.safetensors", *agnostic), known("bee", "ant", "fly"))
    for name in ("box.head.predictor.deltas.weight", "instance.mask.head.predictor.weight"):
        assert torch.equal(after[name], theirs[name])
    transfer, *_ = started(made(tmp_path / "m.safetensors"), known("cat", "ant", "fly"))
    assert any("deltas" in line and "re-initialised: (4, 8) → (12, 8)" in line for line in transfer.lines())


def test_rows_of_other_forms_are_found_too(tmp_path: Path) -> None:
    """A softmax has a last channel for background, and fully connected masks have M × M rows a class."""
    softmax = "model.instance.mask.head={type: FCNMaskHead, convolutions: 0, channels: 8, activation: softmax}"
    theirs = kept(tmp_path / "a.safetensors", known("cat", "dog"), softmax)
    _, before, after = started(made(tmp_path / "a.safetensors", softmax), known("ant", "dog"))
    name = "instance.mask.head.predictor.bias"
    assert torch.equal(after[name], torch.stack([before[name][0], theirs[name][1], theirs[name][2]]))
    flat = "model.instance.mask.head={type: MLPMaskHead, channels: 8, mask_size: 3}"
    theirs = kept(tmp_path / "b.safetensors", known("cat", "dog"), flat)
    _, before, after = started(made(tmp_path / "b.safetensors", flat), known("dog", "ant", "fly"))
    assert torch.equal(after[name], torch.cat([theirs[name][9:], before[name][9:]]))


def test_heat_maps_are_carried_over_by_the_joints_names(tmp_path: Path) -> None:
    theirs = kept(tmp_path / "m.safetensors", known("bee", joints=("head", "tail", "wing")), *JOINTS)
    config = made(tmp_path / "m.safetensors", *JOINTS)
    transfer, before, after = started(config, known("bee", joints=("wing", "leg", "head", "eye")))
    weight, bias = (f"instance.pose.head.deconvolution.{part}" for part in ("weight", "bias"))
    assert torch.equal(after[weight][:, [0, 2]], theirs[weight][:, [2, 0]])  # (in, J, 4, 4)
    assert torch.equal(after[weight][:, [1, 3]], before[weight][:, [1, 3]])
    assert torch.equal(after[bias][[0, 2]], theirs[bias][[2, 0]])
    assert any("in part: 2 of 4 by joint name: wing, head" in line for line in transfer.lines())


def test_other_heads_start_anew_and_what_the_file_has_besides_is_named(tmp_path: Path) -> None:
    kept(tmp_path / "m.safetensors", known("bee", joints=("head",)), *JOINTS)
    transfer, before, after = started(made(tmp_path / "m.safetensors", "model.instance.edge={extractor: {type: RoIAlign"
        ", output_size: 6}, head: {type: FCNMaskHead, convolutions: 1, channels: 8}}"), known("bee"))  # fmt: skip
    text = [" ".join(line.split()) for line in transfer.lines()]
    assert any(line.startswith("instance.edge") and line.endswith("re-initialised: not in the file") for line in text)
    assert any(
        line.startswith("instance.pose") and line.endswith("not used: the model has no such part") for line in text
    )
    name = "instance.edge.head.predictor.weight"
    assert torch.equal(after[name], before[name])
    # backbone, neck, rpn and boxes in a row each
    assert sum(line.startswith(("backbone", "neck", "rpn", "box")) for line in text) == 4


def test_a_first_convolution_for_rgb_is_fitted_as_a_backbones_weights_are(tmp_path: Path) -> None:
    theirs = kept(tmp_path / "m.safetensors", known("bee"))
    transfer, _, after = started(made(tmp_path / "m.safetensors"), known("bee", channels=1))
    (name,) = [name for name, value in theirs.items() if value.ndim == 4 and value.shape[1] == 3]
    torch.testing.assert_close(after[name], theirs[name].sum(1, keepdim=True))
    assert transfer.part == 1.0
    assert any("loaded: fitted from 3 channels to 1" in line for line in transfer.lines())


def test_little_that_fits_is_a_warning_and_nothing_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "m.safetensors"
    state = kept(file, known("bee"))
    config = made(file)
    with caplog.at_level(logging.INFO):
        report(plan_transfer(config, known("bee")))
    assert "(100.0 %)" in caplog.text and "ONLY" not in caplog.text
    neck = {name: value for name, value in state.items() if name.startswith("neck.")}
    save_model(file, neck, {"classes": '["bee"]'})
    report(plan_transfer(config, known("bee")))
    assert "ONLY" in caplog.text
    save_model(file, {"conv1.weight": torch.zeros(3)}, {})
    with pytest.raises(ConfigError, match=r"none of its 1 tensors .*'rcnn weights import .*model\.backbone\.weights"):
        plan_transfer(config, known("bee"))


def test_files_that_hold_no_detector_of_ours_are_refused_with_the_way(tmp_path: Path) -> None:
    torch.save({"backbone.body.conv1.weight": torch.zeros(3)}, tmp_path / "theirs.pth")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("theirs.pth", r"not a checkpoint of a run; .*rcnn weights import"),
        ("empty", "holds no model.safetensors and no checkpoint.pt"),
        ("their.pth", r"no such file or run folder; did you mean '.*theirs.pth'\?"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            plan_transfer(made(tmp_path / name), known("bee"))
        assert caught.value.problems[0].key.startswith("train.init_from")


@pytest.mark.parametrize("name", ["", "model.safetensors", "checkpoint.pt"])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_run_starts_from_another_and_resumes_without_it(
    tiny_config: Callable[..., Any], tmp_path: Path, name: str, ema: float | None
) -> None:
    train(tiny_config(seed=1, ema=0.5), tmp_path / "first")
    file = str(tmp_path / "first" / name)
    config = tiny_config(init_from=file, ema=ema, steps=2, lr=1e-9, checkpoint_every=1)

    def die(progress: Any) -> None:
        if progress.done == 2:
            raise MemoryError

    with pytest.raises(MemoryError):
        train(config, tmp_path / "second", on_progress=die)
    shutil.rmtree(tmp_path / "first")
    assert train(config, tmp_path / "second", resume=True)["finished"]
    state = load_checkpoint(tmp_path / "second/checkpoint.pt")
    said = (tmp_path / "second/log.txt").read_text()
    assert said.count(f"train.init_from: {file}") == 1 and "(100.0 %)" in said
    torch.manual_seed(0)
    train(tiny_config(seed=1, ema=0.5), tmp_path / "first")
    expected = load_model(tmp_path / "first/model.safetensors")[0]
    for values in (state["model"], *([state["ema"]] if ema else [])):
        for key, value in expected.items():
            torch.testing.assert_close(values[key], value, rtol=0, atol=1e-6)


def test_check_and_the_log_show_the_same_table_and_backbone_weights_are_not_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path / "m.safetensors", known("square", "cat"))
    overrides = [*SMALL, "data.train.length=2", "data.val.length=2", "model.backbone.weights=gone.pth"]
    command = ["check", str(QUICKSTART), *overrides]
    assert run_rcnn([*command, f"train.init_from={tmp_path / 'm.safetensors'}"]) == 0
    printed = capsys.readouterr().out
    transfer = plan_transfer(made(tmp_path / "m.safetensors"), known("circle", "square", "triangle", "star"))
    assert all(f"  {line}\n" in printed for line in transfer.lines())
    assert any("in part: 1 of 4 by class name: square" in line for line in transfer.lines())
    assert transfer.lines()[-1].endswith("(99.9 %)") or transfer.part < 0.999
    assert run_rcnn(command) == 2, "without it they are missing"
    assert "gone.pth: no such weight file" in capsys.readouterr().err
    assert run_rcnn([*command, f"train.init_from={tmp_path / 'k.safetensors'}"]) == 2
    assert "train.init_from" in capsys.readouterr().err


def run_rcnn(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)
