"""A sweep's YAML: what a variant's config becomes, and what is said of mistakes, each at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolbox.engine.coco_metrics import coco_metrics
from toolbox.engine.sweep import load_sweep
from toolbox.errors import ConfigError
from toolbox.metric_names import METRICS
from toolbox.precheck import precheck
from toolbox.schema import config_from_nodes, load_config
from toolbox.sweep_file import read_sweep
from toolbox.yaml_nodes import Findings

MODEL = """\
model:
  backbone: {type: ResNet, depth: 18, norm: gn}
  neck: {type: FPN, out_channels: 8}
  rpn: {head: {type: ConvRPNHead}, anchors: {sizes: [12, 24, 48, 96, 192]}}
  box:
    extractor: {type: RoIAlign, output_size: 3, sampling_ratio: 2}
    head: {type: TwoFCBoxHead, channels: 16}
"""
REST = """\
data:
  train: {type: Shapes, length: 8}
  val: {type: Shapes, length: 2}
train: {steps: 2, lr: 0.001}
"""
BASE = "base: [model.yaml, rest.yaml]\nmetrics: {AP: bbox.AP}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("model.yaml").write_text(MODEL)
    Path("rest.yaml").write_text(REST)
    Path("whole.yaml").write_text(MODEL + REST)
    return tmp_path


def problems(text: str, *overrides: str, small: bool = False) -> list[str]:
    Path("sweep.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_sweep("sweep.yaml", overrides, small=small)
    return str(caught.value).splitlines()


def values(text: str, *overrides: str, small: bool = False) -> dict[str, dict]:
    """Variant → its resolved config with seed 3."""
    Path("sweep.yaml").write_text(text)
    read = read_sweep("sweep.yaml", overrides, small=small)
    return {v.name: config_from_nodes(v.nodes(3), str(v.base), Findings()).to_dict() for v in read.trained}


def test_a_variant_is_the_base_with_its_values_the_sweep_s_and_the_command_line_s_in_that_order(folder: Path) -> None:
    text = BASE + "set: {train.lr: 0.5, train.batch: 7}\nvariants:\n  a: {set: {train.lr: 0.25}}\n  b:\n"
    found = values(text, "train.batch=3")
    assert [(name, v["train"]["lr"], v["train"]["batch"]) for name, v in found.items()] == [
        ("a", 0.25, 3),
        ("b", 0.5, 3),
    ]
    assert all(v["train"]["seed"] == 3 and v["train"]["steps"] == 2 for v in found.values())


def test_the_config_of_a_seed_stays_as_it_is_when_that_of_the_next_is_made(folder: Path) -> None:
    Path("sweep.yaml").write_text(BASE + "variants: {a: null}\n")
    (variant,) = read_sweep("sweep.yaml").trained
    first, second = variant.nodes(0), variant.nodes(1)
    assert [node.value["train"].value["seed"].value for node in (first, second)] == [0, 1]


def test_a_value_may_be_one_argument_or_a_whole_component(folder: Path) -> None:
    text = (
        BASE + "variants:\n  a: {set: {model.box.extractor.sampling_ratio: 0}}\n"
        "  b: {set: {model.box.extractor: {type: RoIPool, output_size: 5}, model.box.head.channels: 4}}\n"
    )
    found = values(text)
    assert found["a"]["model"]["box"]["extractor"]["sampling_ratio"] == 0
    assert found["a"]["model"]["box"]["extractor"]["output_size"] == 3
    assert found["b"]["model"]["box"]["extractor"]["type"] == "RoIPool"
    assert found["b"]["model"]["box"]["head"]["channels"] == 4 and found["a"]["model"]["box"]["head"]["channels"] == 16


def test_an_override_of_what_a_variant_sets_leaves_the_other_variants_values_alone(folder: Path) -> None:
    text = BASE + "variants:\n  a: &a {set: {model.box.head: {type: TwoFCBoxHead, channels: 4}}}\n  b: *a\n"
    found = values(text, "model.box.head.class_agnostic=true")
    assert [v["model"]["box"]["head"]["channels"] for v in found.values()] == [4, 4]


def test_the_small_form_has_its_own_base_values_and_seeds_and_the_variants_own_values(folder: Path) -> None:
    text = (
        "base: whole.yaml\nmetrics: {AP: bbox.AP}\nset: {train.batch: 7}\n"
        "variants:\n  a: {set: {train.lr: 0.5}}\n  b: {set: {train.lr: 0.25}}\n  c: {base: whole.yaml}\n"
        "  d: {only_paper: no such thing}\n  D: {only_paper: nor this}\n  e:\n"
        "small:\n  base: [model.yaml, rest.yaml]\n  seeds: [4, 5]\n  set: {train.steps: 9}\n"
        "  variants: {b: {set: {train.lr: 0.125}}, c: {base: whole.yaml}, e: {only_paper: too large}}\n"
    )
    small = values(text, small=True)
    assert {name: v["train"]["lr"] for name, v in small.items()} == {"a": 0.5, "b": 0.125, "c": 0.001}
    assert {v["train"]["batch"] for v in small.values()} == {16} and {v["train"]["steps"] for v in small.values()} == {
        9
    }
    assert {v["train"]["batch"] for v in values(text).values()} == {7}
    read = read_sweep("sweep.yaml", small=True)
    assert read.seeds == (4, 5) and read_sweep("sweep.yaml").seeds == (0,)
    assert {v.name: v.only_paper for v in read.variants if v.only_paper} == {
        "d": "no such thing",
        "D": "nor this",  # has no folder that it could share
        "e": "too large",
    }


def test_problems_of_all_variants_come_together_at_their_lines_in_the_sweep(folder: Path) -> None:
    text = (
        BASE + "variants:\n  a:\n    set: {trian.lr: 1, train.batch: many}\n"
        "  b:\n    set:\n      model.box.extractor.type: RoIpool\n  c:\n"
    )
    found = problems(text)
    assert found[:2] == [
        "sweep.yaml:5:21: there is no section 'trian'; did you mean 'train'? (in variant 'a')",
        "sweep.yaml:5:37: train.batch: expected int, got 'many' (in variant 'a')",
    ]
    wrong = "sweep.yaml:8:33: model.box.extractor.type: no roi_extractor named 'RoIpool'; did you mean 'RoIPool'?"
    assert found[2].startswith(wrong) and found[2].endswith("(in variant 'b')") and len(found) == 3


def test_an_argument_of_the_base_that_a_variant_s_component_has_not_is_shown_there_with_what_to_do(
    folder: Path,
) -> None:
    (line,) = problems(BASE + "variants: {a: , b: {set: {model.box.extractor.type: RoIPool}}}\n")
    assert line.startswith("model.yaml:6:49: model.box.extractor: RoIPool has no argument 'sampling_ratio'")
    assert "override the whole component, 'model.box.extractor={type: RoIPool}' (in variant 'b')" in line


def test_a_problem_of_every_variant_is_said_once_and_of_none(folder: Path) -> None:
    Path("rest.yaml").write_text(REST.replace("steps", "stebs"))
    found = problems(BASE + "variants: {a: , b: }\n")
    assert found and all("variant" not in line and line.startswith("rest.yaml:4:") for line in found)


SWEEP_S_OWN = {
    "base: [model.yaml, whole.yaml]\nmetrics: {AP: bbox.AP}\nvariants: {a: }\n": [
        "whole.yaml:1:1: model: it also stands in model.yaml:1:1; a base's files have different sections"
    ],
    "base: wole.yaml\nmetrics: {AP: bbox.AP}\nvariants: {a: }\n": [
        "sweep.yaml:1:7: base: there is no file wole.yaml (a base is relative to the sweep's own folder); "
        "did you mean 'whole.yaml'?"
    ],
    BASE.replace("{AP: bbox.AP}", "[bbox.AP]") + "variants: [a]\nset: [a=1]\n": [
        "sweep.yaml:2:10: metrics: expected a column's name and what stands in it, e.g. {mask AP: segm.AP}, got a list",
        "sweep.yaml:3:11: variants: expected a name for each, with no dash before it, e.g. 'small: {set: "
        "{train.lr: 0.01}}', got a list",
        "sweep.yaml:4:6: set: expected dotted keys and their values, e.g. {train.lr: 0.02}, got a list",
    ],
    BASE + "variants: {a: [b], c: {train.lr: 1, set: x}}\nsmall: {base: whole.yaml, variants: {a: x}}\n": [
        "sweep.yaml:3:15: variants.a: expected what is set in it, e.g. {set: {train.lr: 0.02}}, or nothing, got a list",
        "sweep.yaml:3:24: variants.c: write 'train.lr' under set: {set: {train.lr: …}}",
        "sweep.yaml:3:42: variants.c.set: expected dotted keys and their values, e.g. {train.lr: 0.02}, got 'x'",
        "sweep.yaml:4:41: small.variants.a: expected what is set in it, e.g. {set: {train.lr: 0.02}}, or nothing, "
        "got 'x'",
    ],
    MODEL + REST: [
        "sweep.yaml: this is a config, not a sweep: rcnn train sweep.yaml trains it; "
        "a sweep has base, metrics and variants"
    ],
    "base: whole.yaml\nmetrics: {A: box.AP, B: segm.APP, C: AP}\nvariants: {a: }\n": [
        "sweep.yaml:2:14: metrics.A: expected a kind and a number of it, e.g. segm.AP, got 'box.AP'; "
        "did you mean 'bbox'?",
        "sweep.yaml:2:25: metrics.B: segm has no number 'APP'; did you mean 'AP'?",
        "sweep.yaml:2:38: metrics.C: expected a kind and a number of it, e.g. segm.AP, got 'AP' "
        "(kinds: bbox, segm, keypoints)",
    ],
    BASE + "variants:\n  A b: {paper: {APm: 3}}\n  a-B: {set: {train.seed: 1}}\nseeds: [1, 1]\nreference: a\n": [
        "sweep.yaml:4:17: variants.A b.paper: 'APm' is none of the sweep's metrics; did you mean 'AP'?",
        "sweep.yaml:5:3: variants: 'a-B' would share its folder with 'A b'; rename it",
        "sweep.yaml:5:27: train.seed: each variant is trained with each of the sweep's seeds; set those (--seeds)",
        "sweep.yaml:6:8: seeds: expected different whole numbers from 0 on, got [1, 1]",
        "sweep.yaml:7:12: reference: 'a' is no variant",
    ],
    BASE + "variants: {a: {only_paper: why}}\n": ["sweep.yaml:3:11: variants: there is none to train"],
    BASE + "variants: {a: {sett: {}}}\nsmal: {}\n": [
        "sweep.yaml:3:16: variants.a: there is no setting 'sett' here; did you mean 'set'?",
        "sweep.yaml:4:1: there is no section 'smal'; did you mean 'small'?",
    ],
    "": ["sweep.yaml: the file is empty; a sweep has base, metrics and variants"],
}


def test_mistakes_of_the_sweep_and_of_its_variants_come_together(folder: Path) -> None:
    text = BASE.replace("bbox.AP", "bbox.APx") + (
        "variants:\n  a: {set: {train.keep_best: segm.APP, train.early_stopping: {metric: AP}}}\n"
        "  b: {set: {train.lr.x: 3}}\n"
    )
    found = problems(text)
    assert [line.split(": ")[:2] for line in found] == [
        ["sweep.yaml:2:15", "metrics.AP"],
        ["sweep.yaml:5:25", "train.lr is 0.001, which has no entries"],
        ["sweep.yaml:4:30", "train.keep_best"],
        ["sweep.yaml:4:71", "train.early_stopping.metric"],
    ]
    Path("sweep.yaml").write_text(text)
    read = read_sweep("sweep.yaml")
    assert [variant.name for variant in read.readable] == ["a"] and len(read.problems) == 2


@pytest.mark.parametrize("text", SWEEP_S_OWN, ids=range(len(SWEEP_S_OWN)))
def test_mistakes_in_the_sweep_itself_come_together_each_at_its_place(folder: Path, text: str) -> None:
    assert problems(text) == SWEEP_S_OWN[text]


def test_a_base_is_looked_for_beside_the_sweep(folder: Path) -> None:
    Path("sweeps").mkdir()
    Path("sweeps/sweep.yaml").write_text("base: whole.yaml\nmetrics: {AP: bbox.AP}\nvariants: {a: }\n")
    with pytest.raises(ConfigError) as caught:
        load_sweep("sweeps/sweep.yaml")
    assert str(caught.value) == (
        "sweeps/sweep.yaml:1:7: base: there is no file sweeps/whole.yaml (a base is relative to the sweep's own "
        "folder); write ../whole.yaml"
    )


def test_a_sweep_given_as_a_config_is_said_to_be_one(folder: Path) -> None:
    Path("sweep.yaml").write_text(BASE + "variants: {a: }\n")
    for read in (load_config, precheck):
        with pytest.raises(ConfigError) as caught:
            read("sweep.yaml")
        said = "this is a sweep, not a config: rcnn sweep sweep.yaml trains its variants"
        assert str(caught.value) == f"sweep.yaml: {said}"


def test_a_section_written_over_as_a_whole_says_how_one_value_of_it_is_changed(folder: Path) -> None:
    whole = "this replaces all of"
    found = problems(BASE + "variants:\n  a: {set: {train: {lr: 3}}}\n  b: {set: {model.backbone: {depth: 34}}}\n")
    one = "to change one value of it, write"
    assert found[0] == (
        f"sweep.yaml:4:20: train: 'steps' (int) must be given; {whole} 'train': {one} train.lr: 3 (in variant 'a')"
    )
    assert found[1].endswith(f"; {whole} 'model.backbone': {one} model.backbone.depth: 34 (in variant 'b')")
    (line,) = problems(BASE + "variants: {a: , b: }\n", "train={lr: 3}")
    assert line.endswith(f"; {whole} 'train': {one} train.lr=3")
    made = problems(BASE + "variants: {a: {set: {model.roi_stage: {depth: 50}}}}\n")  # there was none before
    assert not any(whole in line for line in made)


def test_a_variant_with_a_base_of_its_own_needs_one_in_the_small_form(folder: Path) -> None:
    text = BASE + "variants: {a: , b: {base: whole.yaml}}\nsmall: {base: whole.yaml, variants: {c: }}\n"
    assert problems(text, small=True) == [
        "sweep.yaml:3:27: variants.b: it has a base of its own; small.variants.b needs one too",
        "sweep.yaml:4:38: small.variants: there is no variant 'c'",
    ]
    assert problems(BASE + "variants: {a: }\n", small=True) == [
        "sweep.yaml: the sweep has no section 'small:', which --small trains"
    ]


def test_overrides_are_quoted_and_the_seed_is_not_one_of_them(folder: Path) -> None:
    text = BASE + "variants: {a: , b: }\n"
    assert problems(text, "train.stebs=3") == [
        "command line: train.stebs=3: there is no setting 'stebs' here; did you mean 'steps'?"
    ]
    assert problems(text, "train.seed=3") == [
        "command line: train.seed=3: each variant is trained with each of the sweep's seeds; set those (--seeds)"
    ]


@pytest.mark.parametrize("kind", METRICS)
def test_the_numbers_that_a_sweep_may_name_are_those_of_an_evaluation(kind: str) -> None:
    square = [10.0, 10, 30, 10, 30, 30, 10, 30]
    truth = {
        "images": [{"id": 1, "height": 64, "width": 64}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
            | {"segmentation": [square], "keypoints": [12, 12, 2]}
        ],
    }
    numbers = coco_metrics(truth, [], kind, sigmas=[0.05] if kind == "keypoints" else None)  # type: ignore[arg-type]
    assert set(numbers) - {"per_class"} == set(METRICS[kind])
