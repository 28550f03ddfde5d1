"""What `fastserve bench switch` is to do: models, ways to serve them, timing, and what is turned off in turn.

Values, and their command-line notation; made by the command, read by everything else of switch_*.py. Knows no
server and no clock.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastserve.bench.target import TargetError, parse_value

MODEL, BESIDE = "model", "beside"

# What stands behind --model small and --model large, where FastServe's own sources are there.
_SHIPPED = Path(__file__).parents[2] / "bench" / "models"
SHIPPED = ("small", "large")

# The environment variable in which the daemon reads what it is to do without, and the names that it knows.
ABLATE_VARIABLE = "FASTSERVE_ABLATE"
ABLATIONS: Mapping[str, str] = {
    "pool": "restores and loads run on the session's pool",
    "warmup": "no warm-up: the first requests build executors and kernels",
    "nice": "loader threads at normal priority",
    "trial-nice": "trials at normal priority",
    "breaks": "loads and trials take no breaks",
    "slices": "nothing is preloaded: files read, memory unmapped in one piece, on threads without breaks",
    "spread": "executors stay where the kernel has them",
    "loans": "executors wait for what loads hold as long as it takes",
    "fork-server": "trials start from nothing",
    "cache": "no compile cache for the core",
    "tensor-pool": "TensorFlow's pool for tensors, where it uses oneDNN",
    "unload": "versions are closed on the event loop",
    "allocator": "the C library's malloc, as it comes",
}


@dataclass(frozen=True)
class ModelSource:
    """A file that exports versions 1/, 2/, ... (see bench/models/ranker_versions.py), or their directory."""

    name: str
    path: Path


@dataclass(frozen=True)
class Variant:
    """How a daemon differs from the usual. ablate: of ABLATIONS; options: TABLE.KEY of config.toml."""

    name: str = ""
    ablate: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return {ABLATE_VARIABLE: ",".join(self.ablate)} if self.ablate else {}

    @property
    def about(self) -> str:
        return "; ".join(ABLATIONS[name] for name in self.ablate)


@dataclass(frozen=True)
class Timing:
    """Seconds. lead: steady load before the first switch; tail: what belongs to a switch after its old
    version is gone; gap: steady load between switches, by default as long as the window before, so that there
    is as much steady time as there are windows: maxima grow with the time they are taken over; patience: for
    one switch."""

    switches: int = 10
    lead_s: float = 15.0
    tail_s: float = 5.0
    gap_s: float | None = None
    warmup_s: float = 3.0
    saturation_s: float = 4.0
    probe_s: float = 2.0
    patience_s: float = 180.0

    def shorter(self, switches: int) -> Timing:
        """For the ablations, of which there are many."""
        return replace(self, switches=switches, lead_s=min(self.lead_s, 8.0))

    @property
    def most_s(self) -> float:
        """For which there must be room in the generator's records: every switch may take two minutes, and
        one of them all the patience there is."""
        window_s = self.tail_s + min(self.patience_s, 120.0)
        each_s = window_s + (window_s if self.gap_s is None else self.gap_s)
        return self.warmup_s + self.lead_s + self.switches * each_s + self.patience_s


@dataclass(frozen=True)
class Load:
    """share: of saturation, the rates up to which both models answer within within_ms. saturation: (model,
    beside), where it is known. rates: (model, beside) a second, whatever saturation is."""

    share: float = 0.5
    within_ms: float = 10.0
    saturation: tuple[float, ...] | None = None
    rates: tuple[float, float] | None = None
    rows: int = 1
    bodies: int = 256
    connections: int = 4
    in_flight: int = 8
    timeout_s: float = 10.0
    seed: int = 1


@dataclass(frozen=True)
class Plan:
    """One run: one model, served in one way."""

    model: ModelSource
    xla: str
    variant: Variant
    timing: Timing
    load: Load

    @property
    def name(self) -> str:
        suffix = f", {self.variant.name}" if self.variant.name else ""
        return f"{self.model.name}, xla {self.xla}{suffix}"


def parse_model(text: str) -> ModelSource:
    """--model's argument. Raises TargetError."""
    path = _SHIPPED / f"switch_{text}.py" if text in SHIPPED else Path(text)
    if not path.exists():
        raise TargetError(
            f"--model {text}: {path} is not there; expected {' or '.join(SHIPPED)} (in a checkout of "
            "FastServe), a Python file that exports versions, or a directory that holds them"
        )
    return ModelSource(text if text in SHIPPED else path.stem, Path(os.path.abspath(path)))


def parse_beside(text: str | None, model: ModelSource) -> ModelSource:
    """--beside's argument; without it the small ranker where that is there, otherwise the model itself."""
    if text is not None:
        return parse_model(text)
    return parse_model("small") if (_SHIPPED / "switch_small.py").exists() else model


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """--serve's arguments, TABLE.KEY=VALUE. Raises TargetError."""
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            raise TargetError(f"--serve {text}: expected TABLE.KEY=VALUE of config.toml")
        options[key.strip()] = parse_value(value.strip())
    return options


def parse_ablations(texts: Iterable[str], options: Mapping[str, Any]) -> list[Variant]:
    """--ablate's arguments: names of ABLATIONS, "all" of them, or TABLE.KEY=VALUE. Raises TargetError."""
    variants: dict[str, Variant] = {}
    for text in texts:
        if text == "all":
            variants |= {name: Variant(name, (name,), options) for name in ABLATIONS}
        elif "=" in text:
            variants[text] = Variant(text, (), {**options, **parse_options([text])})
        elif text in ABLATIONS:
            variants[text] = Variant(text, (text,), options)
        else:
            known = ", ".join(ABLATIONS)
            raise TargetError(f"--ablate {text}: expected all, {known}, or TABLE.KEY=VALUE of config.toml")
    return list(variants.values())
