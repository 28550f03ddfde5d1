"""fastserve tune: the search and the proof on daemons that are a formula, and files changed with care."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from fastserve.bench import tune_daemon, tune_run
from fastserve.bench.target import TargetError
from fastserve.bench.tune import Outcome, tune
from fastserve.bench.tune_config import edited, for_trial, tuned
from fastserve.bench.tune_run import Task, evidence, write, write_json
from fastserve.bench.tune_search import Score, Tried, coordinate_search
from fastserve.bench.tune_show import Screen, goal_text, show, task_of
from fastserve.bench.tune_space import (
    BATCH_SIZES,
    INTRA,
    IO,
    MAX_BATCH,
    SPIN,
    THREADS,
    XLA,
    batch_sizes,
    changed,
    differences,
    knobs,
    name,
    present,
)
from fastserve.cli import main
from fastserve.config_read import parse_config, powers_of_two

CONFIG = """\
# Ours.
[server]
listen = ["10.0.0.1:8500"]   # the rack's
admin_socket = "admin.sock"

[[models]]
name = "other"
base_path = "models/other"

[[models]]
name = "ranker"
base_path = "models/ranker"  # newest wins
xla = "auto"  # measured

[models.batching]
max_batch_size = 128  # as the client splits
"""


def base() -> dict[str, Any]:
    config = parse_config(CONFIG, "/etc/fastserve/config.toml")
    return present(config, config.models[1])


class Simulated:
    """A machine whose daemons' capacity is a product of what each key does; scores come with noise."""

    def __init__(
        self, effects: Mapping[str, Mapping[Any, float]], noise: float = 0.01, seed: int = 1
    ) -> None:
        self.effects = effects
        self.noise = noise
        self.now = 0.0
        self.scored = 0
        self.rounds = 0
        self._rng = np.random.default_rng(seed)

    def capacity(self, values: Mapping[str, Any]) -> float:
        factor = 1.0
        for key, value in values.items():
            factor *= self.effects.get(key, {}).get(value, 1.0)
        return 1000.0 * factor

    def _measured(self, values: Mapping[str, Any]) -> float:
        return self.capacity(values) * float(np.exp(self._rng.normal(0, self.noise)))

    def score(self, values: Mapping[str, Any], bar: float) -> Score:
        self.now += 10.0
        self.scored += 1
        value = self._measured(values)
        return Score(value if value >= bar else 0.0)

    def held_out(
        self,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        starts: tuple[float, float],
        more: Callable[[int], bool],
    ) -> tuple[list[float], list[float]]:
        scores: tuple[list[float], list[float]] = ([], [])
        while more(len(scores[0])):
            self.now += 20.0
            self.rounds += 1
            scores[0].append(self._measured(before))
            scores[1].append(self._measured(after))
        return scores


class Deaf:
    def tried(self, tried: Tried, better: bool, used_s: float) -> None: ...
    def rerun(self, rounds: int, used_s: float) -> None: ...


def tuned_on(machine: Simulated, budget_s: float = 3600.0) -> Outcome:
    return tune(machine, base(), knobs(4, 1), budget_s, Deaf(), clock=lambda: machine.now)


def test_the_best_of_several_keys_is_found_and_proved() -> None:
    machine = Simulated({XLA: {"full": 1.2, "off": 0.9}, SPIN: {200: 1.15, 1000: 0.8}, THREADS: {8: 1.1}})
    outcome = tuned_on(machine)
    assert outcome.changes == {XLA: "full", SPIN: 200, THREADS: 8} and outcome.best.finished
    assert outcome.proved and outcome.ratio is not None
    assert 1.4 < outcome.ratio.low < 1.2 * 1.15 * 1.1 < outcome.ratio.high < 1.7
    assert len(outcome.before) == len(outcome.after) == machine.rounds == 8


def test_keys_that_hang_together_are_found_step_by_step() -> None:
    """A larger batch pays once there is one more step: the search goes on from what it found."""
    machine = Simulated({MAX_BATCH: {256: 1.1, 512: 1.3, 1024: 1.5, 2048: 1.4}})
    assert tuned_on(machine).changes == {MAX_BATCH: 1024}


@pytest.mark.parametrize("seed", range(5))
def test_luck_is_not_proved(seed: int) -> None:
    """Where nothing matters, the noise makes some candidate look better; the rerun does not believe it."""
    machine = Simulated({}, noise=0.05, seed=seed)
    outcome = tuned_on(machine)
    assert not outcome.proved


def test_nothing_better_is_no_rerun() -> None:
    machine = Simulated({}, noise=0.0)
    outcome = tuned_on(machine)
    assert outcome.changes == {} and not outcome.proved and machine.rounds == 0
    assert outcome.best.finished and machine.scored > 20


def test_the_budget_is_kept_and_the_rerun_has_its_share() -> None:
    machine = Simulated({XLA: {"full": 1.5}})
    outcome = tuned_on(machine, budget_s=200.0)
    assert not outcome.best.finished and outcome.proved
    assert outcome.seconds <= 220
    assert 3 <= machine.rounds < 8


def test_a_configuration_that_keeps_nothing_is_beaten_by_one_that_does() -> None:
    class Hopeless(Simulated):
        def capacity(self, values: Mapping[str, Any]) -> float:
            return 500.0 if values.get(XLA) == "full" else 1e-300

        def score(self, values: Mapping[str, Any], bar: float) -> Score:
            got = super().score(values, bar)
            return got if got.value > 1 else Score(0.0)

        def held_out(
            self, before: Any, after: Any, starts: Any, more: Any
        ) -> tuple[list[float], list[float]]:
            scores = super().held_out(before, after, starts, more)
            return [0.0 for _ in scores[0]], scores[1]

    outcome = tuned_on(Hopeless({}))
    assert outcome.changes == {XLA: "full"} and outcome.ratio is None and outcome.proved


def test_what_fails_in_the_rerun_is_not_written() -> None:
    class Fragile(Simulated):
        def held_out(
            self, before: Any, after: Any, starts: Any, more: Any
        ) -> tuple[list[float], list[float]]:
            before_scores, after_scores = super().held_out(before, after, starts, more)
            return before_scores, [*after_scores[:-1], 0.0]

    outcome = tuned_on(Fragile({XLA: {"full": 1.5}}))
    assert outcome.changes and not outcome.proved


def test_challengers_are_told_the_bar_and_failures_are_kept() -> None:
    seen: list[float] = []

    def score(candidate: Mapping[str, Any], bar: float) -> Score:
        seen.append(bar)
        return Score(100.0) if not bar else Score(0.0, "did not start")

    best = coordinate_search(base(), knobs(2, 1), score, lambda: True)
    assert seen[0] == 0.0 and {round(bar) for bar in seen[1:]} == {103}
    assert {tried.score.note for tried in best.tried[1:]} == {"did not start"}


# ---- the space ----------------------------------------------------------------------------------


def test_batch_sizes_end_with_the_largest() -> None:
    for largest in (1, 2, 48, 128, 8192):
        for sizes in batch_sizes(largest):
            assert sizes[-1] == largest and list(sizes) == sorted(set(sizes)) and len(sizes) <= 32
    assert (128,) in batch_sizes(128) and (1, 4, 16, 64, 128) in batch_sizes(128)
    assert (1, 2, 3, 4, 6, 8) in batch_sizes(8)


def test_no_value_splits_requests_or_passes_the_machine() -> None:
    space = {knob.key: knob for knob in knobs(4, 100)}
    assert min(space[MAX_BATCH].values(base())) >= 100
    assert set(space[THREADS].values(base())) <= set(range(1, 9))
    assert list(space[INTRA].values(base())) == [1, 2, 4]
    assert 0 in space[IO].values(base())


def test_batch_sizes_follow_the_largest_batch() -> None:
    fresh = changed(base(), MAX_BATCH, 32)
    assert fresh[BATCH_SIZES] == powers_of_two(32)
    assert differences(fresh, base()) == {MAX_BATCH: 32}
    assert (
        name(changed(fresh, SPIN, 50), base()) == "model.batching.max_batch_size = 32, executor.spin_us = 50"
    )
    assert name(base(), base()) == "as it is"


# ---- files --------------------------------------------------------------------------------------


def test_only_what_changed_changes_and_comments_stay() -> None:
    text = tuned(CONFIG, "ranker", {XLA: "full", MAX_BATCH: 64, SPIN: 200}, ["proof"])
    assert text.startswith("# fastserve tune: proof\n\n# Ours.\n")
    read = tomllib.loads(text)
    expected = tomllib.loads(CONFIG)
    expected["models"][1]["xla"] = "full"
    expected["models"][1]["batching"]["max_batch_size"] = 64
    expected["executor"] = {"spin_us": 200}
    assert read == expected
    for comment in ("# the rack's", "# newest wins", "# measured", "# as the client splits"):
        assert comment in text
    again = tuned(text, "ranker", {SPIN: 50}, ["later"])
    assert again.startswith("# fastserve tune: later\n\n# Ours.\n") and "proof" not in again


def test_batch_sizes_of_another_largest_batch_go() -> None:
    text = CONFIG + "allowed_batch_sizes = [1, 128]\n"
    assert "allowed_batch_sizes" not in edited(text, "ranker", {MAX_BATCH: 64}).as_string()
    kept = edited(text, "ranker", {MAX_BATCH: 64, BATCH_SIZES: (1, 64)}).unwrap()
    assert kept["models"][1]["batching"] == {"max_batch_size": 64, "allowed_batch_sizes": [1, 64]}


def test_a_trial_has_its_own_port_and_state_and_the_same_models(tmp_path: Path) -> None:
    text = for_trial(CONFIG, Path("/etc/fastserve/config.toml"), "ranker", {SPIN: 5}, tmp_path / "s")
    read = tomllib.loads(text)
    assert read["server"] == {"listen": ["127.0.0.1:0"], "state_dir": str(tmp_path / "s")}
    assert [model["base_path"] for model in read["models"]] == [
        "/etc/fastserve/models/other",
        "/etc/fastserve/models/ranker",
    ]
    parse_config(text, "candidate")


# ---- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "say what to tune for: --slo p99=10ms, or --minimise p99 --rate R"),
        (["--slo", "p99=10ms", "--minimise", "p99"], "say what to tune for"),
        (["--minimise", "p99"], "--minimise p99 and --rate R go together"),
        (["--slo", "fast"], "--slo fast: expected QUANTILE=MILLISECONDS"),
        (["--slo", "p99=1ms", "--budget", "5s"], "--budget: 5 s is too short to prove anything"),
        (["--slo", "p99=1ms", "--budget", "soon"], 'soon is no duration, such as "10m" or "90s"'),
        (["--slo", "p99=1ms", "--rows", "0"], "--rows 0: expected a number of rows"),
        (["--slo", "p99=1ms", "--model", "x"], "there is no model x; there are other, ranker"),
        (["--slo", "p99=1ms"], "serves other, ranker; say which with --model"),
    ],
)
def test_a_wrong_command_line_is_told(tmp_path: Path, arguments: list[str], told: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    done = CliRunner().invoke(main, ["tune", str(config), *arguments])
    assert done.exit_code == 2 and told in done.output
    assert config.read_text() == CONFIG


def task(config: Path) -> Task:
    return task_of(
        config=config,
        slo="p99=10ms",
        minimise=None,
        rate=None,
        model="ranker",
        rows="1:4",
        workload=None,
        budget_s=600.0,
        connections=4,
    )


def test_what_is_proved_is_written_with_its_evidence(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    config.chmod(0o640)
    outcome = tuned_on(Simulated({XLA: {"full": 1.5}}))
    read = parse_config(CONFIG, str(config))
    asked = task(config)
    write(asked, read.models[1], outcome, goal_text(asked))
    text = config.read_text()
    assert 'xla = "full"' in text and config.stat().st_mode & 0o777 == 0o640
    assert "# fastserve tune: rerun of 8 rounds, in turn, with requests of its own:\n" in text
    assert "highest rate with p99 <= 10 ms" in text and "better by 1.5" in text
    beside = tmp_path / "config.toml.tune.json"
    write_json(beside, asked, read, read.models[1], outcome, goal_text(asked))
    found = json.loads(beside.read_text())
    assert found["changes"] == {XLA: "full"} and found["proved"] is True
    assert found["tried"][0]["what"] == "as it is" and len(found["held_out"]["after"]) == 8
    assert found["held_out"]["ratio"][1] > 1.3
    lines = evidence(asked, outcome, "goal")
    assert lines[2].startswith("  as it was ") and "/s, " in lines[2]


def test_the_screen_says_what_was_tried_and_what_came_of_it(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    with (tmp_path / "said").open("w") as file:
        console = Console(file=file, width=200)
        asked = task(config)
        machine = Simulated({XLA: {"full": 1.5}})
        with Screen(asked, console) as screen:
            outcome = tune(machine, base(), knobs(1, 1), 3600.0, screen, clock=lambda: machine.now)
        show(asked, outcome, True, tmp_path / "x.json", console)
        nothing = tuned_on(Simulated({}, noise=0.0))
        show(asked, nothing, False, tmp_path / "x.json", console)
    said = (tmp_path / "said").read_text()
    for part in (
        "as it is: ",
        "model.xla = full: ",
        ", the best so far",
        "not better",
        "rerun, round 8",
        "best found: model.xla = full",
        f"written to {config}",
        "None that was tried is better; ",
    ):
        assert part in said, part


def test_scores_of_latency_are_the_better_the_lower_it_is() -> None:
    goal = tune_daemon.Goal(None, 100.0)
    assert goal.text(1 / 0.004) == "p99 4 ms" and goal.text(0.0) == "none"
    assert goal.point.label == "p99 at 100/s"
    assert tune_run.Task(Path("c"), "", goal, 1.0, task(Path("c")).requests).signature == "serving_default"
    with pytest.raises(TargetError, match="no \\[\\[models\\]\\] with name"):
        edited(CONFIG, "nobody", {XLA: "off"})
