"""`fastserve import`: the file that is written reads as the configuration that is served."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from fastserve.cli import main
from fastserve.compat.flags import parse_flags
from fastserve.compat.model_server import model_server
from fastserve.compat.toml_text import toml_value
from fastserve.config_read import read_config

FILES = {
    "models.config": """model_config_list {
  config { name: "a" base_path: "/models/a" model_platform: "tensorflow"
    model_version_policy { specific { versions: 3 versions: 4 } }
    version_labels { key: "stable" value: 3 } version_labels { key: "canary" value: 4 }
    logging_config { log_collector_config { filename_prefix: "a" } sampling_config { sampling_rate: 0.5 } } }
  config { name: "b \\"quoted\\" \\\\ back" base_path: "gs://bucket/b" model_platform: "tensorflow"
    model_version_policy { all {} } }
}
""",
    "batching.txt": "max_batch_size { value: 64 } num_batch_threads { value: 8 }\n"
    "allowed_batch_sizes: [16, 64]\n",
    "session.txt": 'intra_op_parallelism_threads: 2\ngpu_options { allocator_type: "B\\"F\\\\C" }\n'
    "graph_options { rewrite_options { constant_folding: OFF }\n"
    "  optimizer_options { global_jit_level: ON_1 } }\n",
    "platform.txt": 'platform_configs { key: "tensorflow" value { source_adapter_config {\n'
    "  [type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig] { legacy_config {\n"
    '    batching_parameters { max_batch_size { value: 5 } } saved_model_tags: "x" } } } } }\n',
}

LINES = {
    "one model": ["--model_base_path=/models/m"],
    "many flags": [
        "--port=9000",
        "--grpc_socket_path=s.sock",
        "--model_config_file=models.config",
        "--model_config_file_poll_wait_seconds=30",
        "--enable_batching",
        "--batching_parameters_file=batching.txt",
        "--tensorflow_session_config_file=session.txt",
        "--tensorflow_inter_op_parallelism=3",
        "--per_process_gpu_memory_fraction=0.5",
        "--saved_model_tags=serve,gpu",
        "--grpc_channel_arguments=grpc.max_concurrent_streams=99,grpc.keepalive_time_ms=1500",
        "--load_retry_interval_micros=1500000",
        "--max_num_load_retries=0",
        "--num_load_threads=2",
        "--file_system_poll_wait_seconds=0",
        "--allow_version_labels_for_unavailable_models",
        "--enable_serialization_as_tensor_content",
        "--num_request_iterations_for_warmup=2",
        "--mixed_precision=bfloat16",
        "--enable_model_warmup=false",
        "--rest_api_port=8501",
    ],
    "a platform": ["--model_config_file=models.config", "--platform_config_file=platform.txt"],
    "versions that batch themselves": [
        "--model_base_path=/m",
        "--enable_batching",
        "--enable_per_model_batching_parameters",
        "--batching_parameters_file=batching.txt",
    ],
}


@pytest.fixture(autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The path of a unix socket must be short.
    path = tmp_path_factory.mktemp("h")
    monkeypatch.setenv("XDG_STATE_HOME", str(path))
    monkeypatch.chdir(path)
    for name, text in FILES.items():
        (path / name).write_text(text)
    return path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["import", *arguments])


@pytest.mark.parametrize("name", LINES)
def test_what_is_written_reads_as_what_is_served(name: str) -> None:
    result = call(*LINES[name], "-o", "config.toml")
    assert result.exit_code == 0, result.output
    assert read_config("config.toml") == model_server(parse_flags(LINES[name])).config


def test_every_key_says_where_it_came_from() -> None:
    text = call(*LINES["many flags"]).stdout
    tables = tomllib.loads(text)
    assert tables["server"]["listen"][0].endswith(":9000")
    assert "listen = " in text and "# --port, --grpc_socket_path" in text
    assert "# models.config:2" in text and "# --saved_model_tags" in text
    assert text.startswith("# Made by: fastserve import --port=9000 ")
    assert tables["gateway"]["listen"][0].endswith(":8501")
    assert all(len(line) <= 110 for line in text.splitlines() if not line.startswith("#"))


def test_notes_go_to_stderr_and_the_text_to_stdout() -> None:
    result = call("--model_base_path=/m", "--grpc_max_threads=4")
    assert (
        result.stderr
        == "--grpc_max_threads has no effect: no thread waits for a call: see [server] io_threads\n"
    )
    assert tomllib.loads(result.stdout)["models"][0]["base_path"] == "/m"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--port=x"], "error: Couldn't interpret value x for flag port: expected a whole number"),
        (["--prot=1", "--model_base_path=/m"], "error: unknown argument: --prot=1 (did you mean --port?)"),
        (
            ["--model_base_path=/m", "-o", "no/such/dir.toml"],
            "error: no/such/dir.toml cannot be written: No such file",
        ),
    ],
)
def test_what_goes_wrong_is_told(arguments: list[str], told: str) -> None:
    result = call(*arguments)
    assert result.exit_code in (1, 2)
    assert told in result.stderr


def test_a_config_toml_needs_a_model() -> None:
    Path("models.config").write_text("model_config_list {}")
    result = call("--model_config_file=models.config")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "error: models.config: no model is in it, and a config.toml needs one" in result.stderr


_LEAF = st.text(max_size=20) | st.booleans() | st.integers(-(1 << 62), 1 << 62) | st.floats(allow_nan=False)


@settings(deadline=None)
@given(_LEAF | st.lists(_LEAF, max_size=4) | st.dictionaries(st.text(max_size=20), _LEAF, max_size=4))
def test_every_value_reads_as_it_was_written(value: object) -> None:
    assert tomllib.loads(f"key = {toml_value(value)}")["key"] == value
