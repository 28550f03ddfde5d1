"""Which SavedModel a command's argument means: a version's directory, or the newest version below a base
path.

For `fastserve export`, `profile` and `optimize`.
"""

from __future__ import annotations

from pathlib import Path

from fastserve.workshop.errors import WorkshopError

_SAVED_MODEL = "saved_model.pb"


def version_of(model: Path) -> Path:
    """The directory that holds the SavedModel. WorkshopError says what is there instead."""
    if not model.is_dir():
        raise WorkshopError(
            f"{model}: {'not a directory' if model.exists() else 'no such directory'}; name a version's "
            "directory, or a base path that holds some"
        )
    if (model / _SAVED_MODEL).exists():
        return model
    numbers = [child for child in model.iterdir() if child.name.isascii() and child.name.isdigit()]
    versions = sorted(numbers, key=lambda child: int(child.name))
    if versions and (versions[-1] / _SAVED_MODEL).exists():
        return versions[-1]
    there = [child for child in versions if (child / _SAVED_MODEL).exists()]
    if there:
        # An older one in its place would be exported or measured, and nobody would know.
        raise WorkshopError(
            f"{versions[-1]}: the newest version holds no {_SAVED_MODEL}; wait until it is whole, or name "
            f"the version that is meant ({there[-1]}, say)"
        )
    if versions:
        raise WorkshopError(f"{model}: none of its versions holds a {_SAVED_MODEL}")
    raise WorkshopError(
        f"{model}: holds neither a {_SAVED_MODEL} nor versions (directories whose names are numbers); name a "
        "directory written by tf.saved_model.save, model.export or fastserve export"
    )
