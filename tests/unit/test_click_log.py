"""examples/ranking/click_log.py: Criteo's schema, repeatable, and a log comes back as it was written."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from program_file import program_file


@pytest.fixture(scope="module")
def click_log() -> ModuleType:
    return program_file("examples/ranking/click_log.py")


def test_equal_seeds_give_equal_days_and_days_differ(click_log: ModuleType) -> None:
    one, again = click_log.Generator(1).day(0, 500), click_log.Generator(1).day(0, 500)
    assert np.array_equal(one.sparse, again.sparse)
    assert np.array_equal(one.dense, again.dense)
    assert np.array_equal(one.label, again.label)
    assert not np.array_equal(one.sparse, click_log.Generator(1).day(1, 500).sparse)
    assert not np.array_equal(one.sparse, click_log.Generator(2).day(0, 500).sparse)


def test_a_day_has_criteos_shape(click_log: ModuleType) -> None:
    day = click_log.Generator(1).day(0, 4000)
    assert day.dense.shape == (4000, 13) and day.dense.dtype == np.float32
    assert day.sparse.shape == (4000, 26) and day.sparse.dtype == np.int64
    assert day.sparse.min() == click_log.MISSING_CATEGORY and day.sparse.max() < 2**32
    assert day.dense.min() == click_log.MISSING_COUNT
    assert 0.15 < day.label.mean() < 0.40


def test_a_log_comes_back_as_it_was_written(click_log: ModuleType, tmp_path: Path) -> None:
    day = click_log.Generator(3).day(0, 300)
    path = tmp_path / "day.tsv"
    click_log.write(day, path)
    first = path.read_text().splitlines()[0].split("\t")
    assert len(first) == 40
    back = click_log.read(path)
    assert np.array_equal(back.label, day.label)
    assert np.array_equal(back.dense, day.dense)
    assert np.array_equal(back.sparse, day.sparse)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1\t2\t3", ":1: 3 fields, expected 40"),
        ("\t".join(["1"] + ["x"] * 13 + ["0a"] * 26), ":1: could not convert"),
        ("\t".join(["1"] + ["5"] * 13 + ["zz"] * 26), ":1: invalid literal"),
    ],
)
def test_a_malformed_line_is_named(click_log: ModuleType, tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "day.tsv"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=said):
        click_log.read(path)
