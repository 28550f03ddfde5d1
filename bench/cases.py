"""The cases of `make bench`, by name and in order."""

from __future__ import annotations

from collections.abc import Callable

from case import Bench
from cases_front import half_plus_two
from cases_memory import idle_memory, large, many_connections, million
from cases_neighbour import slow_neighbour
from cases_ranker import ranker_100_rows, ranker_latency, ranker_saturated
from report import Row

CASES: dict[str, Callable[[Bench], list[Row]]] = {
    "ranker_saturated": ranker_saturated,
    "ranker_latency": ranker_latency,
    "ranker_100_rows": ranker_100_rows,
    "half_plus_two": half_plus_two,
    "million": million,
    "large": large,
    "many_connections": many_connections,
    "idle_memory": idle_memory,
    "slow_neighbour": slow_neighbour,
}
