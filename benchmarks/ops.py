"""RoIAlign and RoIPool: ours beside the peers', in one process, interleaved, on the CPU or a GPU.

    python benchmarks/ops.py [--device cpu|cuda] [--threads 1 2] [--repeats 7] [--only FPN] [--json FILE]

A row is a case in one direction: the fastest of the repeats in milliseconds, how many times faster ours is than
torchvision's, and the largest difference of the results. The peers get contiguous maps, which they like best; ours both
layouts, and in the forward direction also an output to reuse. Detectron2's RoIAlign stands in a column of its own where
it can be imported.

On a GPU there are two things more. "deterministic" is our backward under torch.use_deterministic_algorithms, beside
torchvision's ordinary one, for its kernels have no such form. "floor" is the share of our channels-last time that a
copy of the bytes takes that must be read and written at the least: forward the cells that any region reads, and the
output; backward the gradient of the output, and those of the maps.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from toolbox import ops
from toolbox.inference.predictor import choose_device

HEIGHT, WIDTH = 800, 1344
STRIDES = (4, 8, 16, 32)
Call = Callable[[], Tensor]
DETECTRON2 = importlib.util.find_spec("detectron2") is not None


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

    def detectron2(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        """RoIAlign by Detectron2, whose RoIPool is torchvision's."""
        from detectron2.layers import ROIAlign
        from detectron2.modeling.poolers import ROIPooler
        from detectron2.structures import Boxes

        scales = [1 / stride for stride in STRIDES[: self.levels]]
        if self.levels > 1:
            pooler = ROIPooler(self.size, scales, self.ratio or 0, "ROIAlign").to(rois.device)
            return pooler(list(maps), [Boxes(rois[:, 1:])])
        return ROIAlign(self.size, scales[0], self.ratio or 0, aligned=True)(maps[0], rois)

    def cells_read(self, maps: Sequence[Tensor], rois: Tensor) -> int:
        """Cells of one channel that regions read, each counted once however often it is read."""
        leaves = [torch.zeros_like(level[:, :1]).requires_grad_() for level in maps]
        # An average's gradient reaches every cell that was read; a maximum reads as many.
        averaging = self if self.ratio is not None else replace(self, ratio=0)
        averaging.ours(leaves, rois).sum().backward()
        return sum(int(leaf.grad.count_nonzero()) for leaf in leaves if leaf.grad is not None)


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
    """Fastest seconds of a case: the peers', ours by layout and output; and the largest difference from torchvision's.

    Attributes:
        detectron2: None where it is not installed.
        floor: share of `nhwc` that moving the bytes takes which must be moved; None on the CPU.
    """

    case: str
    direction: str
    threads: int
    torchvision: float
    detectron2: float | None
    nchw: float
    nhwc: float
    nhwc_reused: float | None
    difference: float
    floor: float | None = None

    def __str__(self) -> str:
        def beside(seconds: float | None) -> str:
            return " " * 16 if seconds is None else f"{1000 * seconds:8.3f} ({self.torchvision / seconds:4.1f}x)"

        peer = "" if self.detectron2 is None else f"{1000 * self.detectron2:.3f}"
        floor = "" if self.floor is None else f"{self.floor:.0%}"
        return (
            f"{self.case:24} {self.direction:13} {self.threads:7} {1000 * self.torchvision:11.3f} {peer:>10} "
            f"{beside(self.nchw)} {beside(self.nhwc)} {beside(self.nhwc_reused)} {self.difference:9.1e} {floor:>5}"
        )


HEADER = (
    f"{'case':24} {'':13} threads torchvision {'Detectron2':>10} {'ours NCHW':>16} {'ours NHWC':>16} "
    f"{'NHWC, reused':>16} {'max diff':>9} floor"
)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """torch chooses what gives the same in every run."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class Bench:
    """Measures on one device."""

    def __init__(self, device: torch.device, channels: int, repeats: int) -> None:
        self.device = device
        self.repeats = repeats
        self.copied = bandwidth(device) if device.type == "cuda" else None
        torch.manual_seed(0)
        self.maps = [torch.randn(1, channels, HEIGHT // s, WIDTH // s, device=device) for s in STRIDES]
        self.last = [level.contiguous(memory_format=torch.channels_last) for level in self.maps]

    def seconds(self, call: Call) -> tuple[float, Tensor]:
        """Of one call. A GPU is given several in a row, so that it does not wait for Python between them."""
        calls = 10 if self.device.type == "cuda" else 1
        synchronise(self.device)
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        synchronise(self.device)
        return (time.perf_counter() - start) / calls, result

    def rows(self, case: Case, threads: int) -> list[Row]:
        rois = case.boxes().to(self.device)
        maps, last = self.maps[: case.levels], self.last[: case.levels]
        peers: dict[str, Callable[..., Tensor]] = {"torchvision": case.torchvision}
        if DETECTRON2 and case.ratio is not None:
            peers["detectron2"] = case.detectron2
        with torch.no_grad():
            reused = case.ours(last, rois)
            calls: dict[str, Call] = {name: partial(pool, maps, rois) for name, pool in peers.items()}
            calls["nchw"] = partial(case.ours, maps, rois)
            calls["nhwc"] = partial(case.ours, last, rois)
            calls["nhwc_reused"] = partial(case.ours, last, rois, reused)
            pooled = reused.numel() * reused.element_size()
            channel = self.maps[0].shape[1] * reused.element_size()
        read = case.cells_read(last, rois) * channel if self.copied else 0
        found = [self._row(case.name, "forward", threads, calls, pooled + read)]
        calls = {name: self._gradient(pool, maps, rois) for name, pool in peers.items()}
        calls["nchw"] = self._gradient(case.ours, maps, rois)
        calls["nhwc"] = self._gradient(case.ours, last, rois)
        written = sum(level.numel() * level.element_size() for level in maps)
        found.append(self._row(case.name, "backward", threads, calls, pooled + written))
        if self.copied is not None:
            for name in ("nchw", "nhwc"):
                calls[name] = deterministic()(calls[name])
            found.append(self._row(case.name, "deterministic", threads, calls, pooled + written))
        return found

    def _row(self, case: str, direction: str, threads: int, calls: Mapping[str, Call], size: int) -> Row:
        """Measure the calls, named as the fields of a row; `size` is the bytes that one must move."""
        best, difference = self._best(list(calls.values()))
        times: dict[str, float | None] = {"detectron2": None, "nhwc_reused": None}
        times.update(zip(calls, best, strict=True))
        row = Row(case, direction, threads, **times, difference=difference)  # type: ignore[arg-type]
        return row if self.copied is None else replace(row, floor=size / self.copied / row.nhwc)

    def _gradient(self, pool: Callable[..., Tensor], maps: Sequence[Tensor], rois: Tensor) -> Call:
        leaves = [level.detach().requires_grad_() for level in maps]
        pooled = pool(leaves, rois)
        given = torch.ones_like(pooled)
        return lambda: torch.autograd.grad(pooled, leaves, given, retain_graph=True)[0]

    def _best(self, calls: Sequence[Call]) -> tuple[list[float], float]:
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


def synchronise(device: torch.device) -> None:
    """Wait for what was asked of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


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
    """Bytes a second that a copy of 1 GB, more than any cache holds, reads and writes."""
    source = torch.empty(1 << 28, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        synchronise(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronise(device)
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
    device = choose_device(arguments.device, instead="--device cpu")
    bench = Bench(device, arguments.channels, arguments.repeats)
    print(
        f"{arguments.channels} channels, image {HEIGHT} × {WIDTH}, torch {torch.__version__}; ms, fastest of "
        f"{arguments.repeats}\n{HEADER}"
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
    figures: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "rows": [asdict(row) for row in rows],
        "tiny_call_us": tiny,
    }
    if bench.copied is not None:
        figures["copy_bytes_per_second"] = bench.copied
        print(f"a copy moves {bench.copied / 1e9:.0f} GB/s, reading and writing together")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
