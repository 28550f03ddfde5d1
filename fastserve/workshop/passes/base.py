"""What a pass is, and what the user chose for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastserve.workshop.optimizing.graph import Graph


@dataclass(frozen=True, slots=True)
class Options:
    """`freeze_bytes`: variables up to this size become constants, and tables made of them, too.
    `user_inputs`: inputs that are the same in all rows of a request."""

    freeze_bytes: int = 1 << 20
    user_inputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pass:
    """`run`: changes the graph in place and returns in how many places. `lays_ground`: later passes find more
    after it, so it stays unless it makes the model slower. `approximate`: only rows that were run show how
    far answers are off, so it has to be asked for, and wants real ones."""

    name: str
    about: str
    run: Callable[[Graph, Options], int]
    lays_ground: bool = False
    approximate: bool = False
