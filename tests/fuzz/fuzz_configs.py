"""YAML and overrides, made and mutated: every one is refused with a message, or builds a model (without memory)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from mutations import ODD, garbled, mutated, paths, trees
from tally import many, refused_or_taken

from toolbox.engine.optim import build_optimizer
from toolbox.models.builder import check_wiring
from toolbox.plan import Plan
from toolbox.registry import FAMILIES
from toolbox.schema import config_from_text
from toolbox.sections import register_builtin
from toolbox.signatures import signature_of
from toolbox.structures import Skeleton
from toolbox.yaml_nodes import Findings, parse, write, write_inline

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "configs").rglob("*.yaml"))
    if "paper" not in path.relative_to(ROOT).parts and "weights: pretrained" not in path.read_text(encoding="utf-8")
]
SKELETON = Skeleton(names=("a", "b", "c"), sigmas=(0.05,) * 3)

register_builtin()
TREES: list[Any] = [parse(text, "fuzz.yaml", Findings()).plain() for text in TEXTS]
# Every component's every argument somewhere, so that mutations reach them all.
WORDS = sorted(
    {name for family in FAMILIES.values() for name in family}
    | {s for family in FAMILIES.values() for name in family for s in signature_of(family.get(name), family).settings}
)


def components() -> list[dict[str, Any]]:
    """`{type: Name, …}` of every component, with its defaults written out where YAML can."""
    found = []
    for family in FAMILIES.values():
        for name in family:
            found.append(Plan(family.get(name), {}, family=family).to_dict())
    return found


COMPONENTS = components()


def build(text: str, overrides: list[str] | None = None) -> None:
    """As far as `rcnn check --no-data` and the moment before training go."""
    config = config_from_text(text, "fuzz.yaml", overrides or ())
    assert config_from_text(config.to_yaml(), "resolved.yaml").to_yaml() == config.to_yaml()
    model = check_wiring(config, classes=["a", "b"], skeleton=SKELETON, weights=False)
    for transform in config.data.transforms:
        transform.build()
    schedule = config.train.schedule.build(steps=config.train.steps)
    assert schedule(0) == schedule(0)
    build_optimizer(config, model)


@many
@given(st.sampled_from(TREES).flatmap(lambda tree: mutated(tree, odd=[*ODD, *COMPONENTS], words=WORDS)))
def fuzz_mutated_tree(tree: Any) -> None:
    with refused_or_taken("config, tree mutated"):
        build(write(tree))


@many
@given(st.sampled_from(TEXTS).flatmap(garbled))
def fuzz_garbled_text(text: str) -> None:
    with refused_or_taken("config, text garbled"):
        build(text)


@many
@given(st.dictionaries(st.sampled_from(["model", "data", "train", "test", "plugins", "x"]), trees, max_size=6))
def fuzz_made_tree(tree: Any) -> None:
    with refused_or_taken("config, made"):
        build(write(tree))


@many
@given(st.text(max_size=60))
def fuzz_any_text(text: str) -> None:
    with refused_or_taken("config, any text"):
        build(text)


KEYS = [".".join(map(str, path)) for tree in TREES for path in paths(tree) if path]


@many
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(KEYS), st.sampled_from([*ODD, *COMPONENTS])).map(
                lambda pair: f"{pair[0]}={write_inline(pair[1])}"
            ),
            st.tuples(st.sampled_from(KEYS), st.text(max_size=10)).map("=".join),
            st.text(max_size=20),
        ),
        min_size=1,
        max_size=3,
    )
)
def fuzz_overrides(overrides: list[str]) -> None:
    with refused_or_taken("overrides"):
        build(TEXTS[-1], overrides)
