"""Every flag of tensorflow_model_server, and what becomes of it here.

The names, types and defaults are TensorFlow Serving's, but for OWN. From this table come the parser,
`--help`, the lines that are printed when a flag has no effect, the refusals, and docs/tfserving_flags.md.
Values only.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

Value = bool | int | float | str
Kind = Literal["bool", "int32", "int64", "float", "string"]


class Verdict(enum.Enum):
    WORKS = "works"
    NO_EFFECT = "no effect"
    REFUSED = "refused"


@dataclass(frozen=True)
class Flag:
    """`default`: None when it depends on the machine. `text`: what the flag does here, why it does nothing,
    or what to use instead."""

    name: str
    kind: Kind
    default: Value | None
    verdict: Verdict
    text: str

    @property
    def shown_default(self) -> str:
        if self.default is None:
            return ""
        if isinstance(self.default, bool):
            return "true" if self.default else "false"
        return str(self.default)


def _works(name: str, kind: Kind, default: Value | None, text: str) -> Flag:
    return Flag(name, kind, default, Verdict.WORKS, text)


def _no_effect(name: str, kind: Kind, default: Value | None, text: str) -> Flag:
    return Flag(name, kind, default, Verdict.NO_EFFECT, text)


def _refused(name: str, kind: Kind, default: Value | None, text: str) -> Flag:
    return Flag(name, kind, default, Verdict.REFUSED, text)


FLAGS: tuple[Flag, ...] = (
    _works(
        "port", "int32", 8500, "[server] listen, on every interface; 0: no TCP port, only grpc_socket_path"
    ),
    _works("grpc_socket_path", "string", "", "[server] listen, beside the port"),
    _works("rest_api_port", "int32", 0, "[gateway] listen, on every interface; 0: no REST API"),
    _works(
        "rest_api_num_threads",
        "int32",
        None,
        "[gateway] processes: one for every four threads, up to the number of processors; without it one",
    ),
    _works("rest_api_timeout_in_ms", "int32", 30000, "[gateway] timeout_s"),
    _works("rest_api_enable_cors_support", "bool", False, "[gateway] cors"),
    _works(
        "enable_batching",
        "bool",
        False,
        "limits as TensorFlow Serving's batching has them, refuse_larger = true; without it requests "
        "share batches, too, where the trial has proved their rows independent, and none is refused "
        "for its size",
    ),
    _works(
        "allow_version_labels_for_unavailable_models",
        "bool",
        False,
        "[loading] labels_for_unavailable",
    ),
    _works(
        "batching_parameters_file", "string", "", "[models.batching] of every model; needs enable_batching"
    ),
    _works(
        "enable_per_model_batching_parameters",
        "bool",
        False,
        "[models.batching] version_file: batching_params.pbtxt in a version's directory; of the "
        "global file only num_batch_threads counts then; a version without the file is served as "
        "without enable_batching",
    ),
    _works(
        "model_config_file", "string", "", "[[models]]; model_name and model_base_path are not looked at then"
    ),
    _works(
        "model_config_file_poll_wait_seconds",
        "int32",
        0,
        "[server] config_poll_s: how often model_config_file is looked at for changes; 0: only on "
        "SIGHUP. A file with an error changes nothing",
    ),
    _works("model_name", "string", "default", "name of the one model"),
    _works("model_base_path", "string", "", "base_path of the one model; required without model_config_file"),
    _works("num_load_threads", "int32", 0, "[executor] load_threads, 1 to 16"),
    _no_effect(
        "num_unload_threads", "int32", 0, "the threads that load also unload, and never the ones that serve"
    ),
    _works("max_num_load_retries", "int32", 5, "[loading] retries"),
    _works(
        "load_retry_interval_micros",
        "int64",
        60_000_000,
        "[loading] retry_s and retry_max_s; without it the pauses grow from 1 s to a minute",
    ),
    _works("file_system_poll_wait_seconds", "int32", 1, "[loading] poll_s; 0: once"),
    _no_effect(
        "flush_filesystem_caches",
        "bool",
        True,
        "the page cache is the kernel's, which takes it back when it needs it",
    ),
    _works(
        "tensorflow_session_parallelism",
        "int64",
        0,
        "[tensorflow] intra_op_threads and inter_op_threads; 0: one thread within a run, for runs go "
        "side by side",
    ),
    _works(
        "tensorflow_session_config_file",
        "string",
        "",
        "[tensorflow], session_config for what has no key there",
    ),
    _works("tensorflow_intra_op_parallelism", "int64", 0, "[tensorflow] intra_op_threads"),
    _works("tensorflow_inter_op_parallelism", "int64", 0, "[tensorflow] inter_op_threads"),
    _refused("use_alts_credentials", "bool", False, "ALTS is for Google's own network: use ssl_config_file"),
    _works(
        "ssl_config_file",
        "string",
        "",
        "[server.tls]; the keys and certificates are written to state_dir/tls",
    ),
    _works(
        "platform_config_file",
        "string",
        "",
        "its platform tensorflow takes the place of batching, session, warm-up, tag and TFLite flags, as far "
        "as it has what applies here",
    ),
    _works(
        "per_process_gpu_memory_fraction",
        "float",
        0.0,
        "[tensorflow] gpu_memory_fraction, taken at the start; 0: as it is needed",
    ),
    _works("saved_model_tags", "string", "serve", "tags of every model"),
    _works(
        "grpc_channel_arguments",
        "string",
        "",
        "[limits], for the arguments that have a key there; each other one is named when it is given",
    ),
    _no_effect("grpc_max_threads", "int32", None, "no thread waits for a call: see [server] io_threads"),
    _works("enable_model_warmup", "bool", True, "[models.warmup] records"),
    _works("num_request_iterations_for_warmup", "int32", 0, "[models.warmup] iterations; 0: one"),
    _works("version", "bool", False, "prints the versions of FastServe and of TensorFlow's library"),
    _works(
        "monitoring_config_file",
        "string",
        "",
        "[monitoring] metrics_path; on --rest_api_port, and on monitor.sock in the state directory",
    ),
    _no_effect(
        "remove_unused_fields_from_bundle_metagraph",
        "bool",
        True,
        "the serving process keeps no meta graph at all",
    ),
    _works(
        "prefer_tflite_model",
        "bool",
        False,
        '[[models]] prefer_tflite, with tflite_aliases = "tensors"; needs the extra fastserve[tflite]',
    ),
    _works("num_tflite_pools", "int32", None, "[litert] interpreters, 1 to 64: runs of one model at once"),
    _no_effect(
        "num_tflite_interpreters_per_pool", "int32", 1, "a batch is one run and not divided between several"
    ),
    _works("enable_signature_method_name_check", "bool", False, "[server] check_method_names"),
    _no_effect(
        "xla_cpu_compilation_enabled",
        "bool",
        False,
        "XLA is never switched off: functions exported with jit_compile=True are compiled. Whole "
        "signatures are with xla in [[models]], clusters with global_jit_level in "
        "tensorflow_session_config_file",
    ),
    _no_effect("xla_gpu_compilation_enabled", "bool", False, "as xla_cpu_compilation_enabled"),
    _no_effect("enable_profiler", "bool", True, "there is no profiler in the serving process"),
    _refused(
        "thread_pool_factory_config_file",
        "string",
        "",
        "no thread pool is there to be named, as in TensorFlow Serving's own binary: leave it out; "
        "[executor] threads and [tensorflow] intra_op_threads say how many threads run models",
    ),
    _works("mixed_precision", "string", "", '[tensorflow] session_config, for "bfloat16"'),
    _no_effect("skip_initialize_tpu", "bool", False, "there are no TPUs here"),
    _no_effect("enable_grpc_healthcheck_service", "bool", False, "grpc.health.v1.Health is always there"),
    _works("enable_serialization_as_tensor_content", "bool", False, "[server] tensor_content_replies"),
    _works(
        "custom_op_library",
        "string",
        "",
        "[tensorflow] op_libraries, with commas between them; TensorFlow Serving has no such flag, there "
        "one builds the server anew",
    ),
)

# Those that TensorFlow Serving has not.
OWN = frozenset({"custom_op_library"})

BY_NAME = {flag.name: flag for flag in FLAGS}
