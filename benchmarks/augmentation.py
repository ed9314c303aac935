"""What augmentation is worth on real data: AP on nuclei and blood cells after each addition.

    OMP_NUM_THREADS=1 python benchmarks/augmentation.py --data data --out runs/augmentation

Plain, then with large-scale jitter, copy-paste, averaged weights, each added to the one before: the sweeps
augmentation_nuclei.yaml and augmentation_bccd.yaml, each run about four minutes on one core, and one table. Runs
that are finished are not repeated; the same command in a second terminal takes those that nobody is at. The blood cells
have boxes only, so copy-paste does not apply to them. After `--` come overrides of all runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SETS = {"nuclei": {"mask": "mask AP", "box": "box AP"}, "bccd": {"box": "box AP"}}  # data set → its sweep's metrics


def train(name: str, arguments: argparse.Namespace) -> Path:
    """Train a data set's sweep; its folder."""
    data, folder = arguments.data / name, arguments.out / name
    command = [sys.executable, "-m", "toolbox.cli", "sweep", str(FOLDER / f"augmentation_{name}.yaml")]
    for split in ("train", "val"):
        command += [
            f"data.{split}.images={data / split}",
            f"data.{split}.annotations={data / 'annotations' / f'instances_{split}.json'}",
        ]
    command += [*arguments.overrides, "--run", str(folder), "--seeds", ",".join(map(str, arguments.seeds))]
    status = subprocess.run([*command, *(["--table"] if arguments.table else [])]).returncode
    if status:
        raise SystemExit(f"{name}: failed with exit status {status}")
    return folder


def cell(row: dict, metric: str) -> str:
    """Mean (lowest … highest) of a variant in percent, and its difference to the first variant, seed by seed."""
    if row["only_paper"]:
        return f"not trained: {row['only_paper']}"
    ours, difference = row["ours"][metric], row["difference"][metric]
    if ours is None:
        return "–"
    text = f"{ours['mean']:.1f} ({ours['low']:.1f} … {ours['high']:.1f})"
    if difference is None:
        return text
    return f"{text}, Δ {difference['mean']:+.1f} ({difference['low']:+.1f} … {difference['high']:+.1f})"


def table(folders: dict[str, Path]) -> str:
    """Variants down, data sets and metrics across, as Markdown."""
    columns: dict[str, dict[str, str]] = {}
    for name, folder in folders.items():
        variants = json.loads((folder / "table.json").read_text())["variants"]
        for metric, title in SETS[name].items():
            columns[f"{name}, {title}"] = {row["name"]: cell(row, metric) for row in variants}
    lines = [f"| variant | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    variants = dict.fromkeys(variant for column in columns.values() for variant in column)
    lines += [f"| {one} | {' | '.join(column.get(one, '–') for column in columns.values())} |" for one in variants]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets' folders")
    parser.add_argument("--out", type=Path, default=Path("runs/augmentation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--table", action="store_true", help="train nothing; the table of what is there")
    parser.add_argument("overrides", nargs="*", help="key=value for all runs")
    arguments = parser.parse_args()
    folders = {name: train(name, arguments) for name in arguments.sets}
    print(f"\nIn percent: mean (lowest … highest) of {len(arguments.seeds)} seeds; Δ to plain, seed by seed\n")
    print(table(folders))


if __name__ == "__main__":
    main()
