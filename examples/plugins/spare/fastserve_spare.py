"""A VersionPolicy, transition = "spare": the version before stays loaded, so that going back takes no time.

A new version is loaded before the old one goes, as with "availability". The old one then stays as a spare
until the next version is to be loaded: there is never more than one besides those that the source asks for.
Going back is for the source to ask for the old version again: it is there already, and the newer one is
unloaded at once, since clients that name no version get the newest that is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastserve.extensions import Action, Snapshot, State, Step


def spare(versions: Sequence[Snapshot]) -> Action | None:
    """fastserve.extensions.VersionPolicy. A pure function."""
    wanted = [v for v in versions if v.aspired]
    loaded = [v for v in wanted if v.state is State.AVAILABLE]
    leftover = sorted(v.version for v in versions if not v.aspired and v.state is State.AVAILABLE)
    to_load = sorted(v.version for v in wanted if v.state is State.START)

    newest = max((v.version for v in loaded), default=None)
    if newest is not None:
        newer = [version for version in leftover if version > newest]
        if newer:  # the source went back
            return Action(Step.UNLOAD, newer[-1])
    if not wanted and leftover:  # nothing shall be served
        return Action(Step.UNLOAD, leftover[0])
    if len(leftover) > 1:  # of these the newest is the spare, or still serves
        return Action(Step.UNLOAD, leftover[0])
    if to_load:
        return Action(Step.LOAD, to_load[-1])
    return None
