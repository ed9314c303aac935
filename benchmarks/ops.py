"""RoIAlign on the CPU: ours beside torchvision's, in one process, interleaved.

    python benchmarks/ops.py [--regions 1000] [--channels 256] [--repeats 5] [--threads 1 2]

Prints the fastest of the repeats in milliseconds, how many times faster ours is, and the largest difference of results.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

from toolbox import ops

HEIGHT, WIDTH = 800, 1344
STRIDES = (4, 8, 16, 32)
Pool = Callable[[list[Tensor], Tensor], Tensor]


def boxes(regions: int, largest: float) -> Tensor:
    """(R, 5): log-uniform sides of 16 to `largest` pixels, inside one image."""
    sides = 16 * (largest / 16) ** torch.rand(regions, 2)
    room = (torch.tensor([WIDTH, HEIGHT]) - sides).clamp(min=0)
    corner = torch.rand(regions, 2) * room
    return torch.cat([torch.zeros(regions, 1), corner, corner + sides], dim=1)


def torchvision_pyramid(maps: list[Tensor], rois: Tensor) -> Tensor:
    pooler = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    named = OrderedDict((str(index), level) for index, level in enumerate(maps))
    return pooler(named, [rois[:, 1:]], [(HEIGHT, WIDTH)])


def our_pyramid(maps: list[Tensor], rois: Tensor) -> Tensor:
    return ops.multiscale_roi_align(maps, rois, 7, strides=STRIDES, aligned=False)


def torchvision_single(ratio: int) -> Pool:
    return lambda maps, rois: torchvision.ops.roi_align(maps[0], rois, 7, 1 / STRIDES[0], ratio or -1, True)


def our_single(ratio: int) -> Pool:
    return lambda maps, rois: ops.roi_align(maps[0], rois, 7, spatial_scale=1 / STRIDES[0], sampling_ratio=ratio)


def measure(pool: Pool, maps: list[Tensor], rois: Tensor, backward: bool) -> tuple[float, Tensor]:
    """Seconds of one call and its result: the pooled regions, or the gradient of the first map."""
    if not backward:
        start = time.perf_counter()
        with torch.no_grad():
            pooled = pool(maps, rois)
        return time.perf_counter() - start, pooled
    leaves = [level.detach().requires_grad_() for level in maps]
    pooled = pool(leaves, rois)
    given = torch.ones_like(pooled)
    start = time.perf_counter()
    pooled.backward(given)
    seconds = time.perf_counter() - start
    assert leaves[0].grad is not None
    return seconds, leaves[0].grad


def compare(name: str, ours: Pool, theirs: Pool, maps: list[Tensor], rois: Tensor, repeats: int) -> None:
    """Print one row per direction and layout; torchvision gets contiguous maps, which it likes best."""
    last = [level.contiguous(memory_format=torch.channels_last) for level in maps]
    for backward in (False, True):
        best = [float("inf")] * 3
        results: list[Tensor] = [torch.empty(0)] * 3
        for _ in range(repeats):
            for index, (pool, levels) in enumerate(((theirs, maps), (ours, maps), (ours, last))):
                seconds, results[index] = measure(pool, levels, rois, backward)
                best[index] = min(best[index], seconds)
        peer, plain, channels_last = (1000 * seconds for seconds in best)
        difference = max((result - results[0]).abs().max().item() for result in results[1:])
        direction = "backward" if backward else "forward"
        print(
            f"{name:24} {direction:8} {torch.get_num_threads():7} {peer:11.1f} "
            f"{plain:9.1f} ({peer / plain:4.1f}x) {channels_last:9.1f} ({peer / channels_last:4.1f}x) "
            f"{difference:9.1e}",
            flush=True,
        )


def overhead(repeats: int = 500) -> None:
    """Print the cost of a call on tiny input, where it is all overhead: medians in microseconds, interleaved."""
    maps, rois = [torch.randn(1, 8, 8, 8)], torch.tensor([[0.0, 1, 1, 20, 20]])
    seconds: dict[tuple[str, bool], list[float]] = {}
    for _ in range(repeats):
        for name, pool in (("torchvision", torchvision_single(2)), ("ours", our_single(2))):
            for backward in (False, True):
                level = maps[0].clone().requires_grad_(backward)
                start = time.perf_counter()
                pooled = pool([level], rois)
                if backward:
                    pooled.sum().backward()
                seconds.setdefault((name, backward), []).append(time.perf_counter() - start)
    for backward, title in ((False, "forward, no gradient"), (True, "forward, sum and backward")):
        peer, own = (1e6 * statistics.median(seconds[name, backward]) for name in ("torchvision", "ours"))
        print(f"tiny call, {title}: torchvision {peer:.0f} us, ours {own:.0f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=1000)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    maps = [torch.randn(1, arguments.channels, HEIGHT // stride, WIDTH // stride) for stride in STRIDES]
    all_sizes, small = boxes(arguments.regions, 640), boxes(arguments.regions, 112)
    print(
        f"{arguments.regions} regions, {arguments.channels} channels, 7 x 7, image {HEIGHT} x {WIDTH}; ms, fastest of "
        f"{arguments.repeats}\n{'case':24} {'':8} threads torchvision        ours NCHW         ours NHWC   max diff"
    )
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        compare("FPN, 4 levels, ratio 2", our_pyramid, torchvision_pyramid, maps, all_sizes, arguments.repeats)
        compare("small boxes, ratio 2", our_single(2), torchvision_single(2), maps, small, arguments.repeats)
        compare("small boxes, ratio 0", our_single(0), torchvision_single(0), maps, small, arguments.repeats)
        compare("all sizes, ratio 2", our_single(2), torchvision_single(2), maps, all_sizes, arguments.repeats)
    torch.set_num_threads(1)
    overhead()


if __name__ == "__main__":
    main()
