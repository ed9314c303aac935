"""The numbers that a run computes in: which 16-bit types a device is quick in, and TF32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

# As /proc/cpuinfo calls the instructions that multiply bfloat16: x86's under "flags", ARM's under "Features".
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


def choose_precision(setting: str, device: torch.device) -> torch.dtype | None:
    """The type that autocast computes in, or None for float32.

    Args:
        setting: `train.precision`.
        device: where it computes.

    Raises:
        ValueError: the device has no instructions for that type; says what to write instead.
    """
    if setting == "float32" or (setting == "auto" and device.type != "cuda"):
        return None
    if device.type != "cuda":
        return _on_cpu(setting)
    capability = torch.cuda.get_device_capability(device)
    if setting == "auto":
        return torch.bfloat16 if capability >= (8, 0) else torch.float16
    if setting == "bfloat16" and capability < (8, 0):
        raise ValueError(
            f"bfloat16 needs a GPU of compute capability 8.0 (Ampere) or more, {torch.cuda.get_device_name(device)} "
            f"has {capability[0]}.{capability[1]} and would emulate it; write float16, or auto, which is that here"
        )
    return torch.bfloat16 if setting == "bfloat16" else torch.float16


def _on_cpu(setting: str) -> torch.dtype:
    if setting == "float16":
        raise ValueError(
            "float16 is for GPUs; on a CPU it is slower than float32 and its range too small for gradients; "
            "write float32, or auto"
        )
    if not cpu_multiplies_bfloat16():
        raise ValueError(
            "bfloat16 would be 10 to 100 times slower than float32 here: this CPU has neither AVX512-BF16 nor AMX "
            "instructions, by which it is multiplied; write float32, or auto"
        )
    return torch.bfloat16


def cpu_multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU has instructions for products of bfloat16; False where the system does not say.

    Args:
        cpuinfo: Linux's description of the processors.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features")))
    return not _BFLOAT16.isdisjoint(next(flags, ()))


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Inside, float32 products of matrices and convolutions on a GPU may, or may not, be rounded to TF32."""
    # One name each for what they are set by: mixing these with the older allow_tf32 raises.
    settings: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
