"""What is typed wrong: overrides, commands, options, inputs."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from unittest.mock import patch

from planted.mistake import RUN, Mistake, in_config, on_command_line, several, write
from planted.weights import a_run

override = partial(on_command_line, "overrides")
typed = partial(on_command_line, "commands and options")
device = partial(on_command_line, "devices")


def no_gpu(folder: Path) -> AbstractContextManager[object]:
    return patch("torch.cuda.is_available", return_value=False)


def one_gpu(folder: Path) -> AbstractContextManager[object]:
    return patch.multiple("torch.cuda", is_available=lambda: True, device_count=lambda: 1)


def folder_without_images(folder: Path) -> None:
    (folder / "pictures").mkdir()
    (folder / "pictures" / "notes.txt").write_text("none")


AT = "command line: "

MISTAKES: tuple[Mistake, ...] = (
    override("misspelt key", "check run.yaml train.lrr=0.1", AT, "'lrr'", "did you mean 'lr'?"),
    override("misspelt section", "check run.yaml trian.lr=0.1", AT, "'trian'", "did you mean 'train'?"),
    override("Detectron2's SOLVER", "check run.yaml SOLVER.BASE_LR=0.01", AT, "'SOLVER'", "settings are in train "),
    override("Detectron2's MODEL", "check run.yaml MODEL.MASK_ON=true", AT, "'MODEL'", "settings are in model "),
    override("Detectron2's _BASE_", "check run.yaml _BASE_=base.yaml", AT, "'_BASE_'", "inherits nothing"),
    override("Detectron2's OUTPUT_DIR", "check run.yaml OUTPUT_DIR=out", AT, "'OUTPUT_DIR'", "named by --run"),
    override("Detectron2's IMS_PER_BATCH", "check run.yaml train.IMS_PER_BATCH=4", AT, "'IMS_PER_BATCH'",
             "did you mean 'batch'?"),
    override("MMDetection's loader", "check run.yaml train_dataloader.batch_size=2", AT, "'train_dataloader'",
             "settings are in data.train "),
    override("MMDetection's val_interval", "check run.yaml train.val_interval=1", AT, "'val_interval'",
             "did you mean 'eval_every'?"),
    override("MMDetection's roi_head", "check run.yaml model.roi_head=x", AT, "'roi_head'", "did you mean 'box'?"),
    override("channels of the stage before", "check run.yaml model.neck.in_channels=[256]", AT, "'in_channels'",
             "remove it"),
    typed("a sweep's seed", "sweep run.yaml --seed 0", "--seed", "no option '--seed'", "did you mean '--seeds'?"),
    override("no equals sign", "check run.yaml train.lr", f"{AT}train.lr", "expected key=value", "train.lr=0.01"),
    override("colon for the equals sign", "check run.yaml train.lr:0.1", AT, "expected key=value", "train.lr=0.1"),
    override("equals sign apart", ["check", "run.yaml", "train.lr", "=", "0.1"], f"{AT}train.lr", "expected key=value",
             "without spaces"),
    override("wrong type", "check run.yaml train.lr=fast", f"{AT}train.lr=fast", "train.lr=fast", "expected float"),
    override("no value", "check run.yaml train.lr=", f"{AT}train.lr=", "train.lr=", "expected float"),
    override("into a value", "check run.yaml train.lr.warmup=3", f"{AT}train.lr.warmup=3", "train.lr is 0.001",
             "no entries"),
    override("entry that a list lacks", "check run.yaml data.transforms.3.prob=1", AT, "'3'", "entries 0 … 0"),
    override("out of range", "check run.yaml train.steps=0", f"{AT}train.steps=0", "got 0", "1 or more"),
    override("component by its bare name", "check run.yaml model.box.head=ConvFCBoxHead",
             f"{AT}model.box.head=ConvFCBoxHead", "'ConvFCBoxHead'", "{type: ConvFCBoxHead}"),
    override("half of a list, split by the shell", ["check", "run.yaml", "model.rpn.anchors.sizes=[12,", "24]"],
             f"{AT}model.rpn.anchors.sizes=[12,", "not YAML", "quote"),
    override("arguments of the type before", "check run.yaml train.optimizer.type=AdamW",
             "run.yaml:26:26", "AdamW has no argument 'momentum'", "train.optimizer={type: AdamW}"),
    override("unknown component", "check run.yaml model.neck.type=PAFPN", AT, "no neck named 'PAFPN'", "FPN"),
    override("config key as an option", "train run.yaml --train.lr=3", "--train.lr", "no option '--train.lr'",
             "write train.lr=3"),
    override("config key as an option, apart", "train run.yaml --train.lr 3", "--train.lr", "without dashes",
             "write train.lr=3"),
    typed("misspelt command", "trian run.yaml", "'trian'", "No such command", "'train'"),
    typed("command of Detectron2", "train_net run.yaml", "'train_net'", "No such command", "'train'"),
    typed("no config", "train", "CONFIG", "Missing argument", "CONFIG"),
    typed("misspelt option", "train run.yaml --resumee", "--resumee", "No such option", "--resume"),
    typed("option of another command", "train run.yaml --out x", "--out", "No such option", "--help"),
    typed("short option for a config key", "train run.yaml --lr 0.1", "--lr", "no option '--lr'", "write train.lr=0.1"),
    typed("config after --config", "train --config run.yaml", "--config", "no option '--config'",
          "write rcnn train run.yaml"),
    typed("option without its value", "train run.yaml --run", "--run", "requires an argument", "--run"),
    typed("unknown family", "list nek", "'nek'", "no family 'nek'", "did you mean 'neck'?"),
    typed("size that is none", "show run.yaml --size 800", "--size", "'800'", "800x1216"),
    typed("evaluation of a bare config", "eval run.yaml", "run.yaml", "a config has no weights", "--weights FILE"),
    typed("evaluation of no run", "eval runs/absent", "runs/absent", "no such run folder or file", "runs/"),
    typed("prediction with a config", "predict run.yaml image.png --out out", "run.yaml", "a config has no weights",
          "model.safetensors", plant=several(write(RUN), write(b"", "image.png"))),
    typed("prediction for no image", "predict runs/mine absent.png --out out", "absent.png", "no such file or folder",
          "current folder", plant=several(write(RUN), a_run)),
    typed("prediction for a folder without images", "predict runs/mine pictures --out out", "pictures", "no image",
          ".png", plant=several(a_run, folder_without_images)),
    typed("pattern that matches nothing", ["predict", "runs/mine", "img/*.png", "--out", "out"], "img/*.png",
          "no file matches", "pattern", plant=several(write(RUN), a_run)),
    typed("threshold above 1", "predict runs/mine a.png --out out --threshold 50", "--threshold", "Invalid value",
          "less than or equal to 1"),
    typed("no output folder", "predict runs/mine a.png", "--out", "Missing option", "--out"),
    typed("config to measure on that is not there", "bench data none/wrong.yml", "none/wrong.yml: ",
          "cannot read the config", "relative to the current folder"),
    typed("split that is none", "data browse run.yaml --split validation", "--split", "'validation'",
          "did you mean 'val'?"),
    typed("split of an evaluation", "eval runs/mine --split validation", "--split", "no option '--split'", "data.val"),
    typed("checkpoint for a capsule", "train --replay runs/mine/checkpoint.pt", "runs/mine/checkpoint.pt: ",
          "not a capsule", ["capsules/", "there is no capsule in it"], plant=several(write(RUN), a_run)),
    device("GPU in the config and none there", "train run.yaml train.device=cuda --run out",
           "train.device=cuda", "no GPU", "train.device=cpu", around=no_gpu),
    device("GPU for prediction and none there", "predict runs/mine a.png --out out --device cuda", "'cuda'", "no GPU",
           "--device cpu", around=no_gpu, plant=write(b"", "a.png")),
    device("GPU with a number that is not there", "predict runs/mine a.png --out out --device cuda:3", "'cuda:3'",
           "1 GPU", "cuda:0", around=one_gpu, plant=write(b"", "a.png")),
    device("device that torch does not know", "predict runs/mine a.png --out out --device gpu", "'gpu'",
           "no device is called 'gpu'", "cuda", plant=write(b"", "a.png")),
    in_config("devices", "gpu for cuda", "lr: 0.001", "lr: 0.001\n  device: ^gpu", "got 'gpu'", "'cuda'"),
)  # fmt: skip
