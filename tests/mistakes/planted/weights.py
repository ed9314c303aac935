"""Weight files and checkpoints: damaged, of another kind, of another model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from planted.mistake import RUN, Mistake, Outcome, in_config, on_command_line, run, several, write

MODEL = "runs/mine/model.safetensors"
TRAIN = ("train", "run.yaml", "--run", "runs/mine")


@cache
def trained() -> Path:
    """A run of the config, trained once per process."""
    folder = Path(tempfile.mkdtemp(prefix="mistakes-"))
    outcome: Outcome = run(Mistake("none", "", TRAIN, (), (), (), write(RUN)), folder)
    assert outcome.status == 0, outcome.text
    return folder / "runs/mine"


def a_run(folder: Path) -> None:
    """`runs/mine`, trained; its large files are links, so nothing may write into them."""
    (folder / "runs/mine").mkdir(parents=True)
    for file in trained().iterdir():
        if file.is_file():
            large = file.suffix in (".safetensors", ".pt")
            (os.link if large else shutil.copy)(file, folder / "runs/mine" / file.name)


def replaced(name: str, content: bytes | None = None, *, kept: float = 1.0) -> Callable[[Path], None]:
    """Another content in a file of the run, or the first part of its own."""

    def plant(folder: Path) -> None:
        file = folder / "runs/mine" / name
        old = file.read_bytes()
        file.unlink()
        file.write_bytes(old[: int(len(old) * kept)] if content is None else content)

    return plant


def python_objects(folder: Path) -> None:
    import torch

    torch.save({"model": torch.nn.Linear(1, 1), "path": Path("x")}, folder / "resnet.pth")


def classifier(folder: Path) -> None:
    """A ResNet-34 of torchvision."""
    import torch
    import torchvision

    torch.save(torchvision.models.resnet34().state_dict(), folder / "resnet.pth")


def fully_convolutional(folder: Path) -> None:
    import torch

    torch.save({"encoder.0.weight": torch.zeros(1)}, folder / "resnet.pth")


def without_metadata(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, folder / "other.safetensors")


HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

typed = partial(on_command_line, "weights", plant=several(write(RUN), a_run))


def damaged(name: str, command: str, plant: Callable[[Path], object], *texts: str | list[str]) -> Mistake:
    return on_command_line("weights", name, command, *texts, plant=several(write(RUN), a_run, plant))


def backbone(name: str, plant: Callable[[Path], object], fault: str | list[str], right: str | list[str]) -> Mistake:
    return in_config(
        "weights",
        name,
        "depth: 18, norm: gn}",
        "depth: 18, weights: ^resnet.pth}",
        fault,
        right,
        plant=plant,
        command=("train", "run.yaml", "--run", "out"),
    )


EVAL, EVAL_CONFIG = "eval runs/mine", f"eval run.yaml --weights {MODEL}"


def foreign(folder: Path) -> None:
    """A tensor by a name of torchvision's detectors, and one by a name of MMDetection's."""
    import torch

    torch.save({"backbone.body.conv1.weight": torch.zeros(1)}, folder / "resnet_body.pth")
    torch.save({"state_dict": {"rpn_head.rpn_conv.bias": torch.zeros(1)}}, folder / "mmdetection.pth")


def imported(name: str, command: str, at: str, fault: str, right: str) -> Mistake:
    whole = f"weights import {command} --config run.yaml --out new.safetensors"
    return on_command_line("weights", name, whole, at, fault, right, plant=several(write(RUN), a_run, foreign))


MISTAKES: tuple[Mistake, ...] = (
    typed("file that is not there", "eval run.yaml --weights runs/mine/model.safetensor", "runs/mine/model.safetensor",
          "no such file", "did you mean 'runs/mine/model.safetensors'?"),
    typed("run folder that is not there", "eval runs/mien", "runs/mien", "no such run folder",
          "did you mean 'runs/mine'?"),
    damaged("folder without a model", EVAL, lambda folder: (folder / MODEL).unlink(), "runs/mine",
            "no model.safetensors", "checkpoint"),
    damaged("cut short", EVAL, replaced("model.safetensors", kept=0.5), MODEL, "not a whole safetensors file",
            "copy it again"),
    damaged("empty", EVAL, replaced("model.safetensors", b""), MODEL, "empty", "copy"),
    damaged("web page saved as weights", EVAL, replaced("model.safetensors", HTML), MODEL, "web page", "download"),
    damaged("pointer of Git LFS", EVAL, replaced("model.safetensors", POINTER), MODEL, "Git LFS", "git lfs pull"),
    typed("checkpoint in place of the model", "eval run.yaml --weights runs/mine/checkpoint.pt",
          "runs/mine/checkpoint.pt", "checkpoint to resume", "use model.safetensors beside it"),
    damaged("PyTorch pickle named .safetensors", "predict other.safetensors x.png --out out",
            several(write(b"", "x.png"), lambda folder: shutil.copy(folder / "runs/mine/checkpoint.pt",
                                                                    folder / "other.safetensors")),
            "other.safetensors", "PyTorch pickle", "rcnn weights import"),
    damaged("weights without a config", "predict other.safetensors x.png --out out",
            several(without_metadata, write(b"", "x.png")), "other.safetensors", "in its metadata",
            "build the model from a config"),
    typed("another width of the neck", f"{EVAL_CONFIG} model.neck.out_channels=16", MODEL,
          ["neck.lateral.c2.0.weight (8, 64, 1, 1), the model has (16, 64, 1, 1)", "tensors fit"],
          "use the config the weights were trained with"),
    typed("another backbone", f"{EVAL_CONFIG} model.backbone.depth=34", MODEL,
          ["missing from the file", "backbone.layer1.2.conv1.weight"], "use the config the weights were trained with"),
    typed("weights without the mask head", f"{EVAL_CONFIG} model.instance.mask=null model.instance={{}}", MODEL,
          ["in the file but not in the model", "instance.mask.head"], "use the config the weights were trained with"),
    typed("another number of classes", f"{EVAL_CONFIG} data.val.classes=[circle,square]",
          (MODEL, "data.val"), ["circle, square, triangle, star", "(2): circle, square"], ["classes"]),
    typed("evaluation of a run on other classes", f"{EVAL} data.val.classes=[circle]", "data.val",
          ["circle, square, triangle, star", "(1): circle"], ["classes"]),
    typed("evaluation of a run on classes in another order", f"{EVAL} data.val.classes=[star,triangle,square,circle]",
          "data.val", "star, triangle, square, circle", ["another order", "classes: [circle, square, triangle, star]"]),
    backbone("Python objects in backbone weights", python_objects, "Python objects", "state_dict()"),
    backbone("backbone of another depth", classifier, ["resnet.pth", "layer1.2.conv1.weight"], "depth"),
    backbone("weights of some other network", fully_convolutional, ["conv1.weight", "'encoder.0.weight'"],
             "torchvision"),
    backbone("web page as backbone weights", write(HTML, "resnet.pth"), "web page", "download"),
    imported("torchvision's weights imported as Detectron2's", "resnet_body.pth --from detectron2", "resnet_body.pth",
             "weights of torchvision", "write --from torchvision"),
    imported("MMDetection's weights imported as torchvision's", "mmdetection.pth", "mmdetection.pth",
             "weights of MMDetection", "write --from mmdetection"),
    imported("the toolbox's own model imported", MODEL, MODEL, "a model file of the toolbox", "needs no import"),
    imported("a run folder imported", "runs/mine", "runs/mine", "a run folder", "needs no import"),
    damaged("resume from a checkpoint cut short", "train run.yaml --run runs/mine --resume",
            replaced("checkpoint.pt", kept=0.5), "runs/mine/checkpoint.pt", "cut short", ["model.safetensors", "copy"]),
    damaged("resume from an empty checkpoint", "train run.yaml --run runs/mine --resume",
            replaced("checkpoint.pt", b""), "runs/mine/checkpoint.pt", "empty", "copy"),
    damaged("resume from a model alone", "train run.yaml --run runs/mine --resume",
            several(lambda folder: (folder / "runs/mine/checkpoint.pt").unlink(),
                    lambda folder: shutil.copy(folder / MODEL, folder / "runs/mine/checkpoint.pt")),
            "runs/mine/checkpoint.pt", "a trained model alone", "cannot be resumed"),
)  # fmt: skip
