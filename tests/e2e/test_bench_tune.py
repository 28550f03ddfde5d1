"""Candidates of `fastserve tune` as real daemons: scored, refused, run against each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_models import exported_models

from fastserve._native.load import run as generate
from fastserve.bench import tune_daemon
from fastserve.bench.measure import encode
from fastserve.bench.requests import Request
from fastserve.bench.target import Target
from fastserve.bench.tune_daemon import Bench, Goal, Sizes
from fastserve.bench.tune_run import Daemons
from fastserve.bench.verify import Disagreement

HERE = Target("here", "fastserve", "grpc", ("127.0.0.1", 1), "127.0.0.1:1")

CONFIG = """
[server]
listen = ["127.0.0.1:8500"]

[[models]]
name = "half_plus_two"
base_path = "{model}"
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    text = CONFIG.format(model=exported_models() / "half_plus_two")
    requests = [Request({"x": np.arange(rows, dtype=np.float32)}, rows) for rows in (1, 3)]
    return Bench(
        file=tmp_path / "config.toml",
        text=text,
        model="half_plus_two",
        signature="serving_default",
        folder=tmp_path,
        goal=Goal(None, rate=100.0, connections=2),
        generate=generate,
        requests=requests,
        bodies=encode(requests, "half_plus_two", "serving_default", {"grpc"}),
        sizes=Sizes(window_s=0.3, warmup_s=0.1),
    )


def test_candidates_are_scored_dropped_below_the_bar_and_refused_with_the_reason(bench: Bench) -> None:
    score = bench.score({}, 0.0)
    assert score.note == "" and 1 / score.value < 5.0
    assert bench.score({"executor.spin_us": 50}, 1e9).value == 0.0
    wrong = bench.score({"executor.threads": 1000}, 0.0)
    assert wrong.value == 0.0
    assert wrong.note == "candidate:11: [executor] threads = 1000: expected a number of threads, 1 to 64"


def test_a_candidate_that_answers_differently_is_no_candidate(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([[2.0], [2.0, 2.5, 3.0], [2.0], [2.0, 2.5, 4.0]])
    monkeypatch.setattr(tune_daemon, "ask", lambda *arguments: {"y": np.array(next(answers))})
    bench.verify(HERE)
    with pytest.raises(
        Disagreement, match="request 2: the configuration as it is and this one give different y"
    ):
        bench.verify(HERE)


def test_the_rerun_takes_turns(bench: Bench) -> None:
    turns: list[int] = []

    def more(rounds: int) -> bool:
        turns.append(rounds)
        return rounds < 1

    changes: Mapping[str, Any] = {"executor.threads": 1}
    before, after = Daemons(bench, bench).held_out({}, changes, (1.0, 1.0), more)
    assert turns == [0, 1]
    assert len(before) == len(after) == 1 and min(before + after) > 0.2
