"""Files that are no config, or no YAML."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from planted.mistake import RUN, Mistake, in_config, on_command_line, write

KIND = "YAML text"
edit = partial(in_config, KIND)
typed = partial(on_command_line, KIND)
CHECK = "check run.yaml"


def folder_with_config(folder: Path) -> None:
    os.mkdir(folder / "run.yaml.d")
    (folder / "run.yaml.d" / "mine.yaml").write_text(RUN)


MISTAKES: tuple[Mistake, ...] = (
    edit("key given twice", "  lr: 0.001", "  lr: 0.001\n  ^lr: 0.01", "'lr' is given twice", "line 25"),
    edit("section given twice", "train:\n  steps", "data:\n  workers: 1\ntrain:\n  steps".replace("data", "^data"),
         "'data' is given twice", "line 15"),
    edit("no space after the colon in braces", "lr: 0.001", "lr: 0.001\n  lr_factors: {^backbone.*:0.1, neck: 2}",
         "'backbone.*:0.1'", ["space after the colon", "'backbone.*: 0.1'"]),
    edit("no space after a component's type", "{type: ConvRPNHead}", "{^type:ConvRPNHead}", "'type:ConvRPNHead'",
         "'type: ConvRPNHead'"),
    edit("tab as indentation", "  neck:", "^\tneck:", "tab", "spaces"),
    edit("indented one space too far", "  neck: {type", "   ^neck: {type", "indented unlike", "line up"),
    edit("indented too little", "  box:\n    extractor", " ^box:\n    extractor", "indent", "line up"),
    edit("bracket left open", "  anchors: {sizes: [12, 24, 48, 96, 192]}\n    sampler:",
         "  anchors: {sizes: [12, 24, 48, 96, 192}^\n    sampler:".replace("192}^", "192^}"),
         ["expected ',' or ']'", "starts"], ["close", "']'"]),
    edit("brace left open", "depth: 18, norm: gn}\n  neck:", "depth: 18, norm: gn\n  neck^:",
         ["'}'", "starts at 2:13"], "close"),
    edit("quote left open", "out_channels: 8}", "out_channels: ^'8}", "quote", ["close", "'"]),
    edit("no space after the colon", "  lr: 0.001\n  opt", "  ^lr:0.001\n  opt", "lr:0.001", "space after the colon"),
    edit("bullet without its space", "    - {type: HorizontalFlip}", "    ^-{type: HorizontalFlip}",
         "a mapping", "list of transform"),
    edit("merge key", "{short: 64, max: 64}", "{^<<: {short: 64}, max: 64}", "merge keys", "write the settings out"),
    edit("alias without an anchor", "{short: 64, max: 64}", "^*size", "'size'", "&size"),
    edit("Python object as a tag", "lr: 0.001", "lr: ^!!python/object/apply:os.system [ls]",
         "tag", ["plain data", "remove"]),
    edit("Windows path in double quotes", "{type: Shapes, length: 4}",
         '{type: CocoDataset, images: "C:\\^data", annotations: a.json}', "escape", ["single quotes", "/"]),
    edit("percent sign begins a value", "lr: 0.001", "lr: ^%1", "'%'", "quote"),
    edit("@ begins a value", "lr: 0.001", "lr: ^@lr", "'@'", "quote"),
    edit("second document", "train:\n  steps", "^---\ntrain:\n  steps", "document", "remove"),
    typed("config of MMDetection", "check model.py", "model.py", "Python", ["YAML"],
          plant=write("model = dict(type='MaskRCNN', backbone=dict(type='ResNet', depth=50))\n", "model.py")),
    typed("empty file", CHECK, "run.yaml", "empty", "model, data, train and test", plant=write("")),
    typed("comments only", CHECK, "run.yaml", "empty", "model, data, train and test", plant=write("# todo\n")),
    typed("list at the top", CHECK, "run.yaml:1:1", ["expected a mapping", "a list"], "model, data, train and test",
          plant=write("- model\n- train\n")),
    typed("text at the top", CHECK, "run.yaml:1:1", ["expected a mapping", "mask rcnn"], "model, data, train and test",
          plant=write("mask rcnn\n")),
    typed("Latin-1 text", CHECK, "run.yaml:1:", "not UTF-8", "save it as UTF-8",
          plant=write(b"# gr\xf6\xdfe\n" + RUN.encode())),
    typed("UTF-16 text of Windows Notepad", CHECK, "run.yaml:1:1", "UTF-16", "save it as UTF-8",
          plant=write(RUN.encode("utf-16"))),
    typed("control character", CHECK, "run.yaml:1:3", "special characters are not allowed", "remove",
          plant=write("a: \x07\n".replace("a: ", "a:")), quotes=True),
    typed("config is missing, a near name exists", "check rum.yaml", "rum.yaml", "No such file",
          "did you mean 'run.yaml'?"),
    typed("config is missing", "check other/absent.yaml", "other/absent.yaml", "No such file", "current folder"),
    typed("extension .yml for .yaml", "train run.yml", "run.yml", "No such file", "did you mean 'run.yaml'?"),
    typed("folder in place of a config", "check run.yaml.d", "run.yaml.d", "Is a directory",
          "did you mean 'run.yaml.d/mine.yaml'?", plant=folder_with_config),
    typed("annotation file in place of a config", "check objects.json", "objects.json", "annotation file",
          "data.train.annotations", plant=write('{"images": [], "annotations": [], "categories": []}',
          "objects.json")),
)  # fmt: skip
