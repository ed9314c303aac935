"""A disk that is full costs a checkpoint, not the run."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toolbox.engine.checkpoint import load_checkpoint
from toolbox.engine.train import train
from toolbox.errors import StorageError

SAVE = torch.save


def full_at(*calls: int) -> Callable[..., None]:
    """`torch.save` that finds the disk full when it is called for those times, from 1."""
    count = 0

    def save(state: Any, file: Any) -> None:
        nonlocal count
        count += 1
        if count in calls:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        SAVE(state, file)

    return save


def test_a_run_goes_on_over_a_full_disk_and_writes_the_next_checkpoint(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "save", full_at(2))
    with caplog.at_level(logging.ERROR, logger="toolbox"):
        assert train(tiny_config(steps=3, checkpoint_every=1), tmp_path / "run")["finished"]
    [said] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "checkpoint.pt: cannot be written: No space left on device (about " in said
    assert "the checkpoint.pt of before is whole; training goes on" in said
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["step"] == 3


def test_a_full_disk_at_the_end_leaves_the_checkpoint_before_whole(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "save", full_at(3))
    with pytest.raises(StorageError, match="is whole; once there is room, .*--resume. goes on from the last"):
        train(tiny_config(steps=3, checkpoint_every=1), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["step"] == 2
    assert not list((tmp_path / "run").glob(".*.tmp"))
    monkeypatch.setattr(torch, "save", SAVE)
    assert train(tiny_config(steps=3, checkpoint_every=1), tmp_path / "run", resume=True)["finished"]


def test_an_evaluation_on_a_full_disk_costs_its_files_and_not_the_run(
    tiny_config: Callable[..., Any],
    tiny_images: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(ending: str, write: Callable[..., int]) -> Callable[..., int]:
        def write_unless(path: Path, *content: Any, **how: Any) -> int:
            if path.name.endswith(ending):  # of a file, `.<name>.<pid>.tmp` while it is written
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(path, *content, **how)

        return write_unless

    mark = f".{os.getpid()}.tmp"
    monkeypatch.setattr(Path, "write_bytes", full(f".jpg{mark}", Path.write_bytes))
    monkeypatch.setattr(Path, "write_text", full(f"eval.json{mark}", Path.write_text))
    run = tmp_path / "run"
    assert train(tiny_config(val=tiny_images, steps=4, eval_every=2), run)["finished"]
    for file in ("100.jpg", "eval.json"):
        assert caplog.text.count(f"{file}: cannot be written: No space left on device") == 2
    evaluated = [line["step"] for line in map(json.loads, (run / "metrics.jsonl").open()) if "eval" in line]
    assert evaluated == [2, 4]
