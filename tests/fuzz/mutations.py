"""Inputs that went wrong: trees with values exchanged and keys lost or misspelt, text and bytes cut and doubled."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

# What YAML and JSON can say and people do write: of every type, at every limit.
ODD: Sequence[Any] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 1.5, -0.5, 1e-3, 1e30, -1e30, 2**31, 2**63, 2**64, -(2**63), 10**30,
    float("nan"), float("inf"), float("-inf"), "", " ", "a", "0", "1e-3", "null", "true", "ResNet", "../..", "/", "~",
    "\x00", "ü", "𝕏", "a.b", "x" * 300, [], [[]], {}, {"type": None}, {"type": "ResNet"}, {"a": 1}, [None], [0], [1, 2],
    [1, 2, 3, 4], [-1, -1, -1, -1], [0, 0, 0, 0], ["a"], [{}], {"counts": "", "size": [0, 0]},
    {"counts": [], "size": []},
)  # fmt: skip


def paths(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a tree of mappings and lists."""
    yield at
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from paths(value, (*at, key))


def get(tree: Any, path: Sequence[Any]) -> Any:
    for step in path:
        tree = tree[step]
    return tree


@st.composite
def mutated(draw: st.DrawFn, tree: Any, *, odd: Sequence[Any] = ODD, most: int = 3, words: Sequence[str] = ()) -> Any:
    """A tree with one to `most` changes; `words` are names that might stand anywhere."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        places = [path for path in paths(tree) if path]
        if not places:
            break
        *parent, key = draw(st.sampled_from(places))
        holder = get(tree, parent)
        change = draw(st.sampled_from(["replace", "delete", "rename", "double", "graft", "word", "number"]))
        if change == "replace":
            holder[key] = copy.deepcopy(draw(st.sampled_from(odd)))
        elif change == "delete":
            del holder[key]
        elif change == "rename" and isinstance(holder, dict):
            holder[draw(misspelt(str(key)))] = holder.pop(key)
        elif change == "double" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif change == "graft":
            holder[key] = copy.deepcopy(get(tree, draw(st.sampled_from(places))))
        elif change == "word" and words:
            holder[key] = draw(st.sampled_from(words))
        elif change == "number":
            holder[key] = draw(st.one_of(st.integers(-10, 3000), st.floats(width=32), st.integers()))
    return tree


@st.composite
def misspelt(draw: st.DrawFn, word: str) -> str:
    at = draw(st.integers(0, max(0, len(word) - 1)))
    return draw(
        st.sampled_from([word[:at] + word[at + 1 :], word[:at] + "x" + word[at:], word.upper(), word + "s", word[::-1]])
    )


@st.composite
def garbled(draw: st.DrawFn, text: str | bytes, most: int = 4) -> Any:
    """Text or bytes with pieces cut out, doubled, moved or exchanged."""
    pieces: Any = (
        [bytes([n]) for n in (0, 9, 10, 34, 45, 92, 123, 125, 128, 255)]
        + [b"\xff\xd9", b"\x89PNG", b"II*\x00", b"1e999"]
        if isinstance(text, bytes)
        else list("\t\n\r :,-#&*!|>'\"%@`{}[]~\x00\x85\u2028ü")
        + ["  ", "\n  ", ": ", "- ", "{", "}", "<<: ", "!!python", "---", "..."]
    )
    for _ in range(draw(st.integers(1, most))):
        a, b = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        b = min(b, a + draw(st.integers(0, 40)))
        change = draw(st.sampled_from(["cut", "insert", "double", "truncate", "swap"]))
        if change == "cut":
            text = text[:a] + text[b:]
        elif change == "insert":
            text = text[:a] + draw(st.sampled_from(pieces)) + text[a:]
        elif change == "double":
            text = text[:b] + text[a:b] + text[b:]
        elif change == "truncate" and draw(st.booleans()):
            text = text[:a]
        elif change == "swap":
            text = text[:a] + text[b : b + 5] + text[a:b] + text[b + 5 :]
    return text


trees = st.recursive(
    st.sampled_from([value for value in ODD if not isinstance(value, (list, dict))])
    | st.text(max_size=8)
    | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
