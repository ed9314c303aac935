"""The code of the README and the guides, run page by page in its order, on tiny images and for two steps.

What a block is, its language says:

    bash      commands, run one by one; `rcnn` in this process
    console   commands after `$ ` and what they print, compared; `…` stands for any text
    yaml      `# name.yaml` in its first line: a file, and a whole config, which must pass `rcnn check`; or a sweep
    python    run; with `# name.py` in its first line, a file instead
    json      read; toml too

A comment before a block says more: `<!-- not run: reason -->`; `<!-- file: name -->`, where the text has no comments;
`<!-- into: base.yaml -->` for a part of a config, which must pass the check once it stands in that base (a mapping with
a `type` replaces what was there, others are merged); `<!-- into: base.yaml as: new.yaml -->` keeps the result.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from torchvision.models import resnet18

import toolbox.cli
from toolbox import plugins
from toolbox.explain import explain
from toolbox.registry import FAMILIES
from toolbox.schema import load_config
from toolbox.sections import register_builtin

ROOT = Path(__file__).resolve().parents[1]
GENERATED = ("docs/messages.md", "docs/reference.md")  # `make docs` writes them
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
WRITTEN = [page for page in PAGES if page not in GENERATED]
BLOCK = re.compile(r"(?:<!-- (?P<note>.+?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```", re.M | re.S)
# What keeps the test short, and what it cannot have: downloaded weights. Everything else is as the pages say.
SHORT = [
    "train.steps=2",
    "train.schedule={type: MultiStep, milestones: []}",
    "train.batch=2",
    "train.eval_every=null",
    "data.workers=0",
]
SHAPES = ["data.train.length=4", "data.val.length=2"]
SMALL = [
    "model.backbone={type: ResNet, depth: 18, norm: gn}",
    "model.neck.out_channels=16",
    "data.resize={short: 64, max: 96}",
]
SHORT_FOR = {
    "extractors.yaml": SHAPES,
    "mine.yaml": SMALL,
    "with_fill.yaml": SMALL,
    "curves.yaml": SMALL,
    "fill_head.yaml": SHAPES,
    "quickstart.yaml": SHAPES,
    "pose.yaml": SHAPES,
}


@dataclass
class Block:
    note: str
    language: str
    code: str
    line: int

    @property
    def file(self) -> str | None:
        """The name of the file that the block is."""
        named = re.match(r"# (\w+\.(?:py|yaml))\n", self.code) or re.match(r"file: (\S+)", self.note)
        return named[1] if named else None


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(found["note"] or "", found["language"], found["code"], text[: found.start("code")].count("\n") + 1)
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
            pixels[0] = 40 * number + (100 if split == "val" else 0)  # no two images are the same
            name = f"{split}_{number:04}.jpg"
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
    annotations[0]["bbox"], annotations[2]["bbox"] = [60, 10, 40, 30], [90, 5, 10, 10]
    (folder / "unclean.json").write_text(json.dumps(table))


def write_other_formats(folder: Path) -> None:
    """One image with a YOLO label file of two classes, and one with an image of the numbers of its two objects."""
    for name in ("yolo/images", "yolo/labels", "cells/images", "cells/numbers"):
        (folder / name).mkdir(parents=True)
    PIL.Image.new("RGB", (40, 30)).save(folder / "yolo/images/1.jpg")
    (folder / "yolo/labels/1.txt").write_text("0 0.5 0.5 0.2 0.4\n1 0.25 0.5 0.1 0.1\n")
    PIL.Image.new("L", (40, 30)).save(folder / "cells/images/a.png")
    numbers = np.zeros((30, 40), np.uint8)
    numbers[2:9, 3:8], numbers[12:20, 20:33] = 1, 7
    PIL.Image.fromarray(numbers).save(folder / "cells/numbers/a.png")


def run_rcnn(arguments: list[str]) -> tuple[int, str]:
    """Exit status, and what stands on the terminal."""
    if arguments[0] in ("train", "sweep") and "--replay" not in arguments:
        arguments = [*arguments, *SHORT, *SHORT_FOR.get(Path(arguments[1]).name, [])]
    log = logging.getLogger("toolbox")
    kept, log.handlers[:] = log.handlers[:], []  # the command's own handler writes to the terminal of its time
    screen = io.StringIO()
    try:
        with redirect_stdout(screen), redirect_stderr(screen), pytest.raises(SystemExit) as stop:
            toolbox.cli.main(arguments)
    finally:
        log.handlers[:] = kept
    return int(stop.value.code or 0), screen.getvalue()


def run_line(line: str) -> tuple[int, str]:
    """One command of a page; `make …` is not run but must name a target."""
    words = shlex.split(line, comments=True)
    if not words:
        return 0, ""
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert words[1] in targets, f"{line}: the Makefile has no target {words[1]}"
        return 0, ""
    if words[0] == "rcnn":
        return run_rcnn(words[1:])
    if words[0] == "cd":
        os.chdir(words[1])
        return 0, ""
    if words[0] == "mv":
        shutil.move(*words[1:])
        return 0, ""
    assert words[:3] == ["python", "-m", "pytest"], f"a page has a command that this test cannot run: {line}"
    done = subprocess.run(
        [sys.executable, *words[1:], "-q", "-p", "no:cacheprovider"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def compare(command: str, shown: str, printed: str) -> None:
    """What a page shows of a command against what it prints; folders of this machine are left out of both."""
    printed = printed.replace(f"{Path.cwd()}/", "").replace(str(Path.cwd()), ".")
    pattern = "[^\x00]*?".join(map(re.escape, shown.strip("\n").split("…")))
    assert re.fullmatch(pattern, printed.strip("\n")), f"$ {command}\nis shown with\n{shown}\nbut prints\n{printed}"


def run_console(code: str) -> None:
    for command in code.removeprefix("$ ").split("\n$ "):
        line, _, shown = command.partition("\n")
        status, printed = run_line(line)
        assert status in (0, 2), printed  # wrong input is shown too
        compare(line, shown, printed)


def run_bash(code: str) -> None:
    for line in code.splitlines():
        status, printed = run_line(line)
        assert status == 0, f"{line}\n{printed}"


def merged(base: Any, part: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(part, dict) or "type" in part:
        return part
    return base | {key: merged(base.get(key), value) for key, value in part.items()}


def run_yaml(block: Block) -> None:
    into = re.match(r"into: (\S+)(?: as: (\S+))?", block.note)
    name = block.file or (into[2] if into and into[2] else f"part_{block.line}.yaml")
    assert block.file or into, f"line {block.line}: YAML that is no file and not said to belong into one is not checked"
    text = block.code
    if into:
        whole = merged(yaml.safe_load(Path(into[1]).read_text("utf-8")), yaml.safe_load(text))
        text = yaml.safe_dump(whole, sort_keys=False)
    Path(name).write_text(text, encoding="utf-8")
    is_sweep = "variants" in yaml.safe_load(text)
    status, printed = run_rcnn(["sweep", name, "--table"] if is_sweep else ["check", name])
    assert status == 0, f"line {block.line}: {printed}"


def run_block(block: Block, page: str, names: dict[str, Any]) -> None:
    if block.language in ("bash", "console"):
        {"bash": run_bash, "console": run_console}[block.language](block.code)
    elif block.language == "yaml":
        run_yaml(block)
    elif block.language == "json":
        json.loads(block.code)
    elif block.language == "toml":
        tomllib.loads(block.code)
    elif block.language == "python" and not block.file:
        exec(compile("\n" * (block.line - 1) + block.code, ROOT / page, "exec"), names)  # noqa: S102
    else:
        assert block.file or block.language == "", f"line {block.line}: say how {block.language} is run"
    if block.file and block.language != "yaml":
        Path(block.file).parent.mkdir(parents=True, exist_ok=True)
        Path(block.file).write_text(block.code, encoding="utf-8")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with photos, the README's config and the shipped ones; what a page registers is forgotten after it."""
    register_builtin()
    for registry in FAMILIES.values():
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    loaded = dict(plugins.loaded_plugins)
    plugins.loaded_plugins.clear()
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")
    write_other_formats(tmp_path)
    (tmp_path / "weights").mkdir()
    torch.save(resnet18().state_dict(), tmp_path / "weights/resnet18.pth")  # a check reads it
    for block in blocks_of("README.md"):
        if block.file == "mine.yaml":
            (tmp_path / "mine.yaml").write_text(block.code, encoding="utf-8")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    yield tmp_path
    plugins.loaded_plugins.clear()
    plugins.loaded_plugins.update(loaded)


@pytest.mark.parametrize("page", WRITTEN)
def test_every_block_of_the_page_runs(page: str, desk: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of(page):
        os.chdir(desk)  # a `cd` holds for its block
        if not block.note.startswith("not run: "):
            run_block(block, page, names)
    os.chdir(desk)
    if page == "README.md":
        assert names["pooled"].shape == (1, 256, 7, 7) and len(names["rles"]) == 1
        assert Path("found/predictions.json").exists() and Path("runs/fill/model.safetensors").exists()


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_page_lead_to_files_and_headings_that_exist(page: str) -> None:
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = folder / path if path else ROOT / page
        assert target.exists(), link
        if heading:
            assert heading in headings(target), link


def headings(page: Path) -> list[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_every_guide_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page for page in PAGES[2:] if f"]({page}" not in text] == []


def test_the_keys_that_replace_other_projects_keys_exist(tmp_path: Path) -> None:
    """Tables of the guide: Detectron2, MMDetection, and a key of ours, looked up in a config that has all of them."""
    text = (ROOT / "docs/configs.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.count(" | ") == 2 and "`" in line]
    keys = {key for row in rows for key in re.findall(r"`((?:model|data|train|test)\.[\w.]+)`", row[2])}
    assert len(keys) > 20
    plan = load_config(ROOT / "configs/mask_rcnn_r50_fpn.yaml").plan
    for key in sorted(keys):
        assert explain(plan, key)[0].startswith(key)


@pytest.mark.parametrize("page", WRITTEN)
def test_components_in_the_text_take_the_arguments_that_it_gives_them(page: str) -> None:
    register_builtin()
    text = BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for inline in re.findall(r"\{type: [A-Z][^{}]*\}", text):
        given = yaml.safe_load(inline.replace(", arguments…", ""))
        family = next((family for family in FAMILIES.values() if given["type"] in family), None)
        if given["type"] != "Name":
            assert family is not None, inline
            assert given.keys() - {"type"} <= family.settings(family.get(given["type"])).keys(), inline


def test_every_family_has_a_line_in_the_guide_to_plugins() -> None:
    text = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    assert [family for family in FAMILIES if f"| `{family}`" not in text] == []


def test_the_readme_counts_as_the_pages_that_it_links_to_do() -> None:
    readme, messages, results = (
        (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/messages.md", "benchmarks/RESULTS.md")
    )
    planted = re.search(r"^(\d+) mistakes: ", messages, re.M)
    assert planted and set(re.findall(r"(\d+) (?:planted )?mistakes", readme)) == {planted[1]}
    tried = re.search(r"timm's (\d+) modules", results)
    works = re.search(r"(\d+) of \d+ build, predict and learn", results)
    assert tried and works and f"{works[1]} of timm's {tried[1]} modules" in readme


def test_pictures_are_shown_and_small() -> None:
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in WRITTEN)
    for picture in (ROOT / "docs/pictures").iterdir():
        assert picture.name in text and picture.stat().st_size < 150_000, picture.name
