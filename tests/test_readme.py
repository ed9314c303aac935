"""The README's code, run in its order: files written, commands and Python run, on tiny images and for two steps."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import toolbox.cli

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?P<skip><!-- not run: .+? -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```", re.M | re.S)
# What keeps the test short, and what it cannot have: downloaded weights. Everything else is as the README says.
SHORT = [
    "train.steps=2",
    "train.schedule={type: MultiStep, milestones: []}",
    "train.batch=2",
    "train.eval_every=null",
    "data.workers=0",
]
SHORT_FOR = {
    "mine.yaml": [
        *SHORT,
        "model.backbone={type: ResNet, depth: 18, norm: gn}",
        "model.neck.out_channels=16",
        "data.resize={short: 64, max: 96}",
    ],
    "with_fill.yaml": [*SHORT, "data.train.length=4", "data.val.length=2"],
}


@dataclass
class Block:
    language: str
    code: str
    line: int
    run: bool

    @property
    def file(self) -> str | None:
        """`# name.ext` on the first line says that the block is a file of that name."""
        named = re.match(r"# (\w+\.(?:py|yaml))\n", self.code)
        return named[1] if named else None


def readme_blocks() -> list[Block]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [
        Block(found["language"], found["code"], text[: found.start("code")].count("\n") + 1, run=not found["skip"])
        for found in BLOCK.finditer(text)
    ]


def write_photos(folder: Path) -> None:
    """Two splits of two images, each with a square cat and a triangular dog, ids with gaps."""
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for number in (1, 2):
            pixels = np.full((60, 80, 3), 30, np.uint8)
            pixels[10:40, 10:40] = (200, 40, 40)
            name = f"{number:04}.jpg"
            PIL.Image.fromarray(pixels).save(folder / split / name)
            images.append({"id": number * 10, "file_name": name, "height": 60, "width": 80})
            for category, polygon in ((3, [10, 10, 40, 10, 40, 40, 10, 40]), (8, [50, 50, 70, 50, 60, 20])):
                xs, ys = polygon[::2], polygon[1::2]
                box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
                area = box[2] * box[3] / (1 if category == 3 else 2)
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number * 10, "category_id": category, "bbox": box}
                    | {"segmentation": [polygon], "area": area, "iscrowd": 0}
                )
        categories = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
        table = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(table))


def run_line(line: str) -> None:
    """One line of a bash block: `rcnn …` is run in this process, `make …` must name a target."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M), line
        return
    assert words[0] == "rcnn", f"README has a command that this test cannot run: {line}"
    arguments = words[1:]
    if arguments[0] == "train":
        arguments += SHORT_FOR[arguments[1]]
    with pytest.raises(SystemExit) as stop:
        toolbox.cli.main(arguments)
    assert stop.value.code in (0, None), line


def test_every_block_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")
    names: dict[str, Any] = {"__name__": "readme"}
    for block in readme_blocks():
        if not block.run:
            continue
        if block.file:
            Path(block.file).write_text(block.code, encoding="utf-8")
        elif block.language == "bash":
            for line in block.code.splitlines():
                run_line(line)
        elif block.language == "python":
            source = "\n" * (block.line - 1) + block.code
            exec(compile(source, ROOT / "README.md", "exec"), names)  # noqa: S102
    assert names["pooled"].shape == (1, 256, 7, 7) and len(names["rles"]) == 1
    assert Path("found/predictions.json").exists() and Path("runs/fill/model.safetensors").exists()


def test_the_readme_links_to_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link and not (ROOT / link).exists()]
    assert not missing
