"""Several processes under torchrun, on the CPU over gloo: the same run as of one, whatever happens to them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toolbox.engine import train
from toolbox.engine.checkpoint import load_checkpoint
from toolbox.engine.distributed import ALONE, Ranks, ranks_of_environment
from toolbox.engine.job import check_shares
from toolbox.errors import ConfigError, DeviceError

MakeConfig = Callable[..., Any]
SCRIPT = Path(__file__).with_name("tiny_process.py")
SETTINGS: dict[str, Any] = {
    "steps": 12,
    "batch": 6,
    "micro_batch": 1,
    "eval_every": 6,
    "checkpoint_every": 4,
    "ema": 0.9,
    "validation_loss": True,
}


def torchrun(processes: int, asked: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    asked = {"settings": SETTINGS, **asked}
    return subprocess.run(
        [*command, *options, str(SCRIPT), json.dumps(asked)], capture_output=True, text=True, timeout=300
    )


def two_processes(script: Path, *arguments: object) -> None:
    """Run a script under torchrun; what a failed one said is the assertion's message."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(script), *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def state(run: Path) -> dict[str, Any]:
    kept = load_checkpoint(run / "checkpoint.pt")
    return {f"{part}.{name}": value for part in ("model", "ema") for name, value in kept[part].items()}


def lines(run: Path) -> list[dict[str, Any]]:
    timed = ("images_per_second", "loader_share", "peak_memory_mb")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in timed} for record in records]


@pytest.fixture
def seven(tiny_images: type) -> type:
    """As in the script."""

    class Seven(tiny_images):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(length=7)

    return Seven


@pytest.fixture(scope="module")
def of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of three processes that nothing happened to."""
    run = tmp_path_factory.mktemp("distributed") / "three"
    done = torchrun(3, {"run": str(run)})
    assert done.returncode == 0, done.stderr
    return run


def assert_same(run: Path, other: Path) -> None:
    ours, theirs = state(run), state(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert lines(run) == lines(other)


def test_three_processes_take_the_steps_of_one(
    of_three: Path, tiny_config: MakeConfig, tmp_path: Path, seven: type
) -> None:
    """The same images, micro-batches and draws; the gradients are summed in another order."""
    alone = train(tiny_config(model={"dropout": 0.5}, val=seven, **SETTINGS), tmp_path / "one")
    together, one = state(of_three), state(tmp_path / "one")
    for name in one:
        torch.testing.assert_close(together[name], one[name], rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(lines(of_three), lines(tmp_path / "one"), strict=True):
        assert ours["step"] == theirs["step"] and ours.keys() == theirs.keys()
        if "losses" in ours:
            assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
        else:
            assert ours["eval"]["bbox"] == pytest.approx(theirs["eval"]["bbox"], abs=1e-6)
            assert ours["val_losses"] == pytest.approx(theirs["val_losses"], rel=1e-4)
    results = [json.loads(of_three.with_suffix(f".result-{rank}").read_text()) for rank in range(3)]
    assert results[0] == results[1] == results[2]  # all know the metrics of all images
    assert results[0]["metrics"]["bbox"]["AP"] == pytest.approx(alone["metrics"]["bbox"]["AP"], abs=1e-6)


def test_a_killed_process_is_started_anew_with_the_others_and_the_run_ends_with_the_same_bits(
    of_three: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = torchrun(3, {"run": str(run), "end": {"what": "die", "rank": 1, "step": 7}}, "--max-restarts", "5")
    assert done.returncode == 0, done.stderr
    assert "resuming after step 6 of 12" in (run / "log.txt").read_text()
    assert_same(run, of_three)


def test_processes_die_with_torchrun_and_the_run_goes_on_with_the_same_bits(
    of_three: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    run, began = tmp_path / "run", time.monotonic()
    done = torchrun(3, {"run": str(run), "end": {"what": "orphan", "rank": 0, "step": 5}})
    assert done.returncode == -9 and time.monotonic() - began < 60
    assert torchrun(3, {"run": str(run), "resume": True}).returncode == 0  # no orphan holds the folder
    assert_same(run, of_three)


def test_one_process_goes_on_with_the_run_of_three(
    of_three: Path, tiny_config: MakeConfig, tmp_path: Path, seven: type, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    stopped = torchrun(3, {"run": str(run), "end": {"what": "stop", "rank": 2, "step": 5}})
    assert stopped.returncode == 0, stopped.stderr  # one process was asked, all of them stopped
    assert json.loads(run.with_suffix(".result-0").read_text()) == {
        "step": 5,
        "finished": False,
        "metrics": None,
        "stopped_early": None,
    }
    result = train(tiny_config(model={"dropout": 0.5}, val=seven, **SETTINGS), run, resume=True)
    assert result["finished"] and "under other circumstances (processes 3 → 1)" in caplog.text
    whole, ours = state(of_three), state(run)
    for name in whole:
        torch.testing.assert_close(ours[name], whole[name], rtol=1e-4, atol=1e-6)


def test_only_the_first_process_writes_and_says_something(of_three: Path, tmp_path: Path) -> None:
    log = (of_three / "log.txt").read_text()
    assert log.count("step 12/12") == 1 and "device cpu in each of 3 processes" in log


def test_a_refusal_is_one_also_when_torchrun_tries_once_more(of_three: Path) -> None:
    """To torchrun it is a failure like any other; it must not become a resumed run."""
    before = (of_three / "metrics.jsonl").read_bytes()
    again = torchrun(2, {"run": str(of_three)}, "--max-restarts", "1")
    assert again.returncode == 1 and again.stderr.count("holds a run already") == 2
    assert (of_three / "metrics.jsonl").read_bytes() == before


SYNCED = """\
import json, sys
import torch
from torch import nn
from toolbox.engine.distributed import taking_part
from toolbox.engine.sync_norm import HostSyncBatchNorm, synchronise

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
images = torch.rand(6, 3, 8, 8) * torch.arange(1.0, 7.0)[:, None, None, None]
with taking_part() as ranks:
    ranks.join(torch.device("cpu"))
    if ranks.size > 1:
        synchronise(model, torch.device("cpu"))
        assert isinstance(model[1], HostSyncBatchNorm)
    network = ranks.wrapped(model)
    share = [images[:4], images[4:]][ranks.rank] if ranks.size > 1 else images
    loss = network(share).square().sum() * ranks.size
    loss.backward()
    if ranks.first:
        state = {**dict(model.named_buffers()), **{f"{n}.grad": p.grad for n, p in model.named_parameters()}}
        torch.save(state, sys.argv[1])
"""


def test_synchronised_batch_norms_see_the_images_of_all_processes(tmp_path: Path) -> None:
    """Unequal shares of 4 and 2 images: statistics and gradients are torch's batch norm's over all six."""
    script = tmp_path / "script.py"
    script.write_text(SYNCED)
    two_processes(script, tmp_path / "two.pt")
    subprocess.run([sys.executable, str(script), str(tmp_path / "one.pt")], check=True, timeout=120)
    two, one = (torch.load(tmp_path / name, weights_only=True) for name in ("two.pt", "one.pt"))
    assert one.keys() == two.keys() and len(one) == 8
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


ONE_VALUE = """\
import torch
from toolbox.engine.distributed import taking_part
from toolbox.engine.sync_norm import HostSyncBatchNorm

norm = HostSyncBatchNorm(4)
with taking_part() as ranks:
    ranks.join(torch.device("cpu"))
    try:
        norm(torch.rand(1 if ranks.first else 0, 4))
    except ValueError as error:
        assert "Expected more than 1 value per channel when training" in str(error)
    else:
        raise AssertionError("the variance of one value is nobody's")
assert norm.running_var.isfinite().all()
"""


def test_a_synchronised_batch_norm_refuses_a_single_value_as_torchs_does(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ONE_VALUE)
    two_processes(script)


EMPTY = """\
import sys
import torch
from toolbox.engine.distributed import taking_part
from toolbox.engine.sync_norm import HostSyncBatchNorm

torch.manual_seed(0)
images = torch.rand(6, 4, 8, 8).bfloat16()
norm = HostSyncBatchNorm(4)
with taking_part() as ranks:
    ranks.join(torch.device("cpu"))
    nothing = norm(torch.zeros(0, 4, 8, 8, requires_grad=True))
    nothing.sum().backward()
    before = {name: value.clone() for name, value in norm.named_buffers()}
    out = norm(images[:0] if ranks.first else images)  # one process alone has values
    if not ranks.first:
        found = {"nothing": nothing.detach(), "before": before, "out": out.detach(), "norm": norm.state_dict()}
        torch.save(found, sys.argv[1])
"""


def test_synchronised_batch_norms_bear_processes_without_regions_and_bfloat16(tmp_path: Path) -> None:
    """As torch's batch norm of one process: no values leave the statistics, and those of 16 bits are summed in 32."""
    script = tmp_path / "script.py"
    script.write_text(EMPTY)
    two_processes(script, tmp_path / "two.pt")
    found = torch.load(tmp_path / "two.pt", weights_only=True)
    torch.manual_seed(0)
    images, norm = torch.rand(6, 4, 8, 8).bfloat16(), torch.nn.BatchNorm2d(4)
    assert found["nothing"].shape == norm(torch.zeros(0, 4, 8, 8)).shape
    torch.testing.assert_close(found["before"], dict(norm.named_buffers()))
    expected = norm(images)
    torch.testing.assert_close(found["out"], expected, rtol=0, atol=2**-7)  # a last bit of values up to 2
    torch.testing.assert_close(found["norm"], dict(norm.state_dict()), rtol=1e-5, atol=1e-6)


HUGE = """\
import sys

sys.path.insert(0, sys.argv[2])
import torch
from conftest import TinyDetector, tiny_config
from toolbox.engine import TrainingDiverged, train
from toolbox.plan import Plan

class Huge(TinyDetector):
    def forward(self, images, targets):
        return {name: loss * 1e25 for name, loss in super().forward(images, targets).items()}

config = tiny_config.__wrapped__()(steps=2, clip_norm=1.0)
config.model = Plan(Huge, {})
try:
    train(config, sys.argv[1])
except TrainingDiverged:
    # A group that is not left has threads, and these abort a process that ends: about one time in eight.
    assert not torch.distributed.is_initialized()
else:
    raise AssertionError("the run has not ended")
"""


def test_a_norm_that_no_process_alone_made_infinite_leaves_one_capsule(tmp_path: Path) -> None:
    """The squares of finite gradients overflow."""
    script = tmp_path / "script.py"
    script.write_text(HUGE)
    two_processes(script, tmp_path / "run", SCRIPT.parent)
    assert [path.name for path in (tmp_path / "run/capsules").iterdir()] == ["step_000001.safetensors"]


def test_who_a_process_is_stands_in_torchruns_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks_of_environment() == ALONE == Ranks(0, 1, 0)
    values = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert ranks_of_environment() == Ranks(rank=3, size=8, local=1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert ranks_of_environment() == Ranks(rank=3, size=8, local=1, here=4)
    monkeypatch.delenv("MASTER_ADDR")  # left over from something else
    assert ranks_of_environment() == ALONE


def test_a_machine_with_fewer_gpus_than_processes_is_told_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert Ranks(5, 8, 1).device(torch.device("cuda")) == torch.device("cuda:1") and chosen == [1]
    assert Ranks(5, 8, 1).device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(DeviceError, match="process 2 of this machine has no GPU .* sees 2; .* --nproc-per-node 2"):
        Ranks(6, 8, 2).device(torch.device("cuda"))


def test_a_step_that_cannot_be_shared_names_what_fits(tiny_config: MakeConfig) -> None:
    with pytest.raises(
        ConfigError, match=r"train.batch: batch \(6\) cannot be shared equally by 4 processes; batch 4 or 8"
    ):
        check_shares(tiny_config(batch=6), 4)
    check_shares(tiny_config(batch=6), 3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system's own means, as on Linux")
def test_processes_that_are_still_starting_die_with_torchrun(tmp_path: Path) -> None:
    """They would meet nobody, and hold the lock of the run for an hour."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    config = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    launched = subprocess.Popen(
        [*command, "toolbox.cli", "train", str(config), "--run", str(tmp_path / "run")], stderr=subprocess.DEVNULL
    )
    children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children")
    until(lambda: len(children.read_text().split()) == 2, "torchrun has started two processes")
    started = [Path("/proc") / pid for pid in children.read_text().split()]
    time.sleep(1)  # less than it takes to import torch
    launched.kill()
    launched.wait()
    until(lambda: not any(process.exists() for process in started), "both are dead")


def until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
