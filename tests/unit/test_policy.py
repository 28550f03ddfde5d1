"""Transition policies, as tables: which versions there are, and what happens next."""

from __future__ import annotations

import pytest

from fastserve.control.policy import availability_preserving, permitted, resource_preserving
from fastserve.extensions import Action, Snapshot, State, Step

LOAD, UNLOAD = Step.LOAD, Step.UNLOAD


def versions(text: str) -> list[Snapshot]:
    """ "1:available 2+start": + is aspired, : is not; "failed" is END with an error."""
    found = []
    for word in text.split():
        aspired = "+" in word
        number, state = word.split("+" if aspired else ":")
        failed = state == "failed"
        found.append(Snapshot(int(number), State.END if failed else State[state.upper()], aspired, failed))
    return found


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("", None),
        ("1+start", (LOAD, 1)),
        ("1+loading", None),
        ("1+available", None),
        # The new one first; the old one goes when that is there.
        ("1:available 2+start", (LOAD, 2)),
        ("1:available 2+loading", None),
        ("1:available 2+available", (UNLOAD, 1)),
        ("1:unloading 2+available", None),
        ("1:end 2+available", None),
        # What failed takes nobody's place.
        ("1:available 2+failed", None),
        ("1:available 2+failed 3+start", (LOAD, 3)),
        ("1:available 2+failed 3+available", (UNLOAD, 1)),
        # One that is there will do for the others that are not.
        ("1:available 2+available 3+start", (UNLOAD, 1)),
        ("2+available 3+start", (LOAD, 3)),
        # The newest first, the oldest goes first.
        ("1+start 2+start 3+start", (LOAD, 3)),
        ("1+start 2+start 3+loading", (LOAD, 2)),
        ("1:available 2:available 3+available", (UNLOAD, 1)),
        # Nothing is wanted.
        ("1:available", (UNLOAD, 1)),
        ("1:available 2:loading", (UNLOAD, 1)),
        ("1:loading", None),
        ("1:unloading", None),
        ("1:failed", None),
    ],
)
def test_availability_preserving(text: str, action: tuple[Step, int] | None) -> None:
    assert availability_preserving(versions(text)) == (Action(*action) if action else None)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("", None),
        ("1+start", (LOAD, 1)),
        ("1+available", None),
        # The old one first; the new one when it has gone.
        ("1:available 2+start", (UNLOAD, 1)),
        ("1:unloading 2+start", None),
        ("1:loading 2+start", None),
        ("1:end 2+start", (LOAD, 2)),
        ("1:failed 2+start", (LOAD, 2)),
        ("1:available 2+available", (UNLOAD, 1)),
        ("1:available 2:available 3+start", (UNLOAD, 1)),
        ("1:unloading 2:available 3+start", (UNLOAD, 2)),
        ("1+loading 2+start", (LOAD, 2)),
        ("1:available", (UNLOAD, 1)),
    ],
)
def test_resource_preserving(text: str, action: tuple[Step, int] | None) -> None:
    assert resource_preserving(versions(text)) == (Action(*action) if action else None)


@pytest.mark.parametrize(
    ("text", "action", "yes"),
    [
        ("1+start", (LOAD, 1), True),
        ("1:start", (LOAD, 1), False),
        ("1+loading", (LOAD, 1), False),
        ("1+failed", (LOAD, 1), False),
        ("1:available", (UNLOAD, 1), True),
        ("1+available", (UNLOAD, 1), False),
        ("1:loading", (UNLOAD, 1), False),
        ("1:available", (UNLOAD, 7), False),
    ],
)
def test_what_a_policy_may_ask_for(text: str, action: tuple[Step, int], yes: bool) -> None:
    assert permitted(Action(*action), versions(text)) is yes
