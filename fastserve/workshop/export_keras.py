"""Keras models, of Keras 3 and of Keras 2 (tf_keras), as endpoints; and how their files are loaded.

Both packages have the same names for what is used here. A model that was made of symbolic inputs says itself
what it takes; a subclassed one has what it was built with.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from fastserve.workshop.endpoint import Endpoint, Named, first_line
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.export_keras_file import KerasFile
from fastserve.workshop.structure import fill, flat_names, flatten, names_of

SIGNATURE = "serving_default"
_PACKAGES = {2: "tf_keras", 3: "keras"}
# How either Keras says, somewhere in a long text, that it does not know a class.
_UNKNOWN_OBJECT = re.compile(r"(could not locate (class|function)|unknown \w+):? '[^']*'", re.I)


def load(file: KerasFile, generation: int, custom: Mapping[str, Any], *, trust_lambda: bool) -> Any:
    """The model in `file`, without its optimizer. WorkshopError."""
    if file.lambdas and not trust_lambda:
        raise WorkshopError(
            f"{file.path}: {_layers(file.lambdas)} made of a Python lambda, whose code is in the file and "
            "would run here; if you trust the file, give --trust-lambda, else write the layer as a "
            "registered class"
        )
    keras = package(generation)
    try:
        return keras.models.load_model(
            str(file.path), custom_objects=dict(custom), compile=False, safe_mode=not trust_lambda
        )
    except Exception as error:
        what, remedy = first_line(error), f"Keras {file.version or '(it does not say)'} wrote it"
        unknown = _UNKNOWN_OBJECT.search(str(error))
        if unknown is not None:
            what = unknown.group()
            remedy = (
                "give the module that registers its classes, with keras.saving.register_keras_serializable: "
                "--custom MODULE, or --custom MODULE:NAME for a dict of them"
            )
        elif generation != file.generation:
            remedy += f", and --keras {file.generation} reads it with that"
        raise WorkshopError(
            f"{file.path}: Keras {keras.__version__} cannot load it: {what}; {remedy}"
        ) from error


def package(generation: int) -> Any:
    """The Keras of this generation. WorkshopError says how to get it."""
    name = _PACKAGES[generation]
    try:
        keras = importlib.import_module(name)
    except ImportError as error:
        raise WorkshopError(
            f"Keras {generation} models need {name} ({first_line(error)}): pip install "
            "'fastserve[workshop]', or, "
            f"beside a TensorFlow of another name, pip install --no-deps {name}"
        ) from error
    if not keras.__version__.startswith(f"{generation}."):
        raise WorkshopError(
            f"{name} is version {keras.__version__} here and is wanted as Keras {generation}: pip install "
            f"'{name}>={generation}'"
        )
    return keras


def generation_of(value: Any) -> int | None:
    """2 or 3 for a Keras model, None for anything else. Imports nothing."""
    for generation, name in _PACKAGES.items():
        keras = sys.modules.get(name)
        if keras is not None and hasattr(keras, "Model") and isinstance(value, keras.Model):
            return generation
    return None


def endpoint_of(model: Any, where: str, dtypes: Mapping[str, str] | None = None) -> Endpoint:
    """The model's forward pass, as at inference. `dtypes` by input, for those that a subclassed model does
    not know. WorkshopError."""
    stateful = [layer.name for layer in _layers_within(model) if getattr(layer, "stateful", False) is True]
    if stateful:
        raise WorkshopError(
            f"{where}: {_layers(stateful)} stateful: one request's answer would depend on the ones before, "
            "whosever they are; build it with stateful=False, and take the state as an input if need be"
        )
    symbolic = _symbolic(model)
    if symbolic is None:
        return _subclassed(model, where, dict(dtypes or {}))
    if dtypes:
        raise WorkshopError(f"--dtype {next(iter(dtypes))}: {where} knows its inputs' dtypes itself")
    inputs, outputs = symbolic
    names, output_names = names_of(inputs, _tensor_name), names_of(outputs, _tensor_name)
    specs = {name: _spec(where, name, tensor) for name, tensor in flatten(names, inputs).items()}

    def call(tensors: Named) -> Named:
        return flatten(output_names, model(fill(names, tensors), training=False))

    def predict(tensors: Named) -> Named:
        return flatten(output_names, model.predict_on_batch(fill(names, tensors)))

    return Endpoint(SIGNATURE, specs, call, predict, owners=(model,))


def _symbolic(model: Any) -> tuple[Any, Any] | None:
    """The structures of the tensors that a functional or Sequential model was made of; None: neither."""
    try:
        flat_inputs, flat_outputs = model.inputs, model.outputs
        if not flat_inputs or not flat_outputs:
            return None
        if any(base.__name__ == "Sequential" for base in type(model).__mro__):
            return flat_inputs[0], flat_outputs[0]
        return model.input, model.output
    except (AttributeError, ValueError, RuntimeError):
        return None


def _subclassed(model: Any, where: str, dtypes: dict[str, str]) -> Endpoint:
    arguments, by_keyword = _built_with(model, where)
    parameters = inspect.signature(model.call).parameters
    first = next(iter(parameters), "inputs")
    known = set(arguments) if by_keyword else {first}
    unknown = {name for name, one in parameters.items() if one.default is one.empty and name not in known}
    unknown -= {name for name, one in parameters.items() if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    if unknown:
        shapes = ", ".join(f"{name}_shape" for name in parameters if name in known | unknown)
        raise WorkshopError(
            f"{where}: {type(model).__name__}.call takes {', '.join(sorted(unknown))}, of which Keras does "
            f"not remember the shape; give the class a build(self, {shapes}), or one argument that is a dict"
        )
    names = names_of(arguments, lambda leaf, number: first)
    strangers = set(dtypes) - set(flat_names(names))
    if strangers:
        there = ", ".join(flat_names(names))
        raise WorkshopError(f"--dtype {min(strangers)}: {where} has no such input; there are: {there}")
    specs = {
        name: _retyped(where, name, spec, dtypes.get(name))
        for name, spec in flatten(names, arguments).items()
    }
    training = {"training": False} if "training" in parameters else {}

    def run(tensors: Named) -> Any:
        packed = fill(names, tensors)
        return model(**packed, **training) if by_keyword else model(packed, **training)

    def named(result: Any) -> Named:
        return flatten(names_of(result, lambda leaf, number: f"output_{number}"), result)

    def predict(tensors: Named) -> Named:
        # Keras' own predict takes one argument.
        return named(run(tensors) if by_keyword else model.predict_on_batch(fill(names, tensors)))

    return Endpoint(SIGNATURE, specs, lambda tensors: named(run(tensors)), predict, owners=(model,))


def _built_with(model: Any, where: str) -> tuple[Any, bool]:
    """A structure of tf.TensorSpecs, and whether it is keyword arguments."""
    import tensorflow as tf

    save_spec = getattr(model, "save_spec", None)  # Keras 2, which remembers dtypes as well
    specs = save_spec(dynamic_batch=True) if save_spec is not None else None
    if specs is not None and len(specs[0]) == 1:
        return specs[0][0], False
    config = model.get_build_config() if hasattr(model, "get_build_config") else None
    shapes = (config or {}).get("input_shape")
    several = (config or {}).get("shapes_dict")
    if shapes is None and not several:
        raise WorkshopError(
            f"{where}: {type(model).__name__} has not been built, so nobody knows its inputs' shapes; call "
            "it once on a batch before it is saved, or give MODULE:FUNCTION for a tf.Module with signatures"
        )

    def spec(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: spec(value) for key, value in part.items()}
        if all(dim is None or isinstance(dim, int) for dim in part):
            return tf.TensorSpec([None, *part[1:]], tf.float32)
        return [spec(value) for value in part]

    if several:
        return {key.removesuffix("_shape"): spec(value) for key, value in several.items()}, True
    return spec(shapes), False


def _retyped(where: str, name: str, spec: Any, dtype: str | None) -> Any:
    import tensorflow as tf

    if dtype is None:
        return tf.TensorSpec(spec.shape, spec.dtype)
    try:
        return tf.TensorSpec(spec.shape, tf.as_dtype(dtype))
    except TypeError:
        raise WorkshopError(
            f"--dtype {name}={dtype}: {where}: {dtype!r} is no dtype, such as int64"
        ) from None


def _spec(where: str, name: str, tensor: Any) -> Any:
    """The tf.TensorSpec of a symbolic input."""
    import tensorflow as tf

    kind = type(getattr(tensor, "type_spec", None)).__name__
    for wrong in ("sparse", "ragged"):
        if getattr(tensor, wrong, False) or kind.lower().startswith(wrong):
            raise WorkshopError(
                f"{where}: input {name!r} is {wrong}, and requests carry dense tensors only; give "
                f"MODULE:FUNCTION for a function that makes the {wrong} tensor of dense ones"
            )
    return tf.TensorSpec(tensor.shape, tensor.dtype)


def _tensor_name(tensor: Any, number: int) -> str:
    """After the layer that a symbolic tensor comes from."""
    history = getattr(tensor, "_keras_history", None)
    layer = getattr(history, "operation", None) or getattr(history, "layer", None)
    return str(layer.name if layer is not None else tensor.name)


def _layers_within(model: Any) -> Iterator[Any]:
    for layer in getattr(model, "layers", ()):
        yield layer
        yield from _layers_within(layer)


def _layers(names: Any) -> str:
    listed = ", ".join(repr(name) for name in names)
    return f"layer {listed} is" if len(names) == 1 else f"layers {listed} are"
