"""The folder of a run: who may write it, what is refused, and what a full disk or a killed process leaves in it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolbox.engine import Progress, train
from toolbox.engine.run_folder import RunFolder
from toolbox.errors import ConfigError, ToolboxError

MakeConfig = Callable[..., Any]


def test_a_folder_with_a_run_is_refused_with_what_to_do(tiny_config: MakeConfig, tmp_path: Path) -> None:
    train(tiny_config(steps=1), tmp_path / "run")
    with pytest.raises(ToolboxError, match="holds a run already .*--resume"):
        train(tiny_config(steps=1), tmp_path / "run")


def test_resuming_with_another_config_names_the_keys(tiny_config: MakeConfig, tmp_path: Path) -> None:
    train(tiny_config(steps=1), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.lr: the run has 0\.05, now it is 0\.1"):
        train(tiny_config(steps=1, lr=0.1), tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match=r"train\.tf32: the run has nothing, now it is true;"):
        train(tiny_config(steps=1, tf32=True), tmp_path / "run", resume=True)
    again = train(tiny_config(steps=1, log_every=1), tmp_path / "run", resume=True)  # how it is watched may change
    assert again["finished"]


def test_a_run_goes_on_with_what_a_machine_of_less_memory_or_a_slower_disk_needs(tmp_path: Path) -> None:
    """What the messages about memory and silent workers recommend; no image is another one for it."""
    folder = RunFolder(tmp_path)
    folder.config.write_text("data: {cache: decoded, cache_gb: 2.0, timeout: 30, min_visible: 0.1}\n")
    folder.check_same("data: {cache: none, cache_gb: null, timeout: 1800, min_visible: 0.1}\n")
    with pytest.raises(ConfigError, match=r"data\.min_visible: the run has 0\.1, now it is 0\.2"):
        folder.check_same("data: {cache: none, min_visible: 0.2}\n")


def test_what_a_killed_process_left_half_written_is_removed(tiny_config: MakeConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny_config(steps=2, checkpoint_every=1, keep_checkpoints=2)
    train(config, run)
    left = [
        run / name for name in (".checkpoint.pt.1.tmp", ".model.safetensors.12.tmp", ".model_best.safetensors.3.tmp")
    ]
    left += [run / ".checkpoint_good.pt.7.tmp", run / "checkpoints/.step_00000002.pt.5.tmp"]
    for file in left:
        file.write_bytes(b"half")
    (run / ".mine.tmp").touch()
    train(config, run, resume=True)
    assert not any(file.exists() for file in left) and (run / ".mine.tmp").exists()
    assert (run / "checkpoints/step_00000001.pt").is_file()


def test_resuming_without_a_checkpoint_starts_at_the_beginning_and_says_so(
    tiny_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(tiny_config(steps=1), tmp_path / "run", resume=True)["step"] == 1
    assert f"nothing to resume in {tmp_path / 'run'}: starting at step 0" in caplog.text


@pytest.mark.parametrize("kept", [1, 3])
def test_a_run_whose_checkpoint_is_gone_is_not_trained_over(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type, kept: int
) -> None:
    config = tiny_config(steps=4, checkpoint_every=2, keep_checkpoints=kept, val=tiny_images)
    train(config, tmp_path / "run")
    (tmp_path / "run/checkpoint.pt").unlink()
    model = (tmp_path / "run/model.safetensors").read_bytes()
    way = r"train\.init_from=" if kept == 1 else r"ln -f .*step_00000002\.pt "
    with pytest.raises(ToolboxError, match=rf"checkpoint\.pt: it is gone, so this run cannot go on; .*{way}"):
        train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run/model.safetensors").read_bytes() == model


def test_resuming_a_folder_whose_name_is_misspelt_names_the_one_beside_it(
    tiny_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny_config(steps=1), tmp_path / "mine")
    train(tiny_config(steps=1), tmp_path / "mien", resume=True)
    assert f"starting at step 0; did you mean '{tmp_path / 'mine'}'?" in caplog.text


def test_half_a_line_on_a_full_disk_does_not_spoil_the_next(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="no limits on the size of files here")
    folder, before = RunFolder(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    folder.append_metrics({"step": 10})
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
        folder.append_metrics({"step": 20, "losses": {"corner": 1.0}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    folder.append_metrics({"step": 20, "eval": {}})
    assert folder.records() == [{"step": 10}, {"step": 20, "eval": {}}]


def test_a_folder_with_files_of_something_else_is_refused_and_left_alone(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    (tmp_path / ".hidden").touch()
    for resume in (False, True):
        with pytest.raises(ToolboxError, match=r"holds files, but no run \(config.yaml\); name a new or empty folder"):
            train(tiny_config(steps=1), tmp_path, resume=resume)
    assert (tmp_path / "config.yaml").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2
    (tmp_path / "config.yaml").unlink()
    assert train(tiny_config(steps=1), tmp_path)["finished"]


def test_a_second_writer_of_a_run_is_refused(tiny_config: MakeConfig, tmp_path: Path) -> None:
    seen = []

    def second(progress: Progress) -> None:
        with pytest.raises(ToolboxError, match=f"another process .pid {os.getpid()} on .* is writing this run"):
            train(tiny_config(steps=1), tmp_path / "run", resume=True)
        seen.append(progress.done)

    train(tiny_config(steps=1), tmp_path / "run", on_progress=second)
    assert seen == [1]
