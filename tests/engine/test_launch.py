"""Which process takes the place of another one of the same torchrun."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from toolbox.engine.launch import Launch, restarted

FIRST = Launch(run="none", host="a", agent=10, process=11)


def test_a_restart_is_another_process_of_the_same_torchrun() -> None:
    assert replace(FIRST, process=12).restarts(FIRST)
    assert not FIRST.restarts(FIRST)  # the same process, which trains once more
    assert not replace(FIRST, agent=20, process=21).restarts(FIRST)  # another torchrun, later
    assert not replace(FIRST, host="b").restarts(FIRST)  # torchrun was given no id: nobody knows
    named = replace(FIRST, run="job-7")
    assert replace(named, host="b", agent=3, process=4).restarts(named)  # the first process moved to another machine
    assert not replace(named, run="job-8", host="b").restarts(named)


def test_what_the_first_process_leaves_is_found_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".launch"
    assert Launch.own() is None and not restarted(file)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    own = Launch.own()
    assert own is not None and not restarted(file)
    own.write(file)
    assert Launch.read(file) == own and not restarted(file)
    replace(own, process=own.process + 1).write(file)
    assert restarted(file)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert not restarted(file)
    file.write_text("[1]")
    assert Launch.read(file) is None
