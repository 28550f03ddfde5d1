"""--platform_config_file: for the platform "tensorflow", a SavedModelBundleSourceAdapterConfig.

As in TensorFlow Serving it takes the place of the flags for batching, sessions, warm-up, tags and TFLite.
What of it means nothing here is noted.
"""

from __future__ import annotations

from typing import Any

from fastserve.compat.batching import add_platform_batching
from fastserve.compat.draft import Draft
from fastserve.compat.flags import Flags
from fastserve.compat.session import set_precision, set_session
from fastserve.compat.tflite import prefer_tflite, set_interpreters
from fastserve.errors import ConfigError
from fastserve.protos import message
from fastserve.text_proto import TextProto, read_text_proto

# Whose place it takes.
REPLACED = (
    "enable_batching",
    "batching_parameters_file",
    "enable_per_model_batching_parameters",
    "tensorflow_session_parallelism",
    "tensorflow_session_config_file",
    "tensorflow_intra_op_parallelism",
    "tensorflow_inter_op_parallelism",
    "per_process_gpu_memory_fraction",
    "saved_model_tags",
    "enable_model_warmup",
    "num_request_iterations_for_warmup",
    "mixed_precision",
    "prefer_tflite_model",
    "num_tflite_pools",
)

# By the message in the Any, which field of it is a SessionBundleConfig.
_ADAPTERS = {
    "tensorflow.serving.SavedModelBundleSourceAdapterConfig": "legacy_config",
    "tensorflow.serving.SessionBundleSourceAdapterConfig": "config",
}

_WITHOUT_EFFECT = {
    "session_run_load_threadpool_index": "variables are restored in the loader's own thread",
    "experimental_transient_ram_bytes_during_load": "the trial measures what a version takes",
    "enable_session_metadata": "the runtime is not told of names",
    "remove_unused_fields_from_bundle_metagraph": "the serving process keeps no meta graph at all",
    "num_tflite_interpreters_per_pool": "a batch is one run and not divided between several",
    "resource_estimation_uses_validation_result": "the trial measures what a version takes",
    "wrap_session_with_no_threading_params": "a run stays in its executor's thread",
    "num_model_warmup_threads": "the thread that loads a version warms it",
    "enable_all_batch_sizes_warmup": "every batch size is always warmed",
    "model_name": "records are run on the version that brings them",
    "model_version": "records are run on the version that brings them",
}


def add_platform(draft: Draft, flags: Flags) -> None:
    """What the file says, for every model."""
    for name in REPLACED:
        if name in flags.given:
            draft.note(f"--{name} has no effect beside --platform_config_file, which takes its place")
    with draft.trying():
        source = read_text_proto(flags.text("platform_config_file"), "tensorflow.serving.PlatformConfigMap")
        field, bundle = _bundle(source)
        _add(draft, source, field, bundle)


def _bundle(source: TextProto) -> tuple[str, Any]:
    """The SessionBundleConfig for TensorFlow's models, and the field that it is in."""
    platforms = source.message.platform_configs
    others = sorted(set(platforms) - {"tensorflow"})
    if others:
        raise ConfigError(
            [f'{source.file}: platform {name} is not served: expected "tensorflow"' for name in others]
        )
    if "tensorflow" not in platforms:
        raise ConfigError(
            [f'{source.file}: expected platform_configs {{ key: "tensorflow" value {{ ... }} }}']
        )
    wrapped = platforms["tensorflow"].source_adapter_config
    kind = wrapped.type_url.rpartition("/")[2]
    if kind not in _ADAPTERS:
        raise ConfigError(
            [
                f"{source.at('source_adapter_config')}: it holds {kind or 'nothing'}: "
                f"expected {' or '.join(_ADAPTERS)}"
            ]
        )
    adapter = message(kind).FromString(wrapped.value)
    return _ADAPTERS[kind], getattr(adapter, _ADAPTERS[kind])


def _add(draft: Draft, source: TextProto, field: str, bundle: Any) -> None:
    why = "--platform_config_file"
    if bundle.session_target:
        draft.problem(
            f"{source.at('session_target')}: session_target: models run on this machine only; leave it out"
        )
    if bundle.HasField("batching_parameters"):
        inner = TextProto(source.file, source.text, bundle)
        own = bundle.enable_per_model_batching_params
        add_platform_batching(draft, inner, ("batching_parameters",), own)
    elif bundle.enable_per_model_batching_params:
        where = source.at("enable_per_model_batching_params")
        draft.note(f"{where}: enable_per_model_batching_params has no effect without batching_parameters")
    set_precision(draft, bundle.session_config, bundle.mixed_precision, source.at("mixed_precision"))
    set_session(draft, bundle.session_config, source.at("session_config"))
    if bundle.saved_model_tags:
        draft.set_every_model("", "tags", list(bundle.saved_model_tags), why)
    if not bundle.enable_model_warmup:
        draft.set_every_model("warmup", "records", False, why)
    iterations = bundle.model_warmup_options.num_request_iterations.value
    if iterations > 0:
        set_iterations(draft, iterations, source.at("num_request_iterations"))
    if bundle.prefer_tflite_model:
        prefer_tflite(draft, source.at("prefer_tflite_model"))
    if bundle.num_tflite_pools > 0:
        set_interpreters(draft, bundle.num_tflite_pools, source.at("num_tflite_pools"))
    for name, reason in _WITHOUT_EFFECT.items():
        if name in _given(bundle) | _given(bundle.model_warmup_options):
            draft.note(f"{source.at(name)}: {name} has no effect: {reason}")


def _given(bundle: Any) -> set[str]:
    return {field.name for field, _ in bundle.ListFields()}


def set_iterations(draft: Draft, iterations: int, where: str) -> None:
    """[models.warmup] iterations of every model."""
    if iterations > 1000:
        draft.note(f"{where}: {iterations} iterations: 1000 are made, the most there are")
    draft.set_every_model("warmup", "iterations", min(iterations, 1000), where)
