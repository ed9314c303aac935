"""How the images of an optimizer step are shared by processes and backward passes: arithmetic, without torch."""

from __future__ import annotations

from dataclasses import dataclass

_NAMED = 6  # divisors named in an error


@dataclass(frozen=True)
class Accumulation:
    """The share of one process.

    Attributes:
        micro_batch: images per process and backward pass.
        passes: backward passes per process and optimizer step.
    """

    micro_batch: int
    passes: int


def accumulation(batch: int, micro_batch: int | None = None, world: int = 1) -> Accumulation:
    """Cut an optimizer step into backward passes.

    Args:
        batch: images per optimizer step, over all processes.
        micro_batch: images per process and backward pass; a process's whole share of `batch` if None.
        world: processes.

    Raises:
        ValueError: they do not divide; names the nearest batches, and the micro-batches, that fit.
    """
    if micro_batch is None:
        if batch % world:
            raise ValueError(
                f"batch ({batch}) cannot be shared equally by {world} processes; batch {_nearest(batch, world)} can"
            )
        return Accumulation(batch // world, 1)
    together = micro_batch * world
    if batch % together:
        each = f"micro_batch ({micro_batch})" if world == 1 else f"micro_batch × processes ({micro_batch} × {world})"
        ways = [f"batch {_nearest(batch, together)}"]
        if batch % world == 0:
            fitting = [str(size) for size in range(1, batch // world + 1) if batch // world % size == 0]
            near = sorted(fitting, key=lambda size: abs(int(size) - micro_batch))[:_NAMED]
            ways.append(f"micro_batch {_listed(sorted(near, key=int))}")
        raise ValueError(f"batch ({batch}) is not a multiple of {each}; {', or '.join(ways)} fits")
    return Accumulation(micro_batch, batch // together)


def _nearest(batch: int, unit: int) -> str:
    """The multiples of `unit` on either side of `batch`."""
    below = batch // unit * unit
    return _listed([str(multiple) for multiple in (below, below + unit) if multiple])


def _listed(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
