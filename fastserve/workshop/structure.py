"""Nested inputs and outputs of Python models as a signature's flat ones, each with a name, and back.

A structure is nested dicts, lists and tuples (named ones, too) around leaves; a structure of names is the
same around texts. Pure: knows neither TensorFlow nor Keras.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def names_of(structure: Any, leaf_name: Callable[[Any, int], str]) -> Any:
    """The structure of names for `structure`: a leaf below a dict or a named tuple has its keys, joined by
    "_", any other one `leaf_name(leaf, its number)`. Those that come again get a number."""
    taken: set[str] = set()
    count = 0

    def visit(part: Any, path: tuple[str, ...]) -> Any:
        nonlocal count
        if _keys(part) is None:
            name = unique("_".join(path) if path else leaf_name(part, count), taken)
            count += 1
            return name
        # Places in a list tell parts of something named apart; alone they say nothing.
        named = bool(path) or not _is_list(part)
        return _like(part, [visit(value, (*path, str(key)) if named else ()) for key, value in _items(part)])

    return visit(structure, ())


def flatten(names: Any, structure: Any) -> dict[str, Any]:
    """The leaves of `structure` by their names. ValueError when it is not built as `names` is; a list of one
    and its item are the same, and so are lists and tuples."""
    if isinstance(names, str):
        while _is_list(structure) and len(structure) == 1:
            structure = structure[0]
        if _keys(structure) is not None:
            raise ValueError(f"there is a {type(structure).__name__} where {names} should be")
        return {names: structure}
    if _is_list(names) and len(names) == 1 and not _is_list(structure):
        return flatten(names[0], structure)
    expected, found = _keys(names), _keys(structure)
    if expected is None or found is None or list(map(str, expected)) != list(map(str, found)):
        raise ValueError(f"expected {_shown(names)}, found {_shown(structure)}")
    flat: dict[str, Any] = {}
    for (_, name), (_, part) in zip(_items(names), _items(structure), strict=True):
        flat.update(flatten(name, part))
    return flat


def fill(names: Any, leaves: Mapping[str, Any]) -> Any:
    """The structure that `names` stands for, with its leaves. KeyError: one is missing."""
    if isinstance(names, str):
        return leaves[names]
    return _like(names, [fill(part, leaves) for _, part in _items(names)])


def flat_names(names: Any) -> Iterator[str]:
    """The names in a structure of them, in its order."""
    if isinstance(names, str):
        yield names
    else:
        for _, part in _items(names):
            yield from flat_names(part)


def unique(name: str, taken: set[str]) -> str:
    """`name`, or with a number when it is taken; taken from now on."""
    proposed, number = name, 0
    while proposed in taken:
        number += 1
        proposed = f"{name}_{number}"
    taken.add(proposed)
    return proposed


def _is_list(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and not hasattr(part, "_fields")


def _keys(part: Any) -> list[Any] | None:
    """What tells the parts apart, dicts' keys in order of the alphabet; None for a leaf."""
    if isinstance(part, Mapping):
        return sorted(part, key=str)
    if isinstance(part, (list, tuple)):
        return list(getattr(part, "_fields", range(len(part))))
    return None


def _items(part: Any) -> list[tuple[Any, Any]]:
    keys = _keys(part) or []
    return (
        [(key, part[key]) for key in keys]
        if isinstance(part, Mapping)
        else list(zip(keys, part, strict=True))
    )


def _like(part: Any, values: list[Any]) -> Any:
    """A part of the same kind with these values. Wrapped dicts and lists become plain ones."""
    if isinstance(part, Mapping):
        return dict(zip(_keys(part) or (), values, strict=True))
    if hasattr(part, "_fields"):
        return type(part)(*values)
    return tuple(values) if isinstance(part, tuple) else values


def _shown(part: Any) -> str:
    keys = _keys(part)
    if keys is None:
        return part if isinstance(part, str) else f"a {type(part).__name__}"
    if _is_list(part):
        return f"[{', '.join(_shown(value) for _, value in _items(part))}]"
    return f"{{{', '.join(map(str, keys))}}}"
