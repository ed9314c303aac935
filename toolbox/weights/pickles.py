"""Pickles of weights, read without running anything that they hold.

A pickle is a program. Detectron2's model zoo publishes plain ones, so they are read here by an interpreter that knows
data alone: numbers, text, containers and arrays of numbers. Whatever else a file asks for is refused before it exists.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolbox.errors import CheckpointError
from toolbox.weights.files import kind_of_file, not_weights
from toolbox.weights.pickled_arrays import ArrayMaker, Global, Refused, check_keys

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(path: str | Path) -> Any:
    """Read a pickle of plain data.

    Args:
        path: the file.

    Returns:
        Containers, numbers and text as they are, arrays as `PickledArray`.

    Raises:
        CheckpointError: there is no such file, it is damaged or no pickle, or it holds anything but data.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file")
    data = path.read_bytes()
    if kind_of_file(path) == "empty":
        raise CheckpointError(f"{path}: the file is empty; copy it again")
    try:
        return _Interpreter(data).run()
    except Refused as error:
        raise CheckpointError(
            f"{path}: {error}, which is not loaded, since it could run code; save the weights alone, "
            "as a dict of numpy arrays or by torch.save(model.state_dict(), …)"
        ) from None
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
        if kind_of_file(path) == "other" and not data.startswith((b"(", b"}", b"]", b"c")):  # how protocol 0 begins
            raise CheckpointError(f"{path}: {not_weights(path)}; expected a .pkl of Detectron2's model zoo") from None
        raise CheckpointError(
            f"{path}: not a whole pickle of weights ({error}); compare its size with the original's and copy it again"
        ) from error


class _Interpreter:
    """The stack machine of the pickle format (Python's pickletools.py describes it), for data alone."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        # Arrays are encoded text first in protocol 2, so an honest file is counted twice.
        self.maker = ArrayMaker(budget=2 * len(data))
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.steps: dict[str, Callable[[Any], object]] = {
            **dict.fromkeys(("PROTO", "FRAME"), lambda _: None),
            **dict.fromkeys(_LITERALS, self.stack.append),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._put),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda index: self.stack.append(self.memo[index])),
            "MEMOIZE": lambda _: self._put(len(self.memo)),
            "MARK": lambda _: self.marks.append(len(self.stack)),
            "POP": lambda _: self._take(1),
            "POP_MARK": lambda _: self._marked(),
            "DUP": lambda _: self.stack.append(self.stack[-1]),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "TUPLE": lambda _: self.stack.append(tuple(self._marked())),
            "LIST": lambda _: self.stack.append(self._marked()),
            "DICT": lambda _: self._set({}, self._marked()),
            "APPEND": lambda _: self._extend(self._take(1)),
            "APPENDS": lambda _: self._extend(self._marked()),
            "SETITEM": lambda _: self._set_items(self._take(2)),
            "SETITEMS": lambda _: self._set_items(self._marked()),
            "GLOBAL": lambda name: self._global(name.replace(" ", ".", 1)),
            "STACK_GLOBAL": lambda _: self._global(".".join(self._take(2))),
            "REDUCE": lambda _: self._reduce(),
            "BUILD": lambda _: self._build(),
        }

    def run(self) -> Any:
        """What the file holds."""
        for opcode, argument, _ in pickletools.genops(io.BytesIO(self.data)):
            name = opcode.name
            if name == "STOP":
                return self._take(1)[0]
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _TUPLES:
                self.stack.append(tuple(self._take(_TUPLES[name])))
            elif name in self.steps:
                self.steps[name](argument)
            else:  # calls of classes, persistent ids, extension codes
                raise Refused(f"uses the pickle instruction {name}")
        raise ValueError("it ends before its last instruction")

    def _take(self, count: int) -> list[Any]:
        """Take `count` values off the stack."""
        start = len(self.stack) - count
        if start < 0:
            raise IndexError("its stack is empty")
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def _marked(self) -> list[Any]:
        """Take what lies above the last mark off the stack."""
        return self._take(len(self.stack) - self.marks.pop())

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError("it appends to what is no list")
        self.stack[-1].extend(values)

    def _set_items(self, pairs: list[Any]) -> None:
        (target,) = self._take(1)
        self._set(target, pairs)

    def _set(self, target: Any, pairs: list[Any]) -> None:
        if not isinstance(target, dict):
            raise TypeError("it sets items of what is no dict")
        check_keys(pairs[::2])
        target.update(zip(pairs[::2], pairs[1::2], strict=True))
        self.stack.append(target)

    def _global(self, name: str) -> None:
        if name not in self.maker.globals:
            raise Refused(f"asks for {name}")
        self.stack.append(self.maker.globals[name])

    def _reduce(self) -> None:
        function, arguments = self._take(2)
        if not isinstance(function, Global) or function.call is None:
            raise Refused(f"calls {function.name if isinstance(function, Global) else type(function).__name__}")
        self.stack.append(function.call(*arguments))

    def _build(self) -> None:
        target, state = self._take(2)
        self.maker.fill(target, state)
        self.stack.append(target)
