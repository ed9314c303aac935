"""Mask R-CNN on nuclei, ours and torchvision's side by side: AP over seeds, time per step, peak memory.

    python benchmarks/nuclei.py --data data/nuclei --steps 300 --seeds 0 1 2 --out runs/nuclei

Both models see the same batches (keyed by the seed), start from the same backbone weights, and are trained and
evaluated by the same code; each run is a process of its own. A run that is already complete is not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from toolbox import load_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "ours": ROOT / "configs/mask_rcnn_nuclei.yaml",
    "torchvision": ROOT / "benchmarks/nuclei_torchvision.yaml",
}


def run(model: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Train and evaluate in a process of its own; what it measured."""
    folder = arguments.out / f"{model}_seed{seed}"
    record = folder / "benchmark.json"
    if record.is_file():
        return json.loads(record.read_text())
    overrides = [f"train.seed={seed}", f"train.steps={arguments.steps}", *arguments.overrides]
    for split in ("train", "val"):
        overrides += [
            f"data.{split}.images={arguments.data / split}",
            f"data.{split}.annotations={arguments.data / 'annotations' / f'instances_{split}.json'}",
        ]
    command = [sys.executable, "-m", "toolbox.cli", "train", str(CONFIGS[model]), *overrides, "--run", str(folder)]
    start = time.perf_counter()
    status = subprocess.run(command, cwd=ROOT).returncode
    if status:
        raise SystemExit(f"{model}, seed {seed}: failed with exit status {status}")
    scores = json.loads((folder / "eval.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "images_per_second" in line]
    batch = load_config(folder / "config.yaml").train.batch
    result = {
        "box AP": scores["bbox"]["AP"],
        "box AP50": scores["bbox"]["AP50"],
        "mask AP": scores["segm"]["AP"],
        "mask AP50": scores["segm"]["AP50"],
        "s/step": batch / statistics.median(line["images_per_second"] for line in steps),
        "peak MB": max(line["peak_memory_mb"] for line in steps),
        "minutes": (time.perf_counter() - start) / 60,
    }
    record.write_text(json.dumps(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/nuclei"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--out", type=Path, default=Path("runs/nuclei"))
    parser.add_argument("overrides", nargs="*", help="key=value for both models")
    arguments = parser.parse_args()
    arguments.data, arguments.out = arguments.data.resolve(), arguments.out.resolve()
    results = {model: [] for model in arguments.models}
    for seed in arguments.seeds:
        for model in arguments.models:
            results[model].append(run(model, seed, arguments))
    names = list(next(iter(results.values()))[0])
    print("| model | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for model, runs in results.items():
        cells = []
        for name in names:
            values = [result[name] for result in runs]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} … {max(values):.3f})")
        print(f"| {model} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
