"""Every flag of tensorflow_model_server: what it does to the configuration, or what is said of it."""

# ruff: noqa: E501 - messages stand in one piece, so that they can be searched for.

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastserve.cgroup import available_cpus
from fastserve.compat.flag_table import BY_NAME, Verdict
from fastserve.compat.flags import parse_flags
from fastserve.compat.model_server import ModelServer, model_server
from fastserve.config import Config, Model
from fastserve.errors import ConfigError

BASE = "--model_base_path=/models/m"


@pytest.fixture(autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The path of a unix socket must be short.
    path = tmp_path_factory.mktemp("h")
    monkeypatch.setenv("XDG_STATE_HOME", str(path))
    monkeypatch.chdir(path)
    return path


def read(*arguments: str, base: str | None = BASE) -> ModelServer:
    return model_server(parse_flags([*([base] if base else []), *arguments]), ipv6=True)


def problems(*arguments: str, base: str | None = BASE) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(*arguments, base=base)
    return caught.value.problems


def only(config: Config) -> Model:
    (model,) = config.models
    return model


# ---- flags that work: what they do ------------------------------------------------------------

FILES = {
    "batching.txt": "max_batch_size { value: 64 }\nbatch_timeout_micros { value: 5 }\n",
    "models.config": 'model_config_list { config { name: "x" base_path: "/x" model_platform: "tensorflow" } }',
    "session.txt": "intra_op_parallelism_threads: 3\ngraph_options { infer_shapes: true }\n",
    "platform.txt": 'platform_configs { key: "tensorflow" value { source_adapter_config {\n'
    "  [type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig] {\n"
    '    legacy_config { saved_model_tags: "tpu" }\n  } } } }\n',
    "monitoring.txt": 'prometheus_config { enable: true path: "/metrics" }',
    "unmonitored.txt": 'prometheus_config { path: "/metrics" }',
}

# By flag: the arguments, and what then holds of the configuration.
WORKS: dict[str, tuple[list[str], Callable[[Config], bool]]] = {
    "port": (["--port=9000"], lambda c: c.server.listen == ("[::]:9000",)),
    "grpc_socket_path": (
        ["--grpc_socket_path=s.sock"],
        lambda c: c.server.listen == ("[::]:8500", f"unix:{Path.cwd()}/s.sock"),
    ),
    "rest_api_port": (["--rest_api_port=8501"], lambda c: c.gateway.listen == ("[::]:8501",)),
    "rest_api_num_threads": (
        ["--rest_api_port=8501", "--rest_api_num_threads=10000"],
        lambda c: c.gateway.processes == min(available_cpus(), 64),
    ),
    "rest_api_timeout_in_ms": (
        ["--rest_api_port=8501", "--rest_api_timeout_in_ms=1500"],
        lambda c: c.gateway.timeout_s == 1.5,
    ),
    "rest_api_enable_cors_support": (
        ["--rest_api_port=8501", "--rest_api_enable_cors_support"],
        lambda c: c.gateway.cors,
    ),
    "enable_batching": (
        ["--enable_batching"],
        lambda c: (
            (b := only(c).batching).refuse_larger and b.max_batch_size == 1000 and not b.split_large_batches
        ),
    ),
    "allow_version_labels_for_unavailable_models": (
        ["--allow_version_labels_for_unavailable_models=true"],
        lambda c: c.loading.labels_for_unavailable,
    ),
    "batching_parameters_file": (
        ["--enable_batching", "--batching_parameters_file=batching.txt"],
        lambda c: (
            (b := only(c).batching).max_batch_size == 64 and b.batch_timeout_us == 5 and b.refuse_larger
        ),
    ),
    "enable_per_model_batching_parameters": (
        [
            "--enable_batching",
            "--enable_per_model_batching_parameters",
            "--batching_parameters_file=batching.txt",
        ],
        lambda c: (b := only(c).batching).version_file == "batching_params.pbtxt" and b.max_batch_size == 512,
    ),
    "model_config_file": (["--model_config_file=models.config"], lambda c: only(c).name == "x"),
    "model_config_file_poll_wait_seconds": (
        ["--model_config_file=models.config", "--model_config_file_poll_wait_seconds=7"],
        lambda c: c.server.config_poll_s == 7,
    ),
    "model_name": (["--model_name=ranker"], lambda c: only(c).name == "ranker"),
    "model_base_path": (["--model_base_path=gs://b/m"], lambda c: only(c).base_path == "gs://b/m"),
    "num_load_threads": (["--num_load_threads=3"], lambda c: c.executor.load_threads == 3),
    "max_num_load_retries": (["--max_num_load_retries=2"], lambda c: c.loading.retries == 2),
    "load_retry_interval_micros": (
        ["--load_retry_interval_micros=2500000"],
        lambda c: (c.loading.retry_s, c.loading.retry_max_s) == (2.5, 2.5),
    ),
    "file_system_poll_wait_seconds": (["--file_system_poll_wait_seconds=0"], lambda c: c.loading.poll_s == 0),
    "tensorflow_session_parallelism": (
        ["--tensorflow_session_parallelism=4"],
        lambda c: (c.tensorflow.intra_op_threads, c.tensorflow.inter_op_threads) == (4, 4),
    ),
    "tensorflow_session_config_file": (
        ["--tensorflow_session_config_file=session.txt"],
        lambda c: c.tensorflow.intra_op_threads == 3 and "infer_shapes: true" in c.tensorflow.session_config,
    ),
    "tensorflow_intra_op_parallelism": (
        ["--tensorflow_intra_op_parallelism=5"],
        lambda c: (c.tensorflow.intra_op_threads, c.tensorflow.inter_op_threads) == (5, 1),
    ),
    "tensorflow_inter_op_parallelism": (
        ["--tensorflow_inter_op_parallelism=5"],
        lambda c: (c.tensorflow.intra_op_threads, c.tensorflow.inter_op_threads) == (1, 5),
    ),
    "platform_config_file": (["--platform_config_file=platform.txt"], lambda c: only(c).tags == ("tpu",)),
    "per_process_gpu_memory_fraction": (
        ["--per_process_gpu_memory_fraction=0.5"],
        lambda c: c.tensorflow.gpu_memory_fraction == 0.5 and not c.tensorflow.gpu_allow_growth,
    ),
    "saved_model_tags": (["--saved_model_tags=serve,gpu"], lambda c: only(c).tags == ("serve", "gpu")),
    "grpc_channel_arguments": (
        ["--grpc_channel_arguments=grpc.max_concurrent_streams=9,grpc.keepalive_time_ms=1500"],
        lambda c: c.limits.max_concurrent_streams == 9 and c.limits.keepalive_s == 1.5,
    ),
    "enable_model_warmup": (["--enable_model_warmup=false"], lambda c: not only(c).warmup.records),
    "num_request_iterations_for_warmup": (
        ["--num_request_iterations_for_warmup=3"],
        lambda c: only(c).warmup.iterations == 3,
    ),
    "enable_signature_method_name_check": (
        ["--enable_signature_method_name_check"],
        lambda c: c.server.check_method_names,
    ),
    "prefer_tflite_model": (
        ["--prefer_tflite_model"],
        lambda c: only(c).prefer_tflite and only(c).tflite_aliases == "tensors",
    ),
    "num_tflite_pools": (["--num_tflite_pools=3"], lambda c: c.litert.interpreters == 3),
    "custom_op_library": (
        ["--custom_op_library=/ops/a.so,/ops/b.so"],
        lambda c: c.tensorflow.op_libraries == ("/ops/a.so", "/ops/b.so"),
    ),
    "mixed_precision": (
        ["--mixed_precision=bfloat16"],
        lambda c: "auto_mixed_precision_onednn_bfloat16: ON" in c.tensorflow.session_config,
    ),
    "monitoring_config_file": (
        ["--monitoring_config_file=monitoring.txt"],
        lambda c: c.monitoring.metrics_path == "/metrics",
    ),
    "enable_serialization_as_tensor_content": (
        ["--enable_serialization_as_tensor_content"],
        lambda c: c.server.tensor_content_replies,
    ),
}
# Their effects have tests of their own: test_compat_files and test_cli_tfserving.
ELSEWHERE = {"ssl_config_file", "version"}

# Values for flags that have no effect; bools are switched on.
VALUES = {"int32": "3", "string": "monitoring.txt"}


@pytest.fixture
def files(here: Path) -> None:
    for name, text in FILES.items():
        (here / name).write_text(text)


def test_every_flag_has_a_row_here() -> None:
    by_verdict = {v: {name for name, flag in BY_NAME.items() if flag.verdict is v} for v in Verdict}
    assert set(WORKS) | ELSEWHERE == by_verdict[Verdict.WORKS]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", WORKS)
def test_a_flag_that_works_changes_the_configuration(name: str) -> None:
    arguments, holds = WORKS[name]
    assert not holds(read(*[a for a in arguments if f"--{name}" not in (a, a.partition("=")[0])]).config)
    assert holds(read(*arguments).config)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "name", [name for name, flag in BY_NAME.items() if flag.verdict is Verdict.NO_EFFECT]
)
def test_a_flag_without_effect_says_why_and_changes_nothing(name: str) -> None:
    flag = BY_NAME[name]
    argument = f"--{name}" if flag.kind == "bool" else f"--{name}={VALUES[flag.kind]}"
    served = read(argument)
    assert served.draft.notes == [f"--{name} has no effect: {flag.text}"]
    assert served.config == read().config
    assert read().draft.notes == []


@pytest.mark.parametrize("name", [name for name, flag in BY_NAME.items() if flag.verdict is Verdict.REFUSED])
def test_a_refused_flag_says_what_to_use_instead(name: str) -> None:
    flag = BY_NAME[name]
    assert problems(f"--{name}" if flag.kind == "bool" else f"--{name}=x") == [
        f"--{name} is refused: {flag.text}"
    ]
    assert read(f"--{name}=false" if flag.kind == "bool" else f"--{name}=").draft.notes == []


# ---- what is served without further flags ------------------------------------------------------


def test_the_defaults() -> None:
    served = read()
    config = served.config
    assert config.server.listen == ("[::]:8500",)
    assert config.server.state_dir.endswith("/fastserve/tfserving-8500")
    assert config.server.config_poll_s == 0
    assert config.loading.poll_s == 1 and config.loading.retries == 5
    assert config.limits.max_message_bytes == (1 << 31) - 1
    model = only(config)
    assert (model.name, model.base_path, model.tags) == ("default", "/models/m", ("serve",))
    # Batched where it is proven; nothing is refused for its size.
    assert not model.batching.refuse_larger and model.batching.split_large_batches
    assert model.batching.max_batch_size == 512
    assert model.warmup.records and model.xla == "off"


def test_without_ipv6_it_listens_on_ipv4() -> None:
    assert model_server(parse_flags([BASE]), ipv6=False).config.server.listen == ("0.0.0.0:8500",)


def test_port_0_leaves_the_socket() -> None:
    served = read("--port=0", "--grpc_socket_path=/run/s.sock")
    assert served.config.server.listen == ("unix:/run/s.sock",)
    assert served.config.server.state_dir.endswith("/tfserving-e10a0cac7487fbcc")


def test_a_model_that_a_client_adds_gets_the_same_settings() -> None:
    served = read("--enable_batching", "--saved_model_tags=a", "--enable_model_warmup=false")
    new, configured = served.new_model, only(served.config)
    assert (new.batching, new.warmup, new.tags) == (configured.batching, configured.warmup, configured.tags)


# ---- flags that do not go together -------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port=0"], ["server_options.grpc_port is not set. Give --port, or --grpc_socket_path"]),
        (["--port=70000"], ["--port=70000: expected 1 to 65535, or 0 with --grpc_socket_path"]),
        (
            ["--batching_parameters_file=batching.txt"],
            [
                "server_options.batching_parameters_file is set without setting server_options.enable_batching to true. "
                "Give --enable_batching, too, or leave --batching_parameters_file out"
            ],
        ),
        (
            [f"--tensorflow_{name}_parallelism=2" for name in ("session", "intra_op", "inter_op")],
            [
                "Either configure server_options.tensorflow_session_parallelism or "
                "(server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism) "
                "separately. You cannot configure all."
            ],
        ),
        (
            ["--tensorflow_intra_op_parallelism=-1"],
            ["--tensorflow_intra_op_parallelism=-1: expected 0 to 1024"],
        ),
        (
            ["--per_process_gpu_memory_fraction=1.5"],
            ["--per_process_gpu_memory_fraction=1.5: expected 0 to 1"],
        ),
        (
            ["--file_system_poll_wait_seconds=-1"],
            ["--file_system_poll_wait_seconds=-1: expected 0 or more; below it is for tests only"],
        ),
        (
            ["--model_config_file_poll_wait_seconds=-1"],
            ["--model_config_file_poll_wait_seconds=-1: expected 0 or more"],
        ),
        (["--max_num_load_retries=-1"], ["--max_num_load_retries=-1: expected 0 to 1000000"]),
        (["--num_load_threads=-1"], ["--num_load_threads=-1: expected 0 to 16"]),
        (["--num_tflite_pools=0"], ["--num_tflite_pools=0: expected 1 or more"]),
        (
            ["--rest_api_port=-1", "--rest_api_timeout_in_ms=0"],
            [
                "--rest_api_port=-1: expected 1 to 65535, or 0 for no REST API",
                "--rest_api_timeout_in_ms=0: expected 1 or more",
            ],
        ),
        (
            ["--grpc_channel_arguments=grpc.max_concurrent_streams=many,loose"],
            [
                "--grpc_channel_arguments: grpc.max_concurrent_streams=many: expected a whole number",
                "--grpc_channel_arguments: loose: expected NAME=VALUE, several with commas between them",
            ],
        ),
    ],
    ids=lambda value: value[0][:50] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_told(arguments: list[str], told: list[str]) -> None:
    assert problems(*arguments) == told


def test_a_model_is_needed() -> None:
    (problem,) = problems(base=None)
    assert problem.startswith(
        "Both server_options.model_base_path and server_options.model_config_file are empty!"
    )


def test_a_base_path_must_be_absolute() -> None:
    assert problems("--model_base_path=models/m", base=None) == [
        "--model_base_path: Expected model default to have an absolute path or URI; got base_path()=models/m"
    ]


def test_everything_is_told_at_once() -> None:
    told = problems(
        "--use_alts_credentials",
        "--port=-1",
        "--model_config_file=missing.config",
        "--batching_parameters_file=b.txt",
        "--monitoring_config_file=missing.txt",
    )
    assert [problem.split(":")[0].split(" ")[0] for problem in told] == [
        "--use_alts_credentials",
        "--port=-1",
        "missing.config",
        "server_options.batching_parameters_file",
        "missing.txt",
    ]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        (
            ["--model_config_file=models.config", "--model_name=y"],
            "--model_name has no effect beside --model_config_file, which names the models",
        ),
        (
            ["--enable_per_model_batching_parameters"],
            "--enable_per_model_batching_parameters has no effect without --enable_batching",
        ),
        (
            ["--model_config_file_poll_wait_seconds=1"],
            "--model_config_file_poll_wait_seconds has no effect without --model_config_file",
        ),
        (
            ["--tensorflow_session_parallelism=3", "--tensorflow_inter_op_parallelism=2"],
            "--tensorflow_session_parallelism has no effect beside the flags for intra_op or inter_op alone",
        ),
        (
            ["--monitoring_config_file=monitoring.txt"],
            "--monitoring_config_file: metrics are served on --rest_api_port, which is not given; they are on "
            "monitor.sock in the state directory",
        ),
        (
            ["--monitoring_config_file=unmonitored.txt"],
            "--monitoring_config_file has no effect: unmonitored.txt has no prometheus_config { enable: true }",
        ),
        (["--num_load_threads=40"], "--num_load_threads=40: 16 load, the most there are"),
        (
            ["--rest_api_enable_cors_support"],
            "--rest_api_enable_cors_support has no effect without --rest_api_port",
        ),
        (
            ["--rest_api_port=8500"],
            "--rest_api_port cannot be same as --port. Please use a different port for HTTP/REST API. Skipped starting HTTP/REST API server.",
        ),
        (
            ["--num_request_iterations_for_warmup=5000"],
            "--num_request_iterations_for_warmup: 5000 iterations: 1000 are made, the most there are",
        ),
        (
            ["--mixed_precision=float16"],
            '--mixed_precision=float16 has no effect: there is "bfloat16", as in TensorFlow Serving',
        ),
        (
            ["--grpc_channel_arguments=grpc.max_connection_age_ms=2000"],
            "--grpc_channel_arguments: grpc.max_connection_age_ms=2000 has no effect: this server is not gRPC's own; "
            "see [limits]",
        ),
        (
            ["--platform_config_file=platform.txt", "--enable_batching"],
            "--enable_batching has no effect beside --platform_config_file, which takes its place",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_has_no_effect_in_this_company_is_said(arguments: list[str], note: str) -> None:
    base = None if arguments[0].startswith("--model_config_file=") else BASE
    assert read(*arguments, base=base).draft.notes == [note]


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("grpc.max_receive_message_length=4096", "max_message_bytes", 4096),
        ("grpc.max_receive_message_length=-1", "max_message_bytes", (1 << 31) - 1),
        ("grpc.max_metadata_size=16384", "max_header_bytes", 16384),
        ("grpc.keepalive_time_ms=2147483647", "keepalive_s", 0.0),
        ("grpc.keepalive_timeout_ms=500", "keepalive_timeout_s", 0.5),
        ("grpc.max_concurrent_streams=0", "max_concurrent_streams", 1),
    ],
)
def test_a_channel_argument_is_a_limit(argument: str, key: str, value: object) -> None:
    served = read(f"--grpc_channel_arguments={argument}")
    assert served.draft.notes == []
    assert getattr(served.config.limits, key) == value
