"""Pickled checkpoints: data is read as pickle itself reads it, and nothing in a file is ever run."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from toolbox.errors import CheckpointError
from toolbox.weights.foreign_files import read_checkpoint
from toolbox.weights.pickles import read_pickle

ARRAYS = {
    "floats": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">f4"),
    "halves": np.array([0.5, 1.5], dtype=np.float16),
    "whole": np.arange(4),
    "empty": np.zeros((0, 3), dtype=np.float32),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_come_back_from_every_protocol(tmp_path: Path, protocol: int) -> None:
    content = {"model": OrderedDict(ARRAYS), "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    checkpoint = read_checkpoint(path)
    assert checkpoint.author == "Detectron2 Model Zoo"
    assert checkpoint.state.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        tensor = checkpoint.state[name]
        assert tensor.shape == array.shape and tensor.numpy().dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(tensor.numpy(), array)


def test_plain_data_is_read_as_pickle_reads_it(tmp_path: Path) -> None:
    content = {"a": [1, -2, 2**40, 3.5, True, None, "ä", b"\xff"], "b": ({"c": (1, (2, 3))},), "d": {}, "e": []}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "data.pkl").write_bytes(pickle.dumps(content, protocol))
        assert read_pickle(tmp_path / "data.pkl") == content


def test_an_array_that_python_2_wrote_is_read(tmp_path: Path) -> None:
    # As cPickle of Python 2 writes np.array([1, 2], "<f4"): its bytes are a str.
    written = (
        b"\x80\x02}U\x05blobs}U\x07conv1_wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x00\x00\x80?\x00\x00\x00@tbss."
    )
    path = tmp_path / "R-50.pkl"
    path.write_bytes(written)
    checkpoint = read_checkpoint(path)
    assert checkpoint.author == "Caffe2" and checkpoint.state["conv1_w"].tolist() == [1.0, 2.0]


class Reduced:
    """Pickles as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


class Referred(pickle.Pickler):
    """Writes a Reduced as a persistent id that holds it."""

    def persistent_id(self, value: Any) -> Any:
        return ("storage", [Reduced(os.system, ("true",))]) if isinstance(value, Referred) else None


class Array(np.ndarray):
    """A subclass: its reconstruction would call into this module."""


def by_persistent_id(marker: Path) -> bytes:
    buffer = io.BytesIO()
    pickler = Referred(buffer, protocol=2)
    pickler.dump({"model": {"w": pickler}})
    return buffer.getvalue()


def array_state(shape: tuple[int, ...], content: bytes, kind: str = "f4") -> bytes:
    """A pickle of an array whose state is written by hand."""
    call = (np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, shape, np.dtype(kind), False, content))
    return pickle.dumps({"model": {"w": Reduced(*call)}}, protocol=4)


ATTACKS = {
    "a call of the shell": lambda marker: pickle.dumps(Reduced(os.system, (f"touch {marker}",))),
    "a call of eval": lambda marker: pickle.dumps({"model": {"w": Reduced(eval, (f"open('{marker}', 'w')",))}}),
    "the same in protocol 0": lambda marker: pickle.dumps([Reduced(exec, (f"open({str(marker)!r}, 'w')",))], 0),
    "a call inside a key": lambda marker: pickle.dumps({(Reduced(os.mkdir, (str(marker),)),): 1}),
    "a persistent id": by_persistent_id,
    "an attribute of what is allowed": lambda marker: pickle.dumps(Reduced(getattr, (OrderedDict, "__init__"))),
    "an object of a class": lambda marker: pickle.dumps({"model": Path("x")}),
    "a module's attribute, dotted": lambda marker: b"\x80\x04\x8c\x05numpy\x8c\x0ectypeslib.load\x93.",
    "a function called by the state": lambda marker: b"\x80\x02ccollections\nOrderedDict\n}U\x01acos\nsystem\nsb.",
    "an array of objects": lambda marker: pickle.dumps({"model": {"w": np.array([Path("x")], dtype=object)}}),
    "a subclass of arrays": lambda marker: pickle.dumps({"model": {"w": np.zeros(3).view(Array)}}),
    "records": lambda marker: pickle.dumps({"model": {"w": np.zeros(2, dtype=[("a", "f4")])}}),
    "records that call themselves floats": lambda marker: (
        b"\x80\x02cnumpy\ndtype\nU\x02f4\x85R(K\x03U\x01<NU\x01a\x85NK\x08K\x04K\x00tb."
    ),
    "a call of what is only a name": lambda marker: b"\x80\x02cnumpy\nndarray\nK\x01\x85R.",
    "an extension code": lambda marker: b"\x80\x02\x82\x01.",
    "bytes of another size": lambda marker: b"\x80\x02cbuiltins\nbytes\nJ\x00\x00\x00\x40\x85R.",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_data_is_refused_and_not_run(tmp_path: Path, attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, path = tmp_path / "run", tmp_path / "model.pkl"
    path.write_bytes(ATTACKS[attack](marker))
    imported = []
    monkeypatch.setattr(builtins, "__import__", _noting(imported, builtins.__import__))
    with pytest.raises(CheckpointError, match="model.pkl: ") as error:
        read_checkpoint(path)
    assert not marker.exists()
    assert not {"os", "posix", "nt", "builtins", "pathlib"} & set(imported)
    assert attack == "bytes of another size" or "could run code" in str(error.value)


def _noting(names: list[str], original: Any) -> Any:
    def noted(name: str, *arguments: Any, **more: Any) -> Any:
        names.append(name)
        return original(name, *arguments, **more)

    return noted


def test_the_message_names_what_a_file_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(ATTACKS["a call of eval"](tmp_path / "run"))
    with pytest.raises(
        CheckpointError, match=r"model\.pkl: asks for (__builtin__|builtins)\.eval, which is not loaded"
    ):
        read_pickle(path)


def test_a_torch_file_is_refused_the_same_way(tmp_path: Path) -> None:
    path, marker = tmp_path / "model.pth", tmp_path / "run"
    torch.save({"model": {"w": torch.zeros(1)}, "hook": Reduced(os.system, (f"touch {marker}",))}, path)
    with pytest.raises(CheckpointError, match=r"model\.pth: asks for (posix|nt)\.system"):
        read_checkpoint(path)
    assert not marker.exists()


# A hundred pairs of the pair before have 2^100 ends; a million tuples in each other are deeper than the stack.
PAIRS, NESTED = b")" + b"2\x86" * 100, b")" + b"\x85" * 10**6
MADE = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85R(K\x01"  # an array's state, up to its shape
TYPE = b"cnumpy\ndtype\n"
OVERGROWN = {
    "pairs as a key": (b"}" + PAIRS + b"K\x01s.", "a tuple is the key of a dict"),
    "numbers of one hash as keys": (b"}\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"K\x01s.", "more than 60 bits"),
    "nested as a key": (b"}" + NESTED + b"K\x01s.", "a tuple is the key of a dict"),
    "pairs as a key of an ordered dict": (
        b"ccollections\nOrderedDict\n]" + PAIRS + b"K\x01\x86a\x85R.",
        "a tuple is the key of a dict",
    ),
    "pairs as a type": (TYPE + PAIRS + b"\x85R.", "holds arrays of type a tuple"),
    "nested as a type": (TYPE + NESTED + b"\x85R.", "holds arrays of type a tuple"),
    "pairs as an encoding": (b"c_codecs\nencode\nU\x01a" + PAIRS + b"\x86R.", "encodes text as a tuple"),
    "pairs as a shape": (MADE + PAIRS + TYPE + b"U\x02f4\x85R\x89U\x00tb.", "the shape of an array is no tuple"),
    "nested as a shape": (MADE + NESTED + TYPE + b"U\x02f4\x85R\x89U\x00tb.", "the shape of an array is no tuple"),
    "the same pairs in many dicts": (
        b"("
        + b"U\x01aK\x01\x86" * 1000
        + b"lq\x00ccollections\nOrderedDict\nq\x010"
        + b"h\x01h\x00\x85R0" * 100
        + b".",
        "larger than the file",
    ),
    "a number of 20 bytes": (b"}U\x01a\x8a\x14" + b"\x7f" * 20 + b"s.", "'a' is a number that no tensor holds"),
}


@pytest.mark.parametrize("growth", OVERGROWN)
def test_a_small_file_takes_no_more_time_memory_or_stack_than_its_size(tmp_path: Path, growth: str) -> None:
    content, message = OVERGROWN[growth]
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02" + content)
    with pytest.raises(CheckpointError, match=f"model.pkl: .*{message}"):
        read_checkpoint(path)


def test_items_of_an_ordered_dict_as_python_2_writes_them_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02ccollections\nOrderedDict\n](]U\x01aK\x01e]U\x01bK\x02ee\x85R.".replace(b"]U", b"](U"))
    assert list(read_pickle(path).items()) == [("a", 1), ("b", 2)]


def test_an_author_that_is_no_text_is_no_author(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {"w": np.zeros(1)}, "__author__": ["x"]}, protocol=2))
    assert read_checkpoint(path).author == ""


WHOLE = pickle.dumps({"model": ARRAYS}, protocol=2)
DAMAGED = {
    "cut short": (WHOLE[: len(WHOLE) // 2], "not a whole pickle"),
    "without its end": (WHOLE[:-1], "not a whole pickle"),
    "a web page": (b"<!DOCTYPE html><html>", "web page"),
    "empty": (b"", "empty"),
    "other bytes": (bytes(range(200, 256)) * 4, "not a weight file"),
    "another shape than its bytes": (array_state((10**12,), b"\0" * 8), "takes 4000000000000 bytes, but 8"),
    "a negative side": (array_state((-1, -2), b"\0" * 8), "the shape"),
    "text of 8 EiB": (b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"abc.", "not a whole pickle"),
    "a place of its memory far away": (b"\x80\x02]r\xff\xff\xff\x7f.", "holds no weights by name, but a list"),
    "steps on an empty stack": (b"\x80\x02Rb.", "its stack is empty"),
    "a mark that is not there": (b"\x80\x02t.", "not a whole pickle"),
    "a list as a key": (b"\x80\x02}]K\x01s.", "not a whole pickle"),
    "no weights": (pickle.dumps({"model": {}}), "holds no weights"),
    "a number": (pickle.dumps(3), "holds no weights by name, but a int"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_said_to_be_so(tmp_path: Path, damage: str) -> None:
    content, message = DAMAGED[damage]
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"model.pkl: .*{message}"):
        read_checkpoint(path)


def test_arrays_cannot_outgrow_their_file(tmp_path: Path) -> None:
    # One text of 1 MB, and 100 arrays made of it by reference: 100 MB of a file of 1 MB.
    content = b"\0" * 2**20
    call = (np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (2**18,), np.dtype("f4"), False, content))
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {str(i): Reduced(*call) for i in range(100)}}, protocol=4))
    assert path.stat().st_size < 2**21
    with pytest.raises(CheckpointError, match="its arrays are larger than the file"):
        read_checkpoint(path)


def test_mmengines_training_log_beside_the_weights_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.array([1.0, 2.0])
            self._last = np.float64(2.0)
            self._methods = {"mean": HistoryBuffer.mean}

        def mean(self) -> None: ...

    name = "mmengine.logging.history_buffer"
    module = ModuleType(name)
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = name, "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = name, "HistoryBuffer.mean"
    with monkeypatch.context() as patch:
        for part in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, part, ModuleType(part))
        patch.setitem(sys.modules, name, module)
        content = {"state_dict": {"w": torch.ones(2)}, "meta": {"mmdet_version": "3.3.0"}, "log": HistoryBuffer()}
        torch.save(content, tmp_path / "epoch_12.pth")
    with pytest.raises(Exception, match="HistoryBuffer"):
        torch.load(tmp_path / "epoch_12.pth", weights_only=True)
    checkpoint = read_checkpoint(tmp_path / "epoch_12.pth")
    assert checkpoint.state["w"].tolist() == [1.0, 1.0] and checkpoint.meta["mmdet_version"] == "3.3.0"
