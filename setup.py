"""Build of the compiled parts: `toolbox.ops._native` (C++, and CUDA where nvcc is) and `toolbox.masks._masks` (Cython).

The extensions neither include nor link torch, so one build serves every torch release. Environment variables:

    TOOLBOX_NATIVE=0        install without compiled code; the operations then run on torchvision or plain PyTorch
    TOOLBOX_CUDA=auto|1|0   CUDA kernels if nvcc is found (the default) | fail without nvcc | never
    TOOLBOX_STRICT=1        warnings of the compilers are errors, as the Makefile has it
    TOOLBOX_SANITIZE=1      with AddressSanitizer and UndefinedBehaviorSanitizer, for `make sanitize`
    TOOLBOX_CUDA_ARCHS      GPU architectures, "75;80;90;100" unless told; PTX of the newest is added
    CUDA_HOME               root of the CUDA toolkit; unless told, the one of the nvcc on PATH
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.modified import newer_group
except ImportError:
    raise SystemExit(
        "setuptools is too old: pip install -U 'setuptools>=77', or build without --no-build-isolation"
    ) from None

ROOT = Path(__file__).resolve().parent
CSRC = Path("csrc")
APT_LINE = "apt-get install -y g++ python3-dev"
WITHOUT = "or set TOOLBOX_NATIVE=0 to install without compiled code (slower)"
DEFAULT_ARCHS = "75;80;90;100"


SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]


def is_set(name: str) -> bool:
    """Whether an environment variable says 1."""
    return os.environ.get(name, "0") == "1"


class BuildError(SystemExit):
    """Something is missing for the build; the message says what installs it."""


def sources(pattern: str) -> list[str]:
    """Files of csrc/ that match, relative to the root, as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / CSRC).glob(pattern))


def headers() -> list[str]:
    """Everything whose change means that all is compiled again."""
    return sources("**/*.h") + sources("**/*.cuh")


def cuda_home() -> Path | None:
    """Root of the CUDA toolkit, or None. The nvcc on PATH may be a wrapper, so it is asked where it lives."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if named:
        return Path(named) if (Path(named) / "bin" / "nvcc").exists() else None
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    said = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", said.stdout + said.stderr, re.MULTILINE)
    return Path(top.group(1)).resolve() if top else Path(nvcc).resolve().parents[1]


def wanted_cuda() -> Path | None:
    """Toolkit to build the CUDA kernels with, by TOOLBOX_CUDA; None builds for the CPU alone."""
    wish = os.environ.get("TOOLBOX_CUDA", "auto").lower()
    if wish not in ("auto", "1", "0"):
        raise BuildError(f"TOOLBOX_CUDA={wish}: expected auto, 1 or 0")
    if wish == "0":
        return None
    home = cuda_home()
    if home is None and wish == "1":
        raise BuildError(
            "TOOLBOX_CUDA=1, but no nvcc was found: install the CUDA toolkit, set CUDA_HOME to its root, "
            "or set TOOLBOX_CUDA=0 to build for the CPU alone"
        )
    return home


def gencode_flags(nvcc: Path) -> list[str]:
    """Code for every wanted architecture that this nvcc knows, and PTX of the newest for later ones."""
    listed = subprocess.run([str(nvcc), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"compute_(\d+)", listed))
    asked = [arch for arch in re.split(r"[;, ]+", os.environ.get("TOOLBOX_CUDA_ARCHS", DEFAULT_ARCHS)) if arch]
    usable = sorted((arch for arch in asked if arch in known), key=int)
    if not usable:
        raise BuildError(f"TOOLBOX_CUDA_ARCHS={';'.join(asked)}: {nvcc} knows only {', '.join(sorted(known, key=int))}")
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in usable]
    return [*flags, f"-gencode=arch=compute_{usable[-1]},code=compute_{usable[-1]}"]


def extensions() -> list[Extension]:
    """What to compile: nothing with TOOLBOX_NATIVE=0."""
    if os.environ.get("TOOLBOX_NATIVE", "1") == "0":
        return []
    flags = ["-O3", "-std=c++17", "-fvisibility=hidden", "-g0", "-Wall", "-Wextra", "-Wno-psabi"]
    flags += ["-Werror"] if is_set("TOOLBOX_STRICT") else []
    sanitizers = SANITIZERS if is_set("TOOLBOX_SANITIZE") else []
    found = []
    if (ROOT / CSRC / "bindings.cpp").exists():
        found.append(
            Extension(
                "toolbox.ops._native",
                sources("bindings.cpp") + sources("cpu/*.cpp"),
                include_dirs=[str(CSRC)],
                depends=headers() + sources("cuda/*.cu"),
                extra_compile_args=flags + sanitizers,
                extra_link_args=["-pthread", *sanitizers],
                language="c++",
            )
        )
    if (ROOT / CSRC / "masks.pyx").exists():
        found.append(
            Extension(
                "toolbox.masks._masks",
                sources("masks.pyx"),
                include_dirs=[str(CSRC)],
                depends=headers(),
                # Fused multiply-adds would round differently from torch, whose masks these must equal bit for bit.
                extra_compile_args=[
                    "-O3",
                    "-std=c++17",
                    "-fvisibility=hidden",
                    "-g0",
                    "-ffp-contract=off",
                    *sanitizers,
                ],
                extra_link_args=sanitizers,
                language="c++",
            )
        )
    return found


class BuildNative(build_ext):
    """Compiles the CUDA files with nvcc and the Cython file with Cython; the rest is setuptools' own."""

    def build_extensions(self) -> None:
        command = (getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_so)[0]
        if shutil.which(command) is None:
            raise BuildError(f"no C++ compiler ('{command}' is not on PATH): {APT_LINE}; {WITHOUT}")
        include = Path(sysconfig.get_path("include"))
        if not (include / "Python.h").exists():
            raise BuildError(f"no Python headers ({include}/Python.h is missing): {APT_LINE}; {WITHOUT}")
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        if ext.name == "toolbox.ops._native":
            import pybind11

            ext.include_dirs.append(pybind11.get_include())
            home = wanted_cuda()
            if home is not None and sources("cuda/*.cu"):
                self._add_cuda(ext, home)
        elif any(source.endswith(".pyx") for source in ext.sources):
            from Cython.Build import cythonize

            [translated] = cythonize([ext], build_dir=str(Path(self.build_temp) / "cython"), language_level=3)
            ext.sources = translated.sources
        super().build_extension(ext)

    def _add_cuda(self, ext: Extension, home: Path) -> None:
        """Compile csrc/cuda with nvcc, all files at once, and link them with cudart inside the extension."""
        nvcc = home / "bin" / "nvcc"
        out = Path(self.build_temp) / "cuda"
        out.mkdir(parents=True, exist_ok=True)
        flags = ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall", "-Xfatbin=-compress-all"]
        flags += [f"-I{CSRC}", *gencode_flags(nvcc)]
        flags += ["-Werror=all-warnings", "-Xcompiler=-Werror"] if is_set("TOOLBOX_STRICT") else []
        stamp = out / "flags"
        if not stamp.exists() or stamp.read_text() != " ".join(flags):
            stamp.write_text(" ".join(flags))

        def compile_one(source: str) -> str:
            target = str(out / (Path(source).stem + ".o"))
            if self.force or newer_group([source, *headers(), str(stamp)], target):
                self.spawn([str(nvcc), *flags, "-c", source, "-o", target])
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sources("cuda/*.cu")))
        folders = [folder for folder in (home / "lib64", home / "targets" / "x86_64-linux" / "lib") if folder.exists()]
        ext.extra_objects.extend(objects)
        ext.depends.extend(objects)
        ext.define_macros.append(("TOOLBOX_WITH_CUDA", "1"))
        ext.library_dirs.extend(map(str, folders))
        ext.libraries.extend(["cudart_static", "dl", "rt", "pthread"])


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
