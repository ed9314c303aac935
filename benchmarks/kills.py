"""Runs that are killed at random moments, resumed and compared with one that was not: are the last bits the same?

    python benchmarks/kills.py --kills 30 --out runs/kills

Every way to run (in one process without and with loader workers, and in two processes under torchrun) trains a small
Mask R-CNN on the synthetic set with averaged weights, accumulation, random sampling and a schedule. `kill -9` strikes
after a random time (in the steps, while a checkpoint is written, in an evaluation, while starting), the same command
with --resume goes on, and so forth until the run is done. Compared are digests of the models, of every tensor in
checkpoint.pt, and of the losses in metrics.jsonl. Under torchrun the victim is one of the processes (torchrun starts
them anew by itself) or torchrun (then its processes have to die too).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

CONFIG = """\
model:
  backbone: {type: ResNet, depth: 18, norm: gn}
  neck: {type: FPN, out_channels: 16}
  rpn:
    head: {type: ConvRPNHead}
    anchors: {sizes: [12, 24, 48, 96, 192]}
    sampler: {type: RandomSampler, size: 32, positive_fraction: 0.5}
    train: {before_nms: 100, after_nms: 50}
    test: {before_nms: 100, after_nms: 20}
  box:
    extractor: {type: RoIAlign, output_size: 7}
    head: {type: TwoFCBoxHead, channels: 32}
    sampler: {type: RandomSampler, size: 16}
  instance:
    mask:
      extractor: {type: RoIAlign, output_size: 14}
      head: {type: FCNMaskHead, convolutions: 1, channels: 16}
data:
  train: {type: Shapes, length: 30, seed: 0, difficulty: easy, height: 64, width: 64}
  val: {type: Shapes, length: 5, seed: 1, difficulty: easy, height: 64, width: 64}
  resize: {short: 64, max: 64}
  transforms:
    - {type: HorizontalFlip}
    - {type: ColorJitter, brightness: 0.4, contrast: 0.4}
train:
  batch: 4
  micro_batch: 1
  lr: 0.001
  optimizer: {type: AdamW, weight_decay: 0.05}
  schedule: {type: Cosine}
  clip_norm: 5
  ema: 0.9
  log_every: 1
  eval_every: 10
  checkpoint_every: 3
  keep_checkpoints: 2
  keep_best: bbox.AP
  pictures: 2
  device: cpu
"""


@dataclass
class Way:
    """One way to run: its processes, its loader workers, and what was found."""

    name: str
    processes: int
    workers: int
    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    same: int = 0

    def command(self, config: Path, run: Path, steps: int) -> list[str]:
        launch = [sys.executable, "-m"]
        if self.processes > 1:
            options = ["--standalone", "--nproc-per-node", str(self.processes), "--max-restarts", "10"]
            launch += ["torch.distributed.run", *options, "-m", "--"]
        settings = [f"train.steps={steps}", f"data.workers={self.workers}"]
        return [*launch, "toolbox.cli", "train", str(config), *settings, "--run", str(run), "--resume"]


def fingerprint(run: Path) -> dict[str, str]:
    """What two runs must have alike, as digests."""
    import torch

    def digest(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()[:16]

    state = torch.load(run / "checkpoint.pt", weights_only=True)
    found: dict[str, str] = {}

    def walk(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = digest(value.numpy().tobytes())
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}.{key}", item)

    walk("checkpoint", {part: state[part] for part in ("model", "ema", "optimizer", "scaler")})
    timed = ("images_per_second", "loader_share", "peak_memory_mb")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [{k: v for k, v in record.items() if k not in timed} for record in records]
    found["metrics.jsonl"] = digest(json.dumps(kept).encode())
    for name in ("model.safetensors", "model_best.safetensors", "eval.json"):
        found[name] = digest((run / name).read_bytes())
    return found


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(child) for child in text.split()]


def where(run: Path) -> str:
    """What the run was doing when it was killed, by what lies in its folder."""
    if list(run.glob(".*.tmp")) + list(run.glob("*/.*.tmp")):
        return "while writing a file"
    log = run / "log.txt"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    last = lines[-1] if lines else ""
    if "evaluating" in last:
        return "in an evaluation"
    return "between steps" if " step " in last else "while starting"


def logged(run: Path) -> int:
    """Steps in metrics.jsonl: each is logged."""
    file = run / "metrics.jsonl"
    return file.read_text(encoding="utf-8").count("images_per_second") if file.exists() else 0


def wait_for_a_moment(process: subprocess.Popen[bytes], run: Path, steps: int, rng: random.Random) -> bool:
    """Wait for a random moment of what is left of a run; False where it ended before.

    One in six moments lies in the first seconds, the others within a second after a random step.
    """
    after = rng.randint(min(logged(run), steps - 1), steps - 1) if rng.random() > 1 / 6 else 0
    moment = None if after else time.monotonic() + rng.uniform(0, 8)
    while process.poll() is None:
        if moment is None and logged(run) >= after:
            moment = time.monotonic() + rng.uniform(0, 1)
        if moment is not None and time.monotonic() >= moment:
            return True
        time.sleep(0.01)
    return False


def kill_until_done(way: Way, config: Path, run: Path, steps: int, budget: int, rng: random.Random) -> int:
    """Run to the end, killed up to `budget` times on the way; how many kills there were."""
    done = 0
    while True:
        process = subprocess.Popen(
            way.command(config, run, steps),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while done < budget and wait_for_a_moment(process, run, steps, rng):
            victims = children(process.pid) if way.processes > 1 and rng.random() < 0.5 else []
            place = where(run)
            os.kill(rng.choice(victims) if victims else process.pid, signal.SIGKILL)
            done += 1
            way.kills[f"{place}{', one process' if victims else ', torchrun' if way.processes > 1 else ''}"] += 1
            if not victims:
                break
            time.sleep(5)  # torchrun starts all of them anew
        if process.wait() == 0:
            return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--per-run", type=int, default=3, help="kills on the way of one run")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    config = arguments.out / "config.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    ways = [Way("one process", 1, 0), Way("one process, two loader workers", 1, 2), Way("two processes", 2, 0)]
    whole: dict[str, dict[str, str]] = {}
    for way in ways:
        run = arguments.out / f"{way.processes}-{way.workers}-whole"
        shutil.rmtree(run, ignore_errors=True)
        began = time.monotonic()
        subprocess.run(way.command(config, run, arguments.steps), check=True, capture_output=True)
        whole[way.name] = fingerprint(run)
        print(f"{way.name}: {time.monotonic() - began:.0f} s without a kill", flush=True)
    total = 0
    while total < arguments.kills:
        for way in ways:
            if total >= arguments.kills:
                break
            run = arguments.out / f"{way.processes}-{way.workers}-killed"
            shutil.rmtree(run, ignore_errors=True)
            budget = min(arguments.per_run, arguments.kills - total)
            done = kill_until_done(way, config, run, arguments.steps, budget, rng)
            found = fingerprint(run)
            differing = [name for name, value in whole[way.name].items() if found.get(name) != value]
            total, way.runs, way.same = total + done, way.runs + 1, way.same + (not differing)
            said = f"differs in {', '.join(differing[:4])}" if differing else "the same bits"
            print(f"{way.name}: {done} kills, {said} ({total} of {arguments.kills})", flush=True)
    first, second = (whole[way.name] for way in ways[:2])
    alike = [name for name in first if first[name] == second[name]]
    print("\n| run | kills | runs with the same bits as without a kill | killed |\n|---|---|---|---|")
    for way in ways:
        places = ", ".join(f"{number} {place}" for place, number in sorted(way.kills.items()))
        print(f"| {way.name} | {sum(way.kills.values())} | {way.same} of {way.runs} | {places} |")
    print(f"\nWith and without loader workers: {len(alike)} of {len(first)} digests are the same")
    sys.exit(0 if all(way.same == way.runs for way in ways) else 1)


if __name__ == "__main__":
    main()
