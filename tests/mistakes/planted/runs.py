"""Run folders, and the disk under them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from planted.annotation_files import picture
from planted.mistake import RUN, Mistake, on_command_line, several, write
from planted.weights import a_run

typed = partial(on_command_line, "run folders", plant=several(write(RUN), a_run))
disk = partial(on_command_line, "disk")
TRAIN, RESUME = "train run.yaml --run runs/mine", "train run.yaml --run runs/mine --resume"


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """As another process holds it: by a lock on the open file."""
    import fcntl

    with (folder / "runs/mine/.lock").open("a+") as file:
        file.write("4711 on elsewhere\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def files_limited(folder: Path) -> Iterator[None]:
    """No file may grow beyond a megabyte."""
    import resource
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    def save(state: Any, path: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with patch("torch.save", save):
        yield


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Folders cannot be made; permissions alone would not stop root."""

    def mkdir(path: Path, *arguments: Any, **named: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with patch.object(Path, "mkdir", mkdir):
        yield


MISTAKES: tuple[Mistake, ...] = (
    typed("another process is writing it", RESUME, "runs/mine", "pid 4711 on elsewhere", "--run", around=in_use),
    typed("holds a run already", TRAIN, "runs/mine", "holds a run already", ["--resume", "--run"]),
    typed("resumed with another learning rate", f"{RESUME} train.lr=0.1", "train.lr", ["0.001", "0.1"], "--run"),
    typed("resumed with fewer steps than are done", f"{RESUME} train.steps=1", "train.steps=1",
          "2 steps are done already", ["train.init_from=runs/mine", "--run NEW"]),
    typed("resumed with another model", f"{RESUME} model.neck.out_channels=16", "model.neck.out_channels",
          ["has 8", "now it is 16"], "--run"),
    typed("holds files of something else", "train run.yaml --run papers", "papers", ["holds files", "thesis.tex"],
          "--run", plant=several(write(RUN), write("x", "papers/thesis.tex"))),
    typed("is a file", "train run.yaml --run notes.txt", "notes.txt", "is a file", "folder",
          plant=several(write(RUN), write("x", "notes.txt"))),
    typed("lies in a file", "train run.yaml --run notes.txt/run", "notes.txt/run", "notes.txt", "--run",
          plant=several(write(RUN), write("x", "notes.txt"))),
    typed("run folder in place of the config", "train runs/mine", "runs/mine", "this is a run",
          "rcnn train runs/mine --resume"),
    disk("folder that may not be written", "train run.yaml --run out", "out", "Permission denied", "--run",
         around=read_only),
    disk("full when the checkpoint is written", "train run.yaml --run out", "out/checkpoint.pt",
         ["No space left on device", "MB"], ["free", "--resume"], around=full_disk, quotes=True),
    disk("limit on the size of files", "train run.yaml --run out", "out/model.safetensors", ["File too large", "MB"],
         "--resume", around=files_limited, quotes=True),
    disk("file where predictions shall go", "predict runs/mine x.png --out notes.txt", "notes.txt", "Not a directory",
         "name a folder with --out",
         plant=several(write(RUN), a_run, write("x", "notes.txt"), write(picture(), "x.png"))),
)  # fmt: skip
