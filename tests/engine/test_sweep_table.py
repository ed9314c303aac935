"""The table of a sweep from evaluations that are written by hand: means, paired differences, the order, Markdown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolbox.engine.run_folder import RunFolder
from toolbox.engine.sweep import load_sweep, runs_of
from toolbox.engine.sweep_markdown import markdown
from toolbox.engine.sweep_table import SweepTable, read_table, seconds_trained
from toolbox.errors import CheckpointError
from toolbox.yaml_nodes import write_inline

BASE = """\
model:
  backbone: {type: ResNet, depth: 18, norm: gn}
  neck: {type: FPN, out_channels: 8}
  rpn: {head: {type: ConvRPNHead}, anchors: {sizes: [12, 24, 48, 96, 192]}}
  box: {extractor: {type: RoIAlign}, head: {type: TwoFCBoxHead, channels: 16}}
  instance: {mask: {extractor: {type: RoIAlign}, head: {type: FCNMaskHead, channels: 8}}}
train: {steps: 20, batch: 2, lr: 0.001}
"""
PAPER = {"pool": 26.9, "warp": 27.1, "max": 30.2, "align": 30.3}
# By seed, in percent. align − max: +1, +3; max − warp: −2, −1; warp − pool: +4, −1.
OURS = {"pool": (10, 15), "warp": (14, 14), "max": (12, 13), "align": (13, 16)}


def evaluated(folder: Path, **numbers: float) -> None:
    """What a finished run leaves, of 20 steps at 4 images a second."""
    (folder / "eval.json").write_text(json.dumps({"segm": {"AP50": 0.5, "per_class": {}, **numbers}}))
    lines = [{"step": 20, "images_per_second": 4.0}, {"step": 20, "eval": {"segm": numbers}}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepTable:
    return made(tmp_path, monkeypatch, OURS)


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ours: dict[str, tuple[float, ...]]) -> SweepTable:
    """The table of runs that gave `ours`, in the folder `out`."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    rows = {
        name: {"set": {"train.lr": 0.1 + number}, "paper": {"AP": paper}}
        for number, (name, paper) in enumerate(PAPER.items())
    }
    rows["theirs"] = {"paper": {"AP": 24.6}, "only_paper": "no code"}
    head = {"title": "Table 2c", "base": "base.yaml", "metrics": {"AP": "segm.AP", "AP50": "segm.AP50"}}
    Path("sweep.yaml").write_text(write_inline({**head, "seeds": [0, 1], "variants": rows}))
    sweep = load_sweep("sweep.yaml")
    for run in runs_of(sweep, "out"):
        values = ours[run.variant.name]
        if run.seed < len(values):
            run.folder.path.mkdir(parents=True)
            run.folder.config.write_text(run.config.to_yaml())
            evaluated(run.folder.path, AP=values[run.seed] / 100)
    return read_table(sweep, "out")


def test_rows_have_mean_and_spread_time_and_steps(table: SweepTable) -> None:
    align = next(row for row in table.rows if row.name == "align")
    ours = align.ours("AP")
    assert ours is not None and (ours.mean, ours.low, ours.high, ours.count) == (14.5, 13, 16, 2)
    assert (align.steps, align.seconds) == (20, 10.0)
    assert table.reference == "pool"


def test_differences_are_paired_by_seed(table: SweepTable) -> None:
    found = {row.name: table.difference(row, "AP") for row in table.rows}
    assert found["pool"] is None and found["theirs"] is None
    spread = found["warp"]
    assert spread is not None and (spread.mean, spread.low, spread.high, spread.count) == (1.5, -1, 4, 2)
    assert table.paper_difference(table.rows[3], "AP") == pytest.approx(3.4)


def test_each_neighbour_in_the_paper_s_order_agrees_or_not_or_the_seeds_differ(table: SweepTable) -> None:
    order = table.order("AP")
    assert [(pair.lower, pair.higher, pair.verdict) for pair in order.adjacent] == [
        ("pool", "warp", "within the spread"),
        ("warp", "max", "disagrees"),
        ("max", "align", "agrees"),
    ]
    # Means: pool 12.5, warp 14, max 12.5, align 14.5. Of 6 pairs, max < warp is turned round and pool = max is neither.
    assert (order.concordant, order.discordant) == (4, 1)
    assert order.tau == pytest.approx(3 / 5)


def test_variants_that_the_paper_has_alike_are_no_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAPER, "warp", 26.9)
    order = made(tmp_path, monkeypatch, OURS).order("AP")
    assert [(pair.lower, pair.higher) for pair in order.adjacent] == [("warp", "max"), ("max", "align")]
    assert order.concordant + order.discordant == 4  # of 6, pool = warp in the paper and pool = max here


def test_what_is_not_trained_yet_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = made(tmp_path, monkeypatch, {**OURS, "warp": (14,), "max": ()})
    verdicts = [pair.verdict for pair in table.order("AP").adjacent]
    assert verdicts == ["agrees", "not trained", "not trained"]
    text = markdown(table)
    assert "5 of 8 runs done" in text
    (warp,) = [line for line in text.splitlines() if line.startswith("| warp ") and "50.0" in line]
    assert "| 14.0 (1 of 2) " in warp and "| +4.0 (1 of 2) " in warp


def test_minus_one_and_missing_numbers_are_dashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, monkeypatch, {**OURS, "align": (-100, 3)})
    Path("out/pool/seed-0/eval.json").write_text('{"bbox": {"AP": 0.5}}')
    table = read_table(load_sweep("sweep.yaml"), "out")
    assert table.rows[0].runs == {0: {}, 1: {"AP": 15, "AP50": 50}}
    assert table.rows[3].runs == {0: {"AP50": 50}, 1: {"AP": 3, "AP50": 50}}


def test_differences_are_rounded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = made(tmp_path, monkeypatch, {**OURS, "pool": (10.04,), "warp": (10.26,)})
    pool, warp = table.rows[:2]
    (row,) = [line for line in markdown(table).splitlines() if line.startswith("| warp ") and "27.1" in line]
    assert [f"{ours.mean:.2f}" for one in (pool, warp) if (ours := one.ours("AP"))] == ["10.04", "10.26"]
    assert "| 10.3 (1 of 2) " in row and "| +0.2 (1 of 2) " in row  # not the 0.3 between 10.0 and 10.3


def test_the_markdown_shows_all_of_it(table: SweepTable) -> None:
    lines = markdown(table).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert lines[0] == "# Table 2c" and "2 seeds (0, 1), 8 of 8 runs done." in lines[2]
    assert cells[0] == [
        *("variant", "AP", "Δ AP", "AP in the paper", "Δ", "AP50", "Δ AP50", "steps", "time a run"),
    ]
    assert cells[2] == ["pool", "12.5 (10.0 to 15.0)", "–", "26.9", "–", "50.0 (50.0 to 50.0)", "–", "20", "10 s"]
    assert cells[3][:5] == ["warp", "14.0 (14.0 to 14.0)", "+1.5 (-1.0 to +4.0)", "27.1", "+0.2"]
    assert cells[6] == ["theirs", "–", "–", "24.6", "-2.3", "–", "–", "–", "–"]
    assert "- theirs: not trained: no code" in lines
    assert ["warp", "max", "+3.1", "-1.5 (-2.0 to -1.0)", "disagrees"] in cells
    assert lines[2].endswith("Δ is the difference to pool, seed by seed, taken before rounding.")
    assert "4 of 5 pairs as in the paper (Kendall's tau +0.60)" in lines[-1]


def test_the_json_holds_the_same(table: SweepTable) -> None:
    content = json.loads(table.to_json())
    assert content["unit"] == "percent" and content["seeds"] == [0, 1] and content["reference"] == "pool"
    warp = content["variants"][1]
    assert warp["runs"] == {"0": {"AP": 14.0, "AP50": 50.0}, "1": {"AP": 14.0, "AP50": 50.0}}
    assert warp["difference"]["AP"] == {"mean": 1.5, "low": -1.0, "high": 4.0, "count": 2}
    assert [pair["verdict"] for pair in content["order"]["AP"]["adjacent"]][2] == "agrees"
    assert list(content["order"]) == ["AP"]  # the paper has no AP50 here


def test_a_damaged_evaluation_is_named_with_what_makes_it_anew(table: SweepTable) -> None:
    Path("out/max/seed-1/eval.json").write_text('{"segm"')
    with pytest.raises(CheckpointError, match=r"out/max/seed-1/eval.json: not JSON .* rcnn eval out/max/seed-1"):
        read_table(load_sweep("sweep.yaml"), "out")


def test_training_time_is_what_each_line_adds_without_evaluations(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "loss": 1.0, "images_per_second": 4.0},  # 10 steps of 2 images: 5 s
        {"step": 10, "eval": {}},
        {"step": 30, "loss": 1.0, "images_per_second": 8.0},  # 20 steps more: 5 s
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert seconds_trained(RunFolder(tmp_path), batch=2) == 10.0
