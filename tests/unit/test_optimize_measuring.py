"""The optimizer's judgement, without TensorFlow: what is faster, what is within the tolerance, what is
run."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from fastserve.cli import main
from fastserve.offline.tensors import STRING, Style, Tensor
from fastserve.savedmodel import Port, SavedModel, Signature
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.optimizing import report
from fastserve.workshop.optimizing.command import chosen_passes
from fastserve.workshop.optimizing.measured import differences
from fastserve.workshop.optimizing.measuring import (
    OPENINGS,
    between,
    confidence,
    faster,
    largest,
    slower,
    timing_of,
    timings_of,
    verdict,
    within,
)
from fastserve.workshop.optimizing.requests import find_pools, from_rows, load_of, made_up
from fastserve.workshop.optimizing.values import Comparison, Outcome, PassResult, Pools, Timing, Wanted
from fastserve.workshop.passes.registry import PASSES

FLOAT, INT64 = 1, 9
SIGNATURE = Signature(
    "serving_default",
    "",
    (Port("item", "item:0", FLOAT, (-1, 2)), Port("user", "user:0", INT64, (-1,))),
    (Port("y", "y:0", FLOAT, (-1,)),),
)


def rows(count: int) -> list[Tensor]:
    return [
        Tensor(FLOAT, np.arange(2 * count, dtype=np.float32).reshape(count, 2)),
        Tensor(INT64, np.arange(count) // 4),
    ]


def test_the_interval_holds_the_median_that_often() -> None:
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(400):
        low, high = confidence(sorted(rng.lognormal(0.0, 0.3, 31)))
        held += low <= 1.0 <= high
    assert 0.93 <= held / 400 <= 0.995


@pytest.mark.parametrize("count", [1, 2, 5])
def test_of_few_values_the_interval_is_all(count: int) -> None:
    values = [1.0 + i for i in range(count)]
    assert confidence(values) == (values[0], values[-1])


def timing(low: float, high: float) -> Timing:
    return Timing("s", 100, 10.0, 10.0, (low + high) / 2, low, high)


def test_faster_is_surely_so_somewhere_and_surely_slower_nowhere() -> None:
    assert faster([timing(1.01, 1.2)])
    assert faster([timing(1.01, 1.2), timing(0.97, 1.01)])
    assert not faster([timing(0.99, 1.3)])
    assert not faster([timing(1.5, 1.6), timing(0.90, 0.95)])
    assert not faster([timing(1.5, 1.6), timing(0.93, 1.01)])
    assert slower([timing(0.90, 0.95)]) and not slower([timing(0.9, 0.99)])


def test_a_timing_is_of_pairs() -> None:
    """What slows both down says nothing."""
    pairs = [(20.0 * slow, 10.0 * slow) for slow in (1, 1, 5, 1, 9, 1, 1)]
    found = timing_of("s", 10, [pairs] * OPENINGS)
    assert (found.speedup, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
    assert found.rows_per_s == (5e5, 1e6)


def test_what_differs_from_opening_to_opening_is_not_the_models() -> None:
    """In each of them all pairs agree, and they say different things."""
    found = timing_of("s", 10, [[(ratio, 1.0)] * 50 for ratio in (1.06, 1.02, 0.97)])
    assert found.low < 1.0 < found.high
    alike = timing_of("s", 10, [[(ratio, 1.0)] * 50 for ratio in (1.06, 1.07, 1.08)])
    assert alike.low > 1.0


def test_the_more_is_compared_the_more_room_is_left() -> None:
    one, many = (timing_of("s", 10, [[(r, 1.0)] * 20 for r in (1.1, 1.2, 1.15)], n) for n in (1, 10))
    assert many.low < one.low < one.speedup < one.high < many.high


def test_bounds_of_three_openings_are_students() -> None:
    """One-sided 95 % of two degrees of freedom: 2.920."""
    medians = [1.0, 1.1, 1.21]
    low, high = between(medians, 0.05)
    off = 2.920 * math.log(1.1) / math.sqrt(3)
    assert (math.log(low), math.log(high)) == pytest.approx(
        (math.log(1.1) - off, math.log(1.1) + off), abs=1e-3
    )


@pytest.mark.parametrize("sizes", [1, 2, 6])
def test_a_copy_is_seldom_called_faster(sizes: int) -> None:
    rng = np.random.default_rng(7)

    def pairs() -> list[tuple[float, float]]:
        opening = rng.lognormal(0.0, 0.02)
        return [(opening * noise, 1.0) for noise in rng.lognormal(0.0, 0.05, 15)]

    wrong, tries = 0, 300
    for _ in range(tries):
        openings = {("s", rows): tuple(pairs() for _ in range(OPENINGS)) for rows in range(sizes)}
        wrong += faster(timings_of(Comparison({}, openings)))
    assert wrong / tries <= 0.08


@pytest.mark.parametrize(
    ("timings", "lays_ground", "expected"),
    [
        ([timing(1.01, 1.2)], False, (True, "faster")),
        ([timing(1.01, 1.2), timing(0.8, 0.9)], True, (False, "slower")),
        ([timing(1.01, 1.2), timing(0.9, 1.0)], False, (False, "faster at some sizes, slower at others")),
        ([timing(0.99, 1.2)], False, (False, "within noise")),
        (
            [timing(1.01, 1.2), timing(0.93, 1.01)],
            True,
            (True, "no slower, and later passes build on it"),
        ),
        ([timing(0.95, 1.0)], True, (True, "no slower, and later passes build on it")),
    ],
)
def test_a_pass_stays_or_goes(timings: list[Timing], lays_ground: bool, expected: tuple[bool, str]) -> None:
    assert verdict(timings, lays_ground) == expected


def test_differences_are_relative_to_one_and_the_value() -> None:
    right = [Tensor(FLOAT, np.array([0.0, 1000.0], np.float32)), Tensor(INT64, np.array([1, 2]))]
    made = [Tensor(FLOAT, np.array([1e-3, 1000.5], np.float32)), Tensor(INT64, np.array([1, 2]))]
    relative, absolute, output = differences(["a", "b"], right, made)
    assert relative == pytest.approx(1e-3, rel=1e-3) and absolute == pytest.approx(0.5) and output == "a"


@pytest.mark.parametrize(
    ("right", "made"),
    [
        (Tensor(FLOAT, np.ones(2, np.float32)), Tensor(FLOAT, np.ones(3, np.float32))),
        (Tensor(FLOAT, np.ones(2, np.float32)), Tensor(2, np.ones(2))),
        (Tensor(FLOAT, np.ones(1, np.float32)), Tensor(FLOAT, np.array([np.nan], np.float32))),
        (Tensor(FLOAT, np.ones(1, np.float32)), Tensor(FLOAT, np.array([np.inf], np.float32))),
        (Tensor(INT64, np.array([1, 2])), Tensor(INT64, np.array([1, 3]))),
        (Tensor(STRING, np.array([b"a"], object)), Tensor(STRING, np.array([b"b"], object))),
    ],
)
def test_other_shapes_types_and_values_are_never_within(right: Tensor, made: Tensor) -> None:
    found = differences(["y"], [right], [made])
    assert math.isinf(found[0])
    assert within(Comparison({"s": found}, {}), 1e9) == "output y of s is another"


def test_undefined_and_infinite_numbers_that_are_the_same_are_equal() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    found = differences(["y"], [Tensor(FLOAT, values)], [Tensor(FLOAT, values.copy())])
    assert found[0] == 0.0


def test_within_names_the_output() -> None:
    comparison = Comparison({"s": (3e-5, 4e-5, "y")}, {})
    assert within(comparison, 1e-4) is None
    assert within(comparison, 1e-5) == "output y of s is off by 4e-05"
    assert largest(comparison) == 4e-5


# ---- what is run -----------------------------------------------------------------------------------


def test_rows_are_run_alone_and_in_batches() -> None:
    wanted = Wanted(None, (), (8,))
    load = load_of(SIGNATURE, Pools("rows", {"serving_default": rows(20)}, {}), wanted)
    assert load is not None
    sizes = {len(inputs[0].array) for inputs in load.checked}
    assert sizes == {1, 2, 3, 8}
    assert [len(inputs[0].array) for inputs in load.timed[8]] == [8, 8, 8]
    seen = np.concatenate([inputs[0].array for inputs in load.checked])
    assert {tuple(row) for row in seen} == {tuple(row) for row in rows(20)[0].array}


def test_a_batch_larger_than_the_rows_repeats_them() -> None:
    load = from_rows(SIGNATURE, rows(3), Wanted(None, (), (8,)))
    assert load.timed[8][0][0].array[:, 0].tolist() == [0, 2, 4, 0, 2, 4, 0, 2]


def test_timed_batches_have_one_user_where_his_inputs_are_named() -> None:
    load = from_rows(SIGNATURE, rows(16), Wanted(None, (), (8,), ("user",)))
    assert [set(inputs[1].array) for inputs in load.timed[8]] == [{0}, {2}]
    assert load.timed[8][0][0].array.tolist() == rows(16)[0].array[:8].tolist()
    mixed = [inputs for inputs in load.checked if len(inputs[0].array) == 8 and len(set(inputs[1].array)) > 1]
    assert len(mixed) == 2  # what the server's batches are made of, too


def test_larger_batches_are_several_requests_each_of_its_user() -> None:
    load = from_rows(SIGNATURE, rows(16), Wanted(None, (), (4, 8), ("user",)))
    assert [inputs[1].array.tolist() for inputs in load.timed[8]] == [[0] * 4 + [1] * 4, [2] * 4 + [3] * 4]


def test_of_recorded_requests_those_of_the_usual_size_are_timed() -> None:
    signature = Signature("serving_default", "", (Port("item", "item:0", FLOAT, (2,)),), SIGNATURE.outputs)
    requests = tuple([Tensor(FLOAT, np.zeros((count, 2), np.float32))] for count in (3, 5, 5, 1))
    load = load_of(signature, Pools("", {}, {"serving_default": requests}), Wanted(None, (), (8,)))
    assert load is not None and load.checked == requests
    assert {size: len(batches) for size, batches in load.timed.items()} == {5: 2}


def test_of_many_rows_some_are_run_from_all_over_and_that_is_said(tmp_path: Path) -> None:
    file = tmp_path / "rows.npz"
    np.savez(file, item=np.arange(10_000, dtype=np.float32).reshape(5000, 2), user=np.arange(5000) // 4)
    saved_model = SavedModel(str(tmp_path), ("serve",), "2.21.0", (SIGNATURE,))
    pools = find_pools(tmp_path, saved_model, Wanted(file, (), (8,)))
    assert pools.origin == f"4096 of the 5000 rows of {file}"
    users = pools.rows["serving_default"][1].array
    assert len(users) == 4096 and users[0] == 0 and users[-1] == 1249
    assert (np.diff(users) <= 1).sum() > 4000  # neighbours stay neighbours


def test_without_inputs_there_is_no_load_and_they_are_made_up() -> None:
    assert load_of(SIGNATURE, Pools("", {}, {}), Wanted(None, (), (8,))) is None
    style = Style(2, 1)
    one, other = made_up(SIGNATURE, style), made_up(SIGNATURE, style)
    assert one[0].array.shape[1:] == (2,) and (one[0].array == other[0].array).all()


# ---- the command -----------------------------------------------------------------------------------


def test_passes_are_chosen_in_their_own_order() -> None:
    names = [each.name for each in chosen_passes((), (), half=True)]
    assert names[:3] == ["prune", "freeze", "fold"] and len(names) == len(set(names)) == 13
    assert [each.name for each in chosen_passes(("fold", "prune"), ())] == ["prune", "fold"]
    assert "onehot" not in [each.name for each in chosen_passes((), ("onehot",))]
    with pytest.raises(WorkshopError, match="there is no pass hot; there are: prune, freeze"):
        chosen_passes(("hot",), ())


def test_passes_that_are_approximate_are_asked_for() -> None:
    halves = ["bfloat16", "float16"]
    assert not set(halves) & {each.name for each in chosen_passes((), ())}
    assert [each.name for each in chosen_passes((), (), half=True)][-2:] == halves
    assert [each.name for each in chosen_passes(("float16", "prune"), ())] == ["prune", "float16"]
    assert chosen_passes((), ("float16",), half=True)[-1].name == "bfloat16"


def test_list_passes_says_what_each_does() -> None:
    done = CliRunner().invoke(main, ["optimize", "--list-passes"])
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines] == [each.name for each in PASSES]
    assert all(len(line.split()) > 3 for line in lines)


def test_the_command_wants_a_model_and_a_place() -> None:
    done = CliRunner().invoke(main, ["optimize"])
    assert done.exit_code == 2 and "expected MODEL and OUT" in done.output


def outcome(path: Path | None) -> Outcome:
    timings = (Timing("serving_default", 100, 2000.0, 1000.0, 2.0, 1.9, 2.1),)
    passes = (
        PassResult("prune", "removes", 7, True, "faster", timings, 0.0, 12),
        PassResult("user", "once", 0, False, "found nothing to change"),
        PassResult("bfloat16", "halves", 2, False, "output y of s is off by 0.01", timings, 0.01, 14),
    )
    return Outcome(
        Path("m"),
        path,
        "20 rows of rows.npz",
        (),
        1e-5,
        passes,
        timings,
        3e-7,
        "2.21.0",
        "a processor",
        (1 << 20, 2 << 20),
    )


def test_the_table_says_what_each_pass_gave() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    report.show(outcome(Path("out/3")), console)
    text = console.export_text()
    prune, user, half, total = (
        next(line for line in text.splitlines() if line.startswith(name))
        for name in ("prune", "user", "bfloat16", "all")
    )
    assert (
        "2 ms" in prune
        and "1 ms" in prune
        and "100,000" in prune
        and "2.00x" in prune
        and "kept: faster" in prune
    )
    assert "dropped: found nothing to change" in user
    assert "1.0e-02" in half and "dropped: output y of s is off by 0.01" in half
    assert "3.0e-07" in total
    assert "Written: out/3" in text and "20 rows of rows.npz" in text
    assert "graph and variables have 2.0 MiB, the original's 1.0" in text


def test_the_json_has_all_of_it() -> None:
    document = json.loads(report.as_json(outcome(None)))
    assert document["written"] is None and document["total"]["speedup"] == 2.0
    prune = document["passes"][0]
    assert prune["timings"][0]["before_rows_per_s"] == 50_000 and prune["timings"][0]["confidence"] == [
        1.9,
        2.1,
    ]
    assert [each["kept"] for each in document["passes"]] == [True, False, False]
    assert document["stored_bytes"] == {"before": 1 << 20, "after": 2 << 20}
