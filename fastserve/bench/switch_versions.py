"""The versions that a switch run publishes: where they come from, what they answer, how they appear.

A model has a few contents, versions with the same graph and different weights. Version n of the served model
is content n modulo their number, so that consecutive versions answer differently. Publishing is one rename of
a directory of hard links: it costs nothing while the load runs. Runs on the main thread; starts no server.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastserve.bench.export import export
from fastserve.bench.requests import Array, Request
from fastserve.bench.switch_plan import ModelSource
from fastserve.bench.target import TargetError

ATOL, RTOL = 1e-4, 1e-3
# Two versions are told apart by values that differ by more than so many tolerances.
_APART = 4.0
FEWEST_BODIES = 8


@dataclass(frozen=True)
class Contents:
    """directories: one for each content. recorded, answers: rows to send, and what TensorFlow answers to them
    by output, [contents, rows, ...]; None where only the directories are known."""

    directories: Sequence[Path]
    recorded: dict[str, Array] | None = None
    answers: dict[str, Array] | None = None

    def of_version(self, version: int) -> Path:
        return self.directories[version % len(self.directories)]


def find_contents(source: ModelSource) -> Contents:
    """Exported now unless they are there. Raises ExportError, TargetError."""
    folder = export(source.path).base_path if source.path.is_file() else source.path
    found = sorted(
        (path for path in folder.iterdir() if path.name.isdecimal() and (path / "saved_model.pb").exists()),
        key=lambda path: int(path.name),
    )
    if len(found) < 2:
        raise TargetError(f"{folder}: has {len(found)} versions; to switch there must be at least two")
    recorded, answers = _arrays(folder / "requests.npz"), _arrays(folder / "answers.npz")
    return Contents(found, recorded, answers if recorded else None)


def _arrays(path: Path) -> dict[str, Array] | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@dataclass(frozen=True)
class Asked:
    """Requests, and the floats that each content answers to each: [content][request]."""

    requests: Sequence[Request]
    output: str
    expected: Sequence[Sequence[Sequence[float]]]


def draw_requests(contents: Contents, rows: int, count: int, seed: int) -> Asked:
    """`count` requests of `rows` recorded rows each, whose answers tell every version from the one before.

    Raises TargetError when there are not enough such rows.
    """
    recorded, answers = contents.recorded, contents.answers
    if recorded is None or answers is None:
        raise TargetError("there are no recorded requests with answers")
    output = next(iter(answers))
    values = answers[output].astype(np.float64).reshape(len(answers[output]), len(answers[output][0]), -1)
    rng = np.random.default_rng(seed)
    order = rng.permutation(values.shape[1])
    requests, expected = [], []
    for first in range(0, len(order) - rows + 1, rows):
        chosen = order[first : first + rows]
        answer = values[:, chosen].reshape(len(values), -1)
        if tell_apart(answer):
            requests.append(Request({name: array[chosen] for name, array in recorded.items()}, rows))
            expected.append(answer)
        if len(requests) == count:
            break
    _check_enough(len(requests))
    return Asked(requests, output, [[answer[i].tolist() for answer in expected] for i in range(len(values))])


def keep_telling(asked: Asked) -> Asked:
    """The requests that tell every version from the one before. Raises TargetError when too few do."""
    expected = [np.array([content[i] for content in asked.expected]) for i in range(len(asked.requests))]
    kept = [i for i, answer in enumerate(expected) if tell_apart(answer)]
    _check_enough(len(kept))
    return Asked(
        [asked.requests[i] for i in kept],
        asked.output,
        [[content[i] for i in kept] for content in asked.expected],
    )


def tell_apart(answers: Array) -> bool:
    """Whether each content's answer, [contents, values], is far from the next one's, the last one's from the
    first one's."""
    following = np.roll(answers, -1, axis=0)
    apart = np.abs(answers - following) > _APART * (ATOL + RTOL * np.abs(answers))
    return bool(apart.any(axis=1).all())


def _check_enough(found: int) -> None:
    if found < FEWEST_BODIES:
        raise TargetError(
            f"the versions answer {found} requests differently enough to tell which one answered; "
            f"at least {FEWEST_BODIES} are needed"
        )


class Publisher:
    """A model's base path. Versions are prepared beside it and renamed into it."""

    def __init__(self, folder: Path, contents: Contents, versions: int) -> None:
        """Prepares versions 1 to `versions` in `folder`, which is to be on a disk of its own right: contents
        from another file system are copied once."""
        self.base_path = folder / "versions"
        self._staged = folder / "staged"
        self.base_path.mkdir(parents=True)
        self._staged.mkdir()
        local = _local(contents, folder)
        for version in range(1, versions + 1):
            _link_tree(local.of_version(version), self._staged / str(version))
        # What has just been exported or copied is written out now, and not while the load runs.
        os.sync()

    def publish(self, version: int) -> int:
        """Makes the version appear; time.monotonic_ns() from just before."""
        staged, target = self._staged / str(version), self.base_path / str(version)
        before = time.monotonic_ns()
        os.rename(staged, target)
        return before


def _local(contents: Contents, folder: Path) -> Contents:
    if os.stat(contents.directories[0]).st_dev == os.stat(folder).st_dev:
        return contents
    copies = []
    for i, directory in enumerate(contents.directories):
        copies.append(folder / "contents" / str(i))
        shutil.copytree(directory, copies[-1])
    return Contents(copies)


def _link_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=os.link)
