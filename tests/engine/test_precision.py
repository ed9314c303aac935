"""Which type a device computes in, and what is refused with which reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toolbox.engine import precision
from toolbox.engine.precision import choose_precision, cpu_multiplies_bfloat16, tf32
from toolbox.engine.train import train
from toolbox.errors import DeviceError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ZEN4 = "processor\t: 0\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16 avx512_vnni\n\nprocessor\t: 1\nflags\t\t: fpu\n"
HASWELL = "processor\t: 0\nflags\t\t: fpu sse2 avx2 bmi2\nbugs\t\t: avx512_bf16\n"
GRAVITON3 = "processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\n"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Pretend that there is a GPU of some compute capability."""

    def pretend(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")

    return pretend


@pytest.mark.parametrize(
    ("capability", "setting", "expected"),
    [
        ((7, 5), "auto", torch.float16),
        ((8, 0), "auto", torch.bfloat16),
        ((12, 0), "auto", torch.bfloat16),
        ((8, 0), "float16", torch.float16),
        ((7, 0), "float16", torch.float16),
        ((9, 0), "bfloat16", torch.bfloat16),
        ((9, 0), "float32", None),
    ],
)
def test_a_gpu_computes_in_what_it_is_quick_in(
    gpu: Callable[..., None], capability: tuple[int, int], setting: str, expected: torch.dtype | None
) -> None:
    gpu(*capability)
    assert choose_precision(setting, GPU) == expected


def test_a_gpu_that_would_emulate_bfloat16_is_refused_by_name(gpu: Callable[..., None]) -> None:
    gpu(7, 5)
    with pytest.raises(ValueError, match=r"Tesla T4 has 7\.5 and would emulate it; write float16, or auto"):
        choose_precision("bfloat16", GPU)


def test_a_cpu_computes_in_float32_unless_told_otherwise() -> None:
    assert choose_precision("auto", CPU) is None and choose_precision("float32", CPU) is None


@pytest.mark.parametrize(("text", "has"), [(ZEN4, True), (HASWELL, False), (GRAVITON3, True), ("", False)])
def test_bfloat16_instructions_are_read_from_the_first_processor(tmp_path: Path, text: str, has: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_multiplies_bfloat16(tmp_path / "cpuinfo") is has
    assert not cpu_multiplies_bfloat16(tmp_path / "absent")  # not Linux


def test_bfloat16_is_for_cpus_that_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: True)
    assert choose_precision("bfloat16", CPU) == torch.bfloat16
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: False)
    with pytest.raises(ValueError, match=r"neither AVX512-BF16 nor AMX.*write float32, or auto"):
        choose_precision("bfloat16", CPU)


def test_float16_on_a_cpu_is_refused_at_its_place_before_anything_is_written(
    tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(DeviceError, match=r"train\.precision: float16 is for GPUs"):
        train(tiny_config(steps=1, precision="float16"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tf32_is_set_for_a_while_and_then_as_it_was() -> None:
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = (matmul.fp32_precision, conv.fp32_precision)
    with tf32(False):
        assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
        assert not torch.backends.cuda.matmul.allow_tf32  # the older name says the same
    with pytest.raises(KeyError), tf32(True):
        assert (matmul.fp32_precision, conv.fp32_precision) == ("tf32", "tf32")
        raise KeyError
    assert (matmul.fp32_precision, conv.fp32_precision) == before


def test_bfloat16_trains_in_bfloat16_and_keeps_float32_weights(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: True)
    caplog.set_level("INFO", "toolbox")
    seen = []
    config = tiny_config(steps=2, precision="bfloat16")
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, out: seen.append(out.dtype) if isinstance(module, torch.nn.Linear) else None
    )
    try:
        train(config, tmp_path / "run")
    finally:
        hook.remove()
    assert set(seen) == {torch.bfloat16} and "bfloat16; 0 loader processes" in caplog.text
    kept = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["model"]
    assert {value.dtype for value in kept.values()} == {torch.float32}
