"""What a trial of a small model costs the processor: started from nothing, and forked from a process that has
TensorFlow's library open.

    python bench/trials.py [--quick] [--out bench/results/trials.json]

The same version of the 33 MB ranker is tried again and again by the control process's own TrialRunner, in the
one way and the other in turn, without XLA and with all of it compiled and in the cache. What counts is the
processor time of the children, the fork server's included, which says the same on a busy machine as on a
quiet one. Exit code 0 when a fork costs less.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from case import turn_ratio
from report import RESULTS
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from rounds import arguments, finish

from fastserve.bench.switch_plan import parse_model
from fastserve.bench.switch_versions import find_contents
from fastserve.config import Model, TensorFlow
from fastserve.control.trial_forks import TrialForks
from fastserve.control.trial_runner import TrialRunner, trial_request
from fastserve.control.xla_cache import open_cache
from fastserve.environment import child_argv, child_environment, tensorflow_dir
from fastserve.extensions import VersionPath
from fastserve.log import Log

OUT = RESULTS / "trials.json"
STARTED, FORKED = "started", "forked"
FULL_ROUNDS, QUICK_ROUNDS = 9, 2
TIMEOUT_S = 300.0
BAR = 1.0


class Trials:
    """Of one version, in both ways. The first of each is not counted: it fills the cache, and starts the fork
    server."""

    def __init__(self, xla: str, folder: Path) -> None:
        self._version = find_contents(parse_model("small")).directories[0]
        self._folder = folder
        self._tensorflow = msgspec.structs.replace(TensorFlow(), library_dir=tensorflow_dir(TensorFlow()))
        self._model = Model(name="ranker", base_path=str(self._version.parent), xla=xla)
        env, log = child_environment(self._tensorflow), Log()
        cache = open_cache(str(folder), self._tensorflow, env, log) if xla != "off" else None
        argv = child_argv("fastserve.control.trial")
        self.forks = TrialForks(self._tensorflow.library_dir, env, log)
        self._runners = {
            STARTED: TrialRunner(argv, env, log, cache=cache),
            FORKED: TrialRunner(argv, env, log, cache=cache, forks=self.forks),
        }

    async def cpu_s(self, way: str) -> float:
        """Of one trial. SystemExit when it was not made in this way."""
        before, server = self._spent_s(), self.forks.pid
        request = trial_request(
            self._model,
            VersionPath(1, str(self._version)),
            self._tensorflow,
            previous_choice=None,
            prepared_dir=str(self._folder / "prepared"),
        )
        await self._runners[way].run(request, TIMEOUT_S, lambda _: None)
        if way == FORKED and (self.forks.pid is None or server not in (None, self.forks.pid)):
            raise SystemExit("a trial was not forked: nothing to compare")
        return self._spent_s() - before

    def _spent_s(self) -> float:
        """By children that have ended, and by the fork server, which has not."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = children.ru_utime + children.ru_stime
        if self.forks.pid is not None:
            fields = Path(f"/proc/{self.forks.pid}/stat").read_text().rsplit(") ", 1)[1].split()
            spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return spent


async def measure(xla: str, rounds: int, progress: Progress, task: TaskID) -> dict[str, Any]:
    samples: dict[str, list[float]] = {STARTED: [], FORKED: []}
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(xla, Path(folder))
        try:
            for number in range(1 + rounds):
                for way in sorted(samples, reverse=number % 2 == 0):
                    spent_s = await trials.cpu_s(way)
                    if number > 0:
                        samples[way].append(spent_s)
                    progress.advance(task)
        finally:
            await trials.forks.close()
    ratio = turn_ratio(samples[FORKED], samples[STARTED])
    return {
        "case": f"processor time of a trial, xla {xla}",
        "unit": "s",
        "samples": {way: [round(one, 3) for one in each] for way, each in samples.items()},
        "medians": {way: round(statistics.median(each), 3) for way, each in samples.items()},
        "ratio": round(ratio, 3),
        "bar": BAR,
        "passed": ratio < BAR,
    }


def show(console: Console, found: list[dict[str, Any]]) -> None:
    table = Table()
    for name in ("case", STARTED, FORKED, "ratio", "bar", ""):
        table.add_column(name, justify="left" if name in ("case", "") else "right")
    for row in found:
        table.add_row(
            row["case"],
            *(f"{row['medians'][way]:g} {row['unit']}" for way in (STARTED, FORKED)),
            f"{row['ratio']:g}",
            f"< {row['bar']:g}",
            "[green]pass[/]" if row["passed"] else "[red]FAIL[/]",
        )
    console.print(table)


async def both(rounds: int) -> list[dict[str, Any]]:
    ways = ("off", "full")
    with Progress(transient=True) as progress:
        task = progress.add_task("trials", total=len(ways) * (1 + rounds) * 2)
        return [await measure(xla, rounds, progress, task) for xla in ways]


def main() -> int:
    given = arguments(__doc__, OUT).parse_args()
    found = asyncio.run(both(QUICK_ROUNDS if given.quick else FULL_ROUNDS))
    return finish(Console(highlight=False), show, found, given.quick, given.out)


if __name__ == "__main__":
    sys.exit(main())
