"""What the build promises: no torch inside, and messages that say what to install."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from toolbox import ops
from toolbox.ops import native

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not ops.native_built() or not sys.platform.startswith("linux"), reason="needs the ELF extension")
def test_extension_links_neither_torch_nor_a_shared_cuda_runtime() -> None:
    assert native._extension is not None
    data = Path(native._extension.__file__).read_bytes()
    # The names of needed libraries stand as plain strings in the file.
    needed = set(re.findall(rb"lib[a-z0-9_+]+\.so[.0-9]*", data))
    assert any(name.startswith(b"libstdc++.so") for name in needed)
    assert not [name for name in needed if name.startswith((b"libtorch", b"libc10", b"libcudart"))]


def test_sources_include_no_torch_header() -> None:
    files = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert files
    assert not [path for path in files if re.search(r'#include\s*[<"](torch|ATen|c10)/', path.read_text())]


def setup(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_missing_compiler_is_named_with_two_ways_out(tmp_path) -> None:
    done = setup(
        "build_ext", "--build-temp", str(tmp_path), "--build-lib", str(tmp_path), CC="no-such-cc", CXX="no-such-c++"
    )
    assert done.returncode != 0
    assert "no C++ compiler" in done.stderr
    assert "TOOLBOX_NATIVE=0" in done.stderr and "apt-get install -y g++" in done.stderr


def test_cuda_that_was_asked_for_and_is_missing_is_an_error(tmp_path) -> None:
    done = setup(
        "build_ext",
        "--build-temp",
        str(tmp_path),
        "--build-lib",
        str(tmp_path),
        TOOLBOX_CUDA="1",
        CUDA_HOME=str(tmp_path / "none"),
    )
    assert done.returncode != 0
    assert "TOOLBOX_CUDA=1, but no nvcc was found" in done.stderr


def test_native_0_builds_nothing(tmp_path) -> None:
    done = setup("build_ext", "--build-lib", str(tmp_path), TOOLBOX_NATIVE="0", CC="no-such-cc", CXX="no-such-c++")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*.so"))
