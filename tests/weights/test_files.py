"""Model files: what is written is read, what is damaged is said, and a crash leaves the old file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from toolbox.errors import CheckpointError, StorageError
from toolbox.weights import load_model, load_weights, replacing, save_model


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(3)}
    save_model(tmp_path / "m.safetensors", tensors, {"classes": '["ä"]'})
    loaded, metadata = load_model(tmp_path / "m.safetensors")
    assert metadata == {"classes": '["ä"]'}
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_tied_weights_are_saved_and_stay_tied(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        net[1].weight = net[0].weight
        return net

    source, target = tied(), tied()
    save_model(tmp_path / "m.safetensors", source.state_dict(), {})
    load_weights(target, load_model(tmp_path / "m.safetensors")[0], "m")
    assert torch.equal(target[0].weight, source[0].weight) and target[0].weight is target[1].weight


def test_views_of_one_tensor_are_saved(tmp_path: Path) -> None:
    whole = torch.arange(4.0)
    save_model(tmp_path / "m.safetensors", {"head": whole[:2], "tail": whole[2:]}, {})
    assert load_model(tmp_path / "m.safetensors")[0]["tail"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"not a model at all, but text", "not a weight file"),
        (b"PK\x03\x04 and so on", "PyTorch pickle"),
    ],
)
def test_a_file_that_is_no_model_is_said_to_be_so(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "m.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"m.safetensors: .*{message}"):
        load_model(path)


def test_a_checkpoint_points_at_the_model_beside_it(tmp_path: Path) -> None:
    torch.save({"step": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="PyTorch pickle"):
        load_model(tmp_path / "checkpoint.pt")
    save_model(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match=r"checkpoint.pt: .*; use model.safetensors beside it"):
        load_model(tmp_path / "checkpoint.pt")


def test_a_truncated_file_is_said_to_be_so(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, {"a": torch.zeros(1000)}, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="may be truncated"):
        load_model(path)


def test_everything_that_does_not_fit_comes_in_one_message() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = {**net.state_dict(), "0.bias": torch.zeros(5), "2.weight": torch.zeros(1)}
    del state["1.weight"], state["1.num_batches_tracked"]
    with pytest.raises(CheckpointError) as error:
        load_weights(net, state, "other.safetensors")
    assert str(error.value).splitlines()[:4] == [
        "other.safetensors: the weights do not fit the model: 4 of its 7 tensors fit",
        "  1 missing from the file: 1.weight",
        "  1 in the file but not in the model: 2.weight",
        "  1 of another shape: 0.bias (5,), the model has (3,)",
    ]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_text("old")
    with (
        pytest.raises(StorageError, match="disk is full.*the checkpoint.pt of before is whole"),
        replacing(path) as temporary,
    ):
        temporary.write_text("ne")
        raise OSError("disk is full")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_model_file_has_the_permissions_of_any_other_file(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", {"a": torch.zeros(1)}, {})
    (tmp_path / "other").touch()
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_same_model_is_the_same_file(tmp_path: Path) -> None:
    """safetensors itself writes its metadata in another order each time."""
    metadata = {f"key {number}": 'é "quoted"\n\t\u0001 \\ value' for number in range(20)}
    weights = {"b": torch.rand(3), "a": torch.rand(2, 2).half(), "none": torch.zeros(0)}
    for number in range(4):
        save_model(tmp_path / f"{number}.safetensors", weights, metadata)
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(4)}) == 1
    again, told = load_model(tmp_path / "0.safetensors")
    assert told == metadata and all(torch.equal(again[name], weights[name]) for name in weights)
