"""RoIAlign and RoIPool: ours beside torchvision's, in one process, interleaved, on the CPU or a GPU.

    python benchmarks/ops.py [--device cpu|cuda] [--threads 1 2] [--repeats 7] [--only FPN] [--json FILE]

A row is a case in one direction: the fastest of the repeats in milliseconds, how many times faster ours is, and the
largest difference of the results. torchvision gets contiguous maps, which it likes best; ours both layouts, and in the
forward direction also an output to reuse.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from toolbox import ops

HEIGHT, WIDTH = 800, 1344
STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class Case:
    """What is pooled.

    Attributes:
        name: in the table.
        regions: R.
        largest: largest side of a box in pixels; sides are log-uniform from 16.
        size: P, of the pooled regions.
        ratio: samples a side of a bin, 0 for adaptive; None is RoIPool.
        levels: maps of the pyramid; 1 is the finest alone.
    """

    name: str
    regions: int = 1000
    largest: float = 640
    size: int = 7
    ratio: int | None = 2
    levels: int = 1

    def boxes(self) -> Tensor:
        """(R, 5) inside one image."""
        sides = 16 * (self.largest / 16) ** torch.rand(self.regions, 2)
        corner = torch.rand(self.regions, 2) * (torch.tensor([WIDTH, HEIGHT]) - sides).clamp(min=0)
        return torch.cat([torch.zeros(self.regions, 1), corner, corner + sides], dim=1)

    def ours(self, maps: Sequence[Tensor], rois: Tensor, out: Tensor | None = None) -> Tensor:
        """Pool by this toolbox."""
        if self.levels > 1:
            strides, ratio = STRIDES[: self.levels], self.ratio or 0
            return ops.multiscale_roi_align(
                maps, rois, self.size, strides=strides, sampling_ratio=ratio, aligned=False, out=out
            )
        scale = 1 / STRIDES[0]
        if self.ratio is None:
            return ops.roi_pool(maps[0], rois, self.size, spatial_scale=scale, out=out)
        return ops.roi_align(maps[0], rois, self.size, spatial_scale=scale, sampling_ratio=self.ratio, out=out)

    def torchvision(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Pool by torchvision."""
        if self.levels > 1:
            names = [str(level) for level in range(self.levels)]
            pooler = torchvision.ops.MultiScaleRoIAlign(names, self.size, self.ratio or -1)
            return pooler(dict(zip(names, maps, strict=True)), [rois[:, 1:]], [(HEIGHT, WIDTH)])
        scale = 1 / STRIDES[0]
        if self.ratio is None:
            return torchvision.ops.roi_pool(maps[0], rois, self.size, scale)
        return torchvision.ops.roi_align(maps[0], rois, self.size, scale, self.ratio or -1, True)


CASES = (
    Case("FPN, 4 levels, ratio 2", levels=4),
    Case("FPN, 14 × 14, 100 RoIs", regions=100, size=14, levels=4),
    Case("small boxes, ratio 2", largest=112),
    Case("small boxes, ratio 0", largest=112, ratio=0),
    Case("all sizes, ratio 2"),
    Case("all sizes, ratio 0", ratio=0),
    Case("RoIPool, small boxes", largest=112, ratio=None),
)


@dataclass(frozen=True)
class Row:
    """Fastest seconds of a case: torchvision's, ours by layout and output; and the largest difference."""

    case: str
    direction: str
    threads: int
    torchvision: float
    nchw: float
    nhwc: float
    nhwc_reused: float | None
    difference: float

    def __str__(self) -> str:
        def beside(seconds: float | None) -> str:
            return " " * 16 if seconds is None else f"{1000 * seconds:8.2f} ({self.torchvision / seconds:4.1f}x)"

        return (
            f"{self.case:24} {self.direction:8} {self.threads:7} {1000 * self.torchvision:11.2f} "
            f"{beside(self.nchw)} {beside(self.nhwc)} {beside(self.nhwc_reused)} {self.difference:9.1e}"
        )


class Bench:
    """Measures on one device; `synchronise` waits for it."""

    def __init__(self, device: torch.device, channels: int, repeats: int) -> None:
        self.device = device
        self.repeats = repeats
        torch.manual_seed(0)
        self.maps = [torch.randn(1, channels, HEIGHT // s, WIDTH // s, device=device) for s in STRIDES]
        self.last = [level.contiguous(memory_format=torch.channels_last) for level in self.maps]

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Tensor]) -> tuple[float, Tensor]:
        self.synchronise()
        start = time.perf_counter()
        result = call()
        self.synchronise()
        return time.perf_counter() - start, result

    def rows(self, case: Case, threads: int) -> list[Row]:
        rois = case.boxes().to(self.device)
        maps, last = self.maps[: case.levels], self.last[: case.levels]
        with torch.no_grad():
            reused = case.ours(last, rois)
            forward = self._best(
                [
                    lambda: case.torchvision(maps, rois),
                    lambda: case.ours(maps, rois),
                    lambda: case.ours(last, rois),
                    lambda: case.ours(last, rois, reused),
                ]
            )
        row = Row(case.name, "forward", threads, *forward[0], forward[1])
        backward = self._best(
            [
                self._gradient(case.torchvision, maps, rois),
                self._gradient(case.ours, maps, rois),
                self._gradient(case.ours, last, rois),
            ]
        )
        times = dict(zip(("torchvision", "nchw", "nhwc"), backward[0], strict=True))
        return [row, replace(row, direction="backward", **times, nhwc_reused=None, difference=backward[1])]

    def _gradient(self, pool: Callable[..., Tensor], maps: Sequence[Tensor], rois: Tensor) -> Callable[[], Tensor]:
        leaves = [level.detach().requires_grad_() for level in maps]
        pooled = pool(leaves, rois)
        given = torch.ones_like(pooled)
        return lambda: torch.autograd.grad(pooled, leaves, given, retain_graph=True)[0]

    def _best(self, calls: Sequence[Callable[[], Tensor]]) -> tuple[list[float], float]:
        """Fastest seconds of each call, interleaved, and how far results are from the first's."""
        best = [float("inf")] * len(calls)
        difference = 0.0
        for repeat in range(self.repeats):
            first: Tensor | None = None
            for index, call in enumerate(calls):
                seconds, result = self.seconds(call)
                best[index] = min(best[index], seconds)
                if repeat == 0:
                    first = result if first is None else first
                    difference = max(difference, (result - first).abs().max().item())
                del result  # its memory is given back before the next call asks for as much
        return best, difference


def overhead(device: torch.device, repeats: int = 2000) -> dict[str, tuple[float, float]]:
    """What a call on tiny input costs, where it is all overhead: medians in microseconds, torchvision's and ours."""
    case = Case("tiny")
    found: dict[str, tuple[float, float]] = {}
    rois = torch.tensor([[0.0, 1, 1, 20, 20]], device=device)
    for title in ("forward, no gradient", "forward, gradient wanted", "forward, sum and backward"):
        level = torch.randn(1, 8, 8, 8, device=device).requires_grad_(title != "forward, no gradient")
        seconds: list[list[float]] = [[], []]
        for repeat in range(repeats):
            for index, pool in enumerate((case.torchvision, case.ours)):
                start = time.perf_counter()
                pooled = pool([level], rois)
                if title.endswith("backward"):
                    pooled.sum().backward()
                if repeat >= repeats // 10:  # the first are warming up
                    seconds[index].append(time.perf_counter() - start)
        found[title] = tuple(1e6 * statistics.median(values) for values in seconds)  # type: ignore[assignment]
    return found


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy of 256 MB reads and writes: what no kernel can beat."""
    source = torch.empty(1 << 26, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * source.element_size() / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the CPU")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    bench = Bench(device, arguments.channels, arguments.repeats)
    print(
        f"{arguments.channels} channels, image {HEIGHT} × {WIDTH}, torch {torch.__version__}; ms, fastest of "
        f"{arguments.repeats}\n{'case':24} {'':8} threads torchvision {'ours NCHW':>16} {'ours NHWC':>16} "
        f"{'NHWC, reused':>16} {'max diff':>9}"
    )
    rows = []
    for threads in arguments.threads if device.type == "cpu" else [1]:
        torch.set_num_threads(threads)
        for case in CASES:
            if arguments.only in case.name:
                for row in bench.rows(case, threads):
                    print(row, flush=True)
                    rows.append(row)
    torch.set_num_threads(1)
    tiny = overhead(device)
    for title, (peer, own) in tiny.items():
        print(f"tiny call, {title}: torchvision {peer:.1f} us, ours {own:.1f} us")
    figures = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "rows": [asdict(row) for row in rows],
        "tiny_call_us": tiny,
    }
    if device.type == "cuda":
        figures["copy_bytes_per_second"] = bandwidth(device)
        print(f"a copy moves {figures['copy_bytes_per_second'] / 1e9:.0f} GB/s")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
