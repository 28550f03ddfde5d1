"""What `fastserve tune` may change, and to which values: pure functions of configuration and machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastserve.config import Config, Model
from fastserve.config_read import powers_of_two

# Keys as a candidate names them: "executor.threads"; "model." is the [[models]] table that is tuned.
MAX_BATCH, BATCH_SIZES = "model.batching.max_batch_size", "model.batching.allowed_batch_sizes"
THREADS, SPIN, IO = "executor.threads", "executor.spin_us", "server.io_threads"
INTRA, XLA = "tensorflow.intra_op_threads", "model.xla"

Candidate = Mapping[str, Any]


@dataclass(frozen=True)
class Knob:
    """One key. values: what to try next to a candidate, which has a value for each key."""

    key: str
    values: Callable[[Candidate], Sequence[Any]]


def present(config: Config, model: Model) -> dict[str, Any]:
    """The value that each key has now."""
    return {
        XLA: model.xla,
        MAX_BATCH: model.batching.max_batch_size,
        THREADS: config.executor.threads,
        INTRA: config.tensorflow.intra_op_threads,
        IO: config.server.io_threads,
        SPIN: config.executor.spin_us,
        BATCH_SIZES: model.batching.allowed_batch_sizes,
    }


def knobs(cpus: int, largest_request: int) -> list[Knob]:
    """In the order in which they are tried: what matters most comes first."""
    return [
        Knob(XLA, lambda now: ("off", "cluster", "full")),
        Knob(MAX_BATCH, lambda now: _batches(now[MAX_BATCH], largest_request)),
        Knob(THREADS, lambda now: _threads(now[THREADS], cpus)),
        Knob(INTRA, lambda now: _powers(cpus)),
        Knob(IO, lambda now: sorted({0, 1, 2, max(1, cpus // 2)})),
        Knob(SPIN, lambda now: (0, 50, 200, 1000)),
        Knob(BATCH_SIZES, lambda now: batch_sizes(now[MAX_BATCH])),
    ]


def changed(candidate: Candidate, key: str, value: Any) -> dict[str, Any]:
    """`candidate` with another value; batch sizes follow the largest batch."""
    fresh = {**candidate, key: value}
    if key == MAX_BATCH and value != candidate[MAX_BATCH]:
        fresh[BATCH_SIZES] = powers_of_two(value)
    return fresh


def differences(candidate: Candidate, base: Candidate) -> dict[str, Any]:
    """The keys in which `candidate` is not `base`."""
    found = {key: value for key, value in candidate.items() if _plain(value) != _plain(base[key])}
    if found.get(BATCH_SIZES) == powers_of_two(candidate[MAX_BATCH]) and MAX_BATCH in found:
        del found[BATCH_SIZES]  # the default of that largest batch
    return found


def name(candidate: Candidate, base: Candidate) -> str:
    """For people: "executor.spin_us = 200, model.xla = full", or "as it is"."""
    parts = [f"{key} = {_text(value)}" for key, value in differences(candidate, base).items()]
    return ", ".join(parts) or "as it is"


def _text(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _batches(now: int, largest_request: int) -> list[int]:
    """Half, double and so on, never so small that a request has to be split."""
    sizes = {now // 4, now // 2, now * 2, now * 4, _power_above(largest_request)}
    return sorted(size for size in sizes if max(1, largest_request) <= size <= 8192)


def _threads(now: int, cpus: int) -> list[int]:
    return sorted(
        {
            count
            for count in (1, cpus // 2, cpus - 1, cpus, 2 * cpus, now * 2)
            if 1 <= count <= min(64, 2 * cpus)
        }
    )


def _powers(cpus: int) -> list[int]:
    return list(powers_of_two(cpus))


def _power_above(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def batch_sizes(largest: int) -> list[tuple[int, ...]]:
    """Powers of two; every other of them; powers of two and what lies halfway between; the largest alone."""
    powers = powers_of_two(largest)
    sparse = (*[size for i, size in enumerate(powers[:-1]) if i % 2 == 0], largest)
    halfway = tuple(
        sorted({*powers, *(size + size // 2 for size in powers if size >= 2 and size + size // 2 < largest)})
    )
    return list(dict.fromkeys([powers, sparse, halfway[-32:], (largest,)]))
