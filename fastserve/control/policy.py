"""Transition policies: in which order the versions of a model come and go. Pure functions.

Each looks at all versions of one model and says what is to be done next; the stream does it and asks again
after every change. Known by their names in [models.versions] transition.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastserve.extensions import Action, Snapshot, State, Step, VersionPolicy


def availability_preserving(versions: Sequence[Snapshot]) -> Action | None:
    """Loads before it unloads: an old version goes when one that takes its place is there. Needs the memory
    of two versions."""
    aspired = [v for v in versions if v.aspired]
    replaced = not aspired or any(v.state is State.AVAILABLE for v in aspired)
    if replaced and (old := _unloadable(versions)) is not None:
        return Action(Step.UNLOAD, old)
    if (new := _loadable(versions)) is not None:
        return Action(Step.LOAD, new)
    return None


def resource_preserving(versions: Sequence[Snapshot]) -> Action | None:
    """Unloads before it loads: nothing is loaded while a version that is no longer wanted holds memory. The
    model is not there meanwhile."""
    if (old := _unloadable(versions)) is not None:
        return Action(Step.UNLOAD, old)
    if any(not v.aspired and v.state in (State.LOADING, State.UNLOADING) for v in versions):
        return None
    if (new := _loadable(versions)) is not None:
        return Action(Step.LOAD, new)
    return None


POLICIES: dict[str, VersionPolicy] = {
    "availability": availability_preserving,
    "resource": resource_preserving,
}


def permitted(action: Action, versions: Sequence[Snapshot]) -> bool:
    """Whether a policy, which may be a plug-in's, asks for something that can be done."""
    for v in versions:
        if v.version == action.version:
            if action.step is Step.LOAD:
                return v.aspired and v.state is State.START
            return not v.aspired and v.state is State.AVAILABLE
    return False


def _unloadable(versions: Sequence[Snapshot]) -> int | None:
    """The oldest version that is served and not wanted."""
    return min((v.version for v in versions if not v.aspired and v.state is State.AVAILABLE), default=None)


def _loadable(versions: Sequence[Snapshot]) -> int | None:
    """The newest version that is wanted and not begun."""
    return max((v.version for v in versions if v.aspired and v.state is State.START), default=None)
