"""MODULE:FUNCTION as a source: what the user's function returns, as endpoints.

The function is called without arguments, in this process, and returns one of

- a Keras model, of Keras 3 or of tf_keras;
- a tf.Module, or any other trackable object: its signatures are what its attribute `signatures` has by name,
  or else every tf.function among its attributes that has an input_signature, by the attribute's name;
- a dict of tf.functions with an input_signature, or of concrete functions, by the signature's name; a single
  one is `serving_default`.

Inputs are called as the functions' arguments, those below a dict as its keys. A function that returns a dict
names its outputs; others are output_0, output_1, ... Tables and other resources are found in the object that
is returned, and in what the functions close over.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from fastserve.workshop.endpoint import Endpoint, Named, Source, first_line
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.export_keras import SIGNATURE, endpoint_of, generation_of
from fastserve.workshop.imports import import_named
from fastserve.workshop.structure import fill, flatten, names_of

_RETURNS = "a Keras model, a tf.Module with signatures, or a dict of tf.functions"


def read(name: str, dtypes: Mapping[str, str]) -> Source:
    """WorkshopError: there is no such function, it failed, or what it returned is no source."""
    function = import_named("SOURCE", name)
    if not callable(function):
        raise WorkshopError(
            f"{name} is a {type(function).__name__}; expected a function that returns {_RETURNS}"
        )
    try:
        made = function()
    except WorkshopError:
        raise
    except Exception as error:
        raise WorkshopError(f"{name}() failed: {first_line(error)}") from error
    generation = generation_of(made)
    if generation is not None:
        return Source(f"a Keras {generation} model", (endpoint_of(made, name, dtypes),), named=False)
    if dtypes:
        raise WorkshopError(f"--dtype {next(iter(dtypes))}: {name} knows its inputs' dtypes itself")
    functions = _functions(made)
    if not functions:
        raise WorkshopError(
            f"{name}() returned {_described(made)}; expected {_RETURNS} that have an input_signature"
        )
    owners = () if isinstance(made, Mapping) or _is_function(made) else (made,)
    endpoints = [_endpoint(name, key, functions[key], owners) for key in sorted(functions)]
    return Source(_described(made), tuple(endpoints))


def _described(made: Any) -> str:
    name = type(made).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _functions(made: Any) -> dict[str, Any]:
    if _is_function(made):
        return {SIGNATURE: made}
    given = made if isinstance(made, Mapping) else getattr(made, "signatures", None)
    if isinstance(given, Mapping) and given:
        return {str(name): function for name, function in given.items()}
    found = {}
    for name in dir(made):
        if not name.startswith("_"):
            value = inspect.getattr_static(made, name)
            if _is_function(value) and getattr(value, "input_signature", None) is not None:
                found[name] = getattr(made, name)
    return found


def _is_function(value: Any) -> bool:
    import tensorflow as tf

    kinds = tf.types.experimental
    return isinstance(value, (kinds.GenericFunction, kinds.ConcreteFunction))


def _endpoint(where: str, name: str, function: Any, owners: tuple[Any, ...]) -> Endpoint:
    if not _is_function(function):
        raise WorkshopError(
            f"{where}: signature {name!r} is {_described(function)}; expected a tf.function with an "
            "input_signature, or a concrete function"
        )
    return endpoint_of_function(where, name, function, (*owners, *_closed_over(function)))


def endpoint_of_function(where: str, name: str, function: Any, owners: tuple[Any, ...]) -> Endpoint:
    """Of a tf.function with an input_signature, or of a concrete function. WorkshopError."""
    import tensorflow as tf

    concrete = function
    if not isinstance(function, tf.types.experimental.ConcreteFunction):
        try:
            concrete = function.get_concrete_function()
        except Exception as error:
            raise WorkshopError(f"{where}: signature {name!r} {cannot_be_traced(error)}") from error
    positional, keyword = concrete.structured_input_signature
    in_order = _parameters(concrete, len(positional))
    arguments = {**dict(zip(in_order, positional, strict=True)), **keyword}
    # One argument that is a dict or a list is the inputs; its own name says nothing.
    wrapped = len(arguments) == 1 and isinstance(next(iter(arguments.values())), (Mapping, list, tuple))
    key = next(iter(arguments), "")
    names = {key: names_of(arguments[key], _spec_name)} if wrapped else names_of(arguments, _spec_name)
    specs = flatten(names, arguments)
    for alias, spec in specs.items():
        if not isinstance(spec, tf.TensorSpec):
            raise WorkshopError(
                f"{where}: signature {name!r}: input {alias!r} is {_described(spec)}; requests carry dense "
                "tensors only"
            )
    # More rows than the input_signature says are for the function itself.
    plain = getattr(function, "python_function", None)

    def run(target: Any, tensors: Named) -> Named:
        packed = fill(names, tensors)
        result = target(*[packed.pop(parameter) for parameter in in_order], **packed)
        return flatten(names_of(result, lambda leaf, number: f"output_{number}"), result)

    def call(tensors: Named) -> Named:
        fits = all(tensor.shape.is_subtype_of(specs[alias].shape) for alias, tensor in tensors.items())
        return run(function if fits or plain is None else plain, tensors)

    return Endpoint(name, specs, call, lambda tensors: run(function, tensors), owners)


def _parameters(concrete: Any, count: int) -> list[str]:
    """Names of the positional arguments."""
    names = list(concrete.function_type.parameters)
    return [name for name in names if name != "self"][:count]


def _spec_name(spec: Any, number: int) -> str:
    return str(getattr(spec, "name", None) or f"input_{number}")


def _closed_over(function: Any) -> tuple[Any, ...]:
    """Trackable objects that the Python function behind a tf.function uses and nobody else may name."""
    import tensorflow as tf

    plain = getattr(function, "python_function", None)
    try:
        found = inspect.getclosurevars(inspect.unwrap(plain)) if plain is not None else None
    except (TypeError, ValueError):
        found = None
    if found is None:
        return ()
    values = [*found.nonlocals.values(), *found.globals.values()]
    return tuple(value for value in values if isinstance(value, tf.__internal__.tracking.Trackable))


def cannot_be_traced(error: BaseException) -> str:
    """Why Python code does not become a graph, and what to do."""
    return (
        f"cannot be traced into a graph, which is what a server runs: {first_line(error)}; what runs Python "
        "on values (numpy, .numpy(), if and for over tensors) has to be written with TensorFlow's ops, or "
        "left to the caller"
    )
