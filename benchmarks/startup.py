"""How long `rcnn` takes to say its first word, beside `import torch`; each a fresh process, the median of several.

python benchmarks/startup.py [--repeat 7] [--out startup.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "mask_rcnn_r50_fpn.yaml"
MISTAKES = {
    "a misspelt component": ("type: ResNet", "type: Resnet"),
    "a misspelt argument": ("type: FPN", "type: FPN, out_chanels: 256"),
    "a value of another type": ("type: ResNet", "type: ResNet, depth: deep"),
    "a tab": ("model:\n", "model:\n\t"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        rows = measure(Path(folder), arguments.repeat)
    for what, seconds in rows.items():
        print(f"{what:<52} {seconds:6.2f} s  {seconds / rows['import torch']:5.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


def measure(folder: Path, repeat: int) -> dict[str, float]:
    """What was run → median seconds; the first column of the table in RESULTS.md."""
    rcnn = ["-m", "toolbox.cli"]
    commands: dict[str, tuple[Sequence[str], int]] = {
        "import torch": (["-c", "import torch"], 0),
        "import toolbox": (["-c", "import toolbox"], 0),
        "rcnn --help": ([*rcnn, "--help"], 0),
        "rcnn list": ([*rcnn, "list"], 0),
        "rcnn schema": ([*rcnn, "schema"], 0),
    }
    text = CONFIG.read_text(encoding="utf-8")
    for what, (right, wrong) in MISTAKES.items():
        file = folder / f"{what.replace(' ', '_')}.yaml"
        file.write_text(text.replace(right, wrong, 1), encoding="utf-8")
        commands[f"rcnn check, {what}"] = ([*rcnn, "check", str(file)], 2)
    commands["rcnn train, a misspelt override"] = ([*rcnn, "train", str(CONFIG), "train.lrr=0.1"], 2)
    commands["rcnn show --explain model.backbone.depth"] = (
        [*rcnn, "show", str(CONFIG), "--explain", "model.backbone.depth"],
        0,
    )
    first = seconds(*commands["rcnn list"])  # it writes down what the components take
    rows = {what: statistics.median(seconds(*command) for _ in range(repeat)) for what, command in commands.items()}
    return {**rows, "rcnn list, the first time after an installation": first}


def seconds(arguments: Sequence[str], status: int) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != status:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}, not {status}:\n{done.stderr}")
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
