"""Version labels, by TensorFlow Serving's rules. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def why_not(
    model: str,
    present: Mapping[str, int],
    new: Mapping[str, int],
    available: Collection[int],
    *,
    unavailable_allowed: bool,
) -> str:
    """Why the labels `new` cannot be assigned beside those that are `present`; "" when they can.

    A label names a version that is available. With `unavailable_allowed` one that is not in use yet may name
    any version: a label that clients follow is never led to a version that is not there.
    """
    for label, version in new.items():
        if version in available or present.get(label) == version:
            continue
        if unavailable_allowed and label not in present:
            continue
        return (
            f"Request to assign label to version {version} of model {model}, which is not currently "
            "available for inference"
        )
    return ""


def assignable(
    labels: Mapping[str, int], available: Collection[int], *, unavailable_allowed: bool
) -> dict[str, int]:
    """Those of `labels` that the core is to know now."""
    return {label: v for label, v in labels.items() if unavailable_allowed or v in available}
