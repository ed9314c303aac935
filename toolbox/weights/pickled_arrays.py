"""What a pickle of weights may call: the makers of numpy's arrays, each with a stand-in that only checks and copies."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_KINDS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}  # as torch has them
_MOST_AXES = 64  # numpy's
_ENTRY = 4  # bytes that an entry of a dict takes at least in an honest file


class Refused(Exception):
    """A file asks for something that is not data."""


class PickledArray:
    """An array under construction: a pickle makes it empty and fills it later.

    Attributes:
        value: the array, None until it is filled.
    """

    def __init__(self, value: np.ndarray | None = None) -> None:
        self.value = value


@dataclass
class PickledType:
    """The type of an array's elements, as a pickle spells it."""

    kind: str
    order: Any = "="

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.kind).newbyteorder(self.order)


@dataclass(frozen=True)
class Global:
    """A name of Python's that a file may use, and what stands in for it here; None is never called."""

    name: str
    call: Callable[..., Any] | None


class ArrayMaker:
    """Makes the arrays of one file.

    Args:
        budget: bytes that they may hold together: a file could use the same text a thousand times.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        calls: dict[str, Callable[..., Any] | None] = {
            "collections.OrderedDict": self.ordered_dict,
            "_codecs.encode": self.encode,
            "numpy.dtype": element_type,
            "numpy.ndarray": None,
            "builtins.bytes": bytes_of_nothing,
            "__builtin__.bytes": bytes_of_nothing,
        }
        for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
            calls[f"{core}.multiarray._reconstruct"] = empty_array
            calls[f"{core}.multiarray.scalar"] = self.scalar
            calls[f"{core}.numeric._frombuffer"] = self.from_buffer
        self.globals = {name: Global(name, call) for name, call in calls.items()}

    def ordered_dict(self, pairs: Sequence[tuple[Any, Any]] = ()) -> OrderedDict[Any, Any]:
        """An ordered dict; Python 2 writes its items as the argument."""
        self._spend(_ENTRY * len(pairs))
        check_keys(key for key, _ in pairs)
        return OrderedDict(pairs)

    def encode(self, text: str, encoding: str = "latin1") -> bytes:
        """How Python 3 writes bytes in protocol 2."""
        if encoding not in ("latin1", "latin-1"):
            raise Refused(f"encodes text as {_shown(encoding)}")
        self._spend(len(text))
        return text.encode("latin1")

    def scalar(self, dtype: PickledType, content: str | bytes) -> Any:
        """A single number."""
        return self.array(content, dtype, (), "C").item()

    def from_buffer(self, content: bytes, dtype: PickledType, shape: tuple[int, ...], order: str) -> PickledArray:
        """How protocol 5 writes an array."""
        return PickledArray(self.array(content, dtype, shape, order))

    def fill(self, target: Any, state: Any) -> None:
        """Give an array or a type the state that the file holds for it."""
        if isinstance(target, PickledType):
            _, order, *rest = state
            if order not in ("<", ">", "|", "=") or any(part is not None for part in rest[:3]):
                raise Refused("holds arrays of records")
            target.order = order
        elif isinstance(target, PickledArray):
            _, shape, dtype, by_column, content = state
            target.value = self.array(content, dtype, shape, "F" if by_column else "C")
        else:
            raise Refused(f"sets the state of a {type(target).__name__}")

    def array(self, content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        """The array, of the machine's byte order, with memory of its own."""
        if not isinstance(dtype, PickledType) or order not in ("C", "F"):
            raise Refused("holds an array of no known type")
        if not isinstance(shape, tuple) or not all(type(side) is int for side in shape) or len(shape) > _MOST_AXES:
            raise ValueError("the shape of an array is no tuple of sizes")
        if any(side < 0 for side in shape):
            raise ValueError(f"an array has the shape {shape}")
        # Python 2 wrote bytes as text of Latin-1; anything but text and bytes would be a list of objects.
        raw = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(raw, bytes | bytearray):
            raise Refused("holds an array of objects")
        expected = math.prod(shape) * dtype.numpy().itemsize
        if len(raw) != expected:
            raise ValueError(f"an array of shape {shape} takes {expected} bytes, but {len(raw)} are there")
        self._spend(expected)
        values = np.frombuffer(raw, dtype.numpy()).reshape(shape, order=order)
        return values.astype(values.dtype.newbyteorder("="), order="C")

    def _spend(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise ValueError("its arrays are larger than the file")


_LARGEST_KEY = 2**60  # Python hashes whole numbers modulo 2⁶¹ − 1: its multiples would all be in one place of a dict


def check_keys(keys: Iterable[Any]) -> None:
    """Names and numbers are keys; to hash tuples in tuples takes a file as long, and the stack as deep, as it likes.

    Raises:
        TypeError: another key.
    """
    for key in keys:
        if not isinstance(key, str | bytes | int | float | None):
            raise TypeError(f"a {type(key).__name__} is the key of a dict")
        if isinstance(key, int) and abs(key) > _LARGEST_KEY:
            raise TypeError("a dict has a key of more than 60 bits")


def _shown(value: Any) -> str:
    """For messages: the text, or what else it is, since containers in containers have no end when they are written."""
    return f"{value:.40}" if isinstance(value, str) else f"a {type(value).__name__}"


def element_type(kind: Any, *_: Any) -> PickledType:
    """`f4` and its like; objects, text and records are refused."""
    if not isinstance(kind, str) or kind not in _KINDS:
        raise Refused(f"holds arrays of type {_shown(kind)}")
    return PickledType(kind)


def bytes_of_nothing() -> bytes:
    """How protocol 2 writes the content of an empty array."""
    return b""


def empty_array(kind: Any, *_: Any) -> PickledArray:
    """An array to be filled; whatever shape the file names here, it is the filling that counts."""
    if not isinstance(kind, Global) or kind.name != "numpy.ndarray":
        raise Refused("builds a class of arrays of its own")
    return PickledArray()
