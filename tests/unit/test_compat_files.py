"""TensorFlow Serving's files: what they become, and what is told when they are wrong."""

# ruff: noqa: E501 - messages stand in one piece, so that they can be searched for.

from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.compat.draft import Draft
from fastserve.compat.flags import parse_flags
from fastserve.compat.model_server import ModelServer, model_server
from fastserve.compat.tls import add_tls
from fastserve.config import Batching
from fastserve.errors import ConfigError

BASE = "--model_base_path=/models/m"


@pytest.fixture(autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The path of a unix socket must be short.
    path = tmp_path_factory.mktemp("h")
    monkeypatch.setenv("XDG_STATE_HOME", str(path))
    monkeypatch.chdir(path)
    return path


def read(flag: str, text: str, *more: str) -> ModelServer:
    """The file `f` with that text, given to a flag."""
    Path("f").write_text(text)
    base = [] if flag == "model_config_file" else [BASE]
    return model_server(parse_flags([*base, f"--{flag}=f", *more]), ipv6=True)


def problems(flag: str, text: str, *more: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(flag, text, *more)
    return caught.value.problems


# ---- text -------------------------------------------------------------------------------------

SERVER = (
    'model_config_list {\n  config {\n    name: "a"\n    base_path: "/a"\n    model_platform: "tensorflow"\n'
)


@pytest.mark.parametrize(
    ("flag", "text", "told"),
    [
        (
            "model_config_file",
            SERVER + '    base_paht: "/b"\n  }\n}\n',
            "f:6: ModelConfig has no field base_paht; did you mean base_path?",
        ),
        (
            "model_config_file",
            "zzz { }\n",
            "f:1: ModelServerConfig has no field zzz; there are model_config_list, custom_model_config",
        ),
        ("model_config_file", SERVER, "f:5: Expected \"}\"; expected a ModelServerConfig as text"),
        (
            "model_config_file",
            "model_config_list {\n  config {\n    name: a\n",
            "f:3: Expected string but found: 'a'; expected a ModelServerConfig as text",
        ),
        ("model_config_file", "", "f: nothing is in it: expected model_config_list { config { ... } }"),
        (
            "monitoring_config_file",
            "prometheus_config {\n enable: maybe }",
            'f:2: Expected "true" or "false"; expected a MonitoringConfig as text',
        ),
        (
            "platform_config_file",
            'platform_configs { key: "tensorflow" value { source_adapter_config { [type.googleapis.com/x.Y] { } } } }',
            "f: Type x.Y not found in descriptor pool; expected a PlatformConfigMap as text",
        ),
        ("monitoring_config_file", "prometheus_config { enabled: true }", "f:1: PrometheusConfig has no field enabled; did you mean enable?"),
        ("tensorflow_session_config_file", "gpu_options {\n  allow_groth: true\n}\n", "f:2: GPUOptions has no field allow_groth; did you mean allow_growth?"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_told_with_its_line(flag: str, text: str, told: str) -> None:
    (problem,) = problems(flag, text)
    assert problem == told


def test_a_number_without_its_wrapper_is_told_how_to_write_it() -> None:
    (problem,) = problems("batching_parameters_file", "max_batch_size: 64\n", "--enable_batching")
    assert problem.startswith("f:1: ")
    assert problem.endswith(": write max_batch_size { value: 64 }; expected a BatchingParameters as text")


def test_files_that_cannot_be_read_are_told() -> None:
    Path("f").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 text, at byte 0; expected a ModelServerConfig as text"):
        model_server(parse_flags(["--model_config_file=f"]), ipv6=True)
    with pytest.raises(ConfigError, match="missing: no such file"):
        model_server(parse_flags(["--model_config_file=missing"]), ipv6=True)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        model_server(parse_flags(["--model_config_file=."]), ipv6=True)


# ---- model_config_file ------------------------------------------------------------------------


def test_models_with_versions_and_labels() -> None:
    served = read(
        "model_config_file",
        """
        # Two of them.
        model_config_list {
          config {
            name: "ranker" base_path: "/models/ranker/" model_type: TENSORFLOW
            model_version_policy { specific { versions: 42 versions: 43 versions: 42 } }
            version_labels { key: "stable" value: 42 }
            version_labels { key: "canary" value: 43 }
          }
          config: {
            name: 'half', base_path: "s3://bucket/half", model_platform: "tensorflow";
            model_version_policy: { latest: { num_versions: 2 } }
          }
          config <
            name: "all" base_path: "/all" model_platform: "tensorflow" model_version_policy { all {} }
          >
        }
        """,
    )
    ranker, half, every = served.config.models
    assert (ranker.name, ranker.base_path) == ("ranker", "/models/ranker")
    assert (ranker.versions.policy, ranker.versions.specific) == ("specific", (42, 43))
    assert ranker.labels == {"stable": 42, "canary": 43}
    assert (half.base_path, half.versions.policy, half.versions.num_versions) == (
        "s3://bucket/half",
        "latest",
        2,
    )
    assert every.versions.policy == "all"
    assert served.draft.notes == []


def test_a_models_requests_are_logged_where_it_says(here: Path) -> None:
    served = read(
        "model_config_file",
        """model_config_list {
          config { name: "a" base_path: "/a" model_platform: "tensorflow"
            logging_config { log_collector_config { filename_prefix: "some" }
              sampling_config { sampling_rate: 0.25 } } }
          config { name: "b" base_path: "/b" model_platform: "tensorflow" }
          config { name: "c" base_path: "/c" model_platform: "tensorflow"
            logging_config { log_collector_config { type: "file" filename_prefix: "/var/log/c" }
              sampling_config { sampling_rate: 1 } } }
        }""",
    )
    a, b, c = (model.logging for model in served.config.models)
    assert (a.sampling_rate, a.filename_prefix) == (0.25, f"{served.config.server.state_dir}/logs/some")
    assert b.sampling_rate == 0
    assert (c.sampling_rate, c.filename_prefix) == (1, "/var/log/c")


def test_a_log_collector_that_there_is_not_is_told() -> None:
    (problem,) = problems(
        "model_config_file",
        'model_config_list { config { name: "a" base_path: "/a" model_platform: "tensorflow"\n'
        'logging_config { log_collector_config { type: "kafka" } } } }',
    )
    assert problem == "f:1: Cannot find LogCollector::Factory for type: kafka"


def test_a_list_without_models_is_served_until_there_are_some() -> None:
    assert read("model_config_file", "model_config_list {}").config.models == ()


def test_what_is_wrong_with_models_is_told_all_at_once_in_tensorflow_servings_words() -> None:
    told = problems(
        "model_config_file",
        """model_config_list {
  config { name: "a" base_path: "/a" model_platform: "tensorflow" }
  config { name: "a" base_path: "/b" model_platform: "tensorflow" }
  config { name: "c" base_path: "models/c" model_platform: "tensorflow" }
  config { name: "d" base_path: "/d" }
  config { name: "e" base_path: "/e" model_platform: "tensorflow" model_type: TENSORFLOW }
  config { name: "x/y" base_path: "/e" model_platform: "tensorflow" }
}
""",
    )
    assert told == [
        "f:3: Illegal to list model a multiple times in config list",
        "f:4: Expected model c to have an absolute path or URI; got base_path()=models/c",
        "f:5: Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform, model name is d",
        "f:6: Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform, model name is e",
        'f:7: Illegal model name "x/y": no "/" and no ":"',
    ]


def test_a_custom_model_config_is_refused() -> None:
    (problem,) = problems("model_config_file", "\ncustom_model_config { }\n")
    assert problem.startswith("f:2: custom_model_config is not served")


# ---- batching_parameters_file -----------------------------------------------------------------


def batching(text: str) -> tuple[Batching, list[str]]:
    served = read("batching_parameters_file", text, "--enable_batching")
    return served.config.models[0].batching, served.draft.notes


def test_batching_parameters() -> None:
    found, notes = batching(
        """
        max_batch_size { value: 128 }
        batch_timeout_micros { value: 2000 }
        max_enqueued_batches { value: 100 }
        num_batch_threads { value: 8 }
        allowed_batch_sizes: 8
        allowed_batch_sizes: 32
        pad_variable_length_inputs: true
        enable_large_batch_splitting { value: True }
        max_execution_batch_size { value: 32 }
        thread_pool_name { value: "pool" }
        """
    )
    assert (found.max_batch_size, found.batch_timeout_us, found.max_enqueued_batches) == (128, 2000, 100)
    assert (found.num_batch_threads, found.allowed_batch_sizes) == (8, (8, 32))
    assert found.pad_variable_length_inputs and found.split_large_batches and found.refuse_larger
    assert found.largest_batch == 32
    assert notes == ["f:11: thread_pool_name has no effect: executors run batches"]


def test_the_size_of_parts_has_no_effect_without_splitting() -> None:
    found, notes = batching("max_batch_size { value: 16 }\nmax_execution_batch_size { value: 8 }\n")
    assert found.largest_batch == 16
    assert notes == ["f:2: max_execution_batch_size has no effect without enable_large_batch_splitting"]


def test_with_parameters_by_model_the_common_ones_are_said_to_have_no_effect() -> None:
    text = "max_batch_size { value: 16 }\nnum_batch_threads { value: 3 }\n"
    served = read(
        "batching_parameters_file", text, "--enable_batching", "--enable_per_model_batching_parameters"
    )
    assert served.config.models[0].batching.num_batch_threads == 3
    (note,) = served.draft.notes
    assert note.startswith("--batching_parameters_file: max_batch_size: no effect beside")


def test_what_batching_parameters_do_not_say_is_tensorflow_servings_default() -> None:
    found, _ = batching("")
    assert (found.max_batch_size, found.batch_timeout_us, found.max_enqueued_batches) == (1000, 0, 10)
    assert not found.split_large_batches and not found.pad_variable_length_inputs and found.refuse_larger


def test_a_queue_without_bound_gets_the_largest_there_is() -> None:
    found, notes = batching("max_batch_size { value: 4 }\nmax_enqueued_batches { value: 1000000 }\n")
    assert found.max_enqueued_batches == 100_000
    assert notes == ["f:2: max_enqueued_batches = 1000000: max_enqueued_batches is at most 100000"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_batch_size { value: 0 }", "f:1: max_batch_size = 0: expected 1 to 1000000"),
        ("\nnum_batch_threads { value: -1 }", "f:2: num_batch_threads = -1: expected 1 to 1000000"),
        (
            "max_batch_size { value: 8 }\nallowed_batch_sizes: [4, 2, 8]",
            "f:2: allowed_batch_sizes = [4, 2, 8]: expected sizes that increase",
        ),
        (
            "max_batch_size { value: 8 }\nallowed_batch_sizes: [2, 4]",
            "f:2: Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 8",
        ),
        (
            "max_batch_size { value: 8 }\nenable_large_batch_splitting { value: true }\nmax_execution_batch_size { value: 9 }",
            "f:3: max_execution_batch_size = 9: expected 1 to max_batch_size, which is 8",
        ),
    ],
)  # fmt: skip
def test_batching_parameters_that_cannot_be_are_told(text: str, told: str) -> None:
    assert problems("batching_parameters_file", text, "--enable_batching") == [told]


# ---- tensorflow_session_config_file -----------------------------------------------------------


def test_session_settings_get_keys_where_there_are_some() -> None:
    served = read(
        "tensorflow_session_config_file",
        """
        intra_op_parallelism_threads: 4
        inter_op_parallelism_threads: 2
        allow_soft_placement: true
        device_count { key: "GPU" value: 0 }
        device_count { key: "CPU" value: 1 }
        gpu_options { per_process_gpu_memory_fraction: 0.5 allow_growth: true force_gpu_compatible: true }
        graph_options { optimizer_options { global_jit_level: ON_2 do_function_inlining: true } }
        experimental { executor_type: "SINGLE_THREADED_EXECUTOR" }
        session_inter_op_thread_pool { num_threads: 3 }
        """,
    )
    tensorflow = served.config.tensorflow
    assert (tensorflow.intra_op_threads, tensorflow.inter_op_threads, tensorflow.device) == (4, 2, "cpu")
    assert (tensorflow.gpu_memory_fraction, tensorflow.gpu_allow_growth) == (0.5, True)
    assert served.config.models[0].xla == "cluster"
    assert " ".join(tensorflow.session_config.split()) == (
        'device_count { key: "CPU" value: 1 } gpu_options { force_gpu_compatible: true } '
        "graph_options { optimizer_options { do_function_inlining: true } }"
    )
    assert served.draft.notes == [
        "f: session_inter_op_thread_pool has no effect: a run stays in its executor's thread, a load in its loader's",
        "f: experimental.executor_type has no effect: the trial chooses it by the graph",
    ]


def test_flags_come_before_the_session_file() -> None:
    served = read(
        "tensorflow_session_config_file",
        "intra_op_parallelism_threads: 4\ngpu_options { allow_growth: true }",
        "--tensorflow_intra_op_parallelism=2",
        "--per_process_gpu_memory_fraction=0.25",
    )
    tensorflow = served.config.tensorflow
    assert (tensorflow.intra_op_threads, tensorflow.gpu_memory_fraction) == (2, 0.25)
    assert tensorflow.gpu_allow_growth and tensorflow.session_config == ""


# ---- platform_config_file ---------------------------------------------------------------------

PLATFORM = """platform_configs {
  key: "tensorflow"
  value {
    source_adapter_config {
      [type.googleapis.com/tensorflow.serving.%s] {
        %s {
          %s
        }
      }
    }
  }
}
"""
ADAPTER = ("SavedModelBundleSourceAdapterConfig", "legacy_config")


def test_what_applies_of_a_platform() -> None:
    served = read(
        "platform_config_file",
        PLATFORM
        % (
            *ADAPTER,
            """batching_parameters { max_batch_size { value: 32 } }
          session_config { intra_op_parallelism_threads: 3 }
          session_run_load_threadpool_index { value: 1 }
          saved_model_tags: "serve" saved_model_tags: "gpu"
          enable_model_warmup: true
          model_warmup_options { num_request_iterations { value: 5 } }""",
        ),
    )
    model = served.config.models[0]
    assert model.batching.max_batch_size == 32 and model.batching.refuse_larger
    assert model.tags == ("serve", "gpu")
    assert model.warmup.records and model.warmup.iterations == 5
    assert served.config.tensorflow.intra_op_threads == 3
    assert served.draft.notes == [
        "f:9: session_run_load_threadpool_index has no effect: variables are restored in the loader's own thread"
    ]


def test_a_platform_without_batching_and_warm_up_has_neither() -> None:
    model = read("platform_config_file", PLATFORM % (*ADAPTER, "")).config.models[0]
    assert not model.batching.refuse_larger and not model.warmup.records


def test_the_older_adapter_is_the_same() -> None:
    text = PLATFORM % ("SessionBundleSourceAdapterConfig", "config", 'saved_model_tags: "t"')
    assert read("platform_config_file", text).config.models[0].tags == ("t",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", 'f: expected platform_configs { key: "tensorflow" value { ... } }'),
        (
            'platform_configs { key: "hashmap" value {} }',
            'f: platform hashmap is not served: expected "tensorflow"',
        ),
        (
            'platform_configs { key: "tensorflow" value { source_adapter_config { } } }',
            "f:1: it holds nothing: expected tensorflow.serving.SavedModelBundleSourceAdapterConfig or "
            "tensorflow.serving.SessionBundleSourceAdapterConfig",
        ),
        (
            PLATFORM % (*ADAPTER, 'session_target: "grpc://x"'),
            "f:7: session_target: models run on this machine only; leave it out",
        ),
        (
            PLATFORM % (*ADAPTER, "batching_parameters { max_batch_size { value: 0 } }"),
            "f:7: max_batch_size = 0: expected 1 to 1000000",
        ),
        (
            PLATFORM % (*ADAPTER, "enable_batching: true"),
            "f:7: SessionBundleConfig has no field enable_batching;",
        ),
    ],
)
def test_a_platform_that_cannot_be_is_told(text: str, told: str) -> None:
    (problem,) = problems("platform_config_file", text)
    assert problem.startswith(told)


# ---- ssl_config_file --------------------------------------------------------------------------

CERTIFICATE = "-----BEGIN CERTIFICATE-----\\nAA==\\n-----END CERTIFICATE-----\\n"
KEY = "-----BEGIN PRIVATE KEY-----\\nAA==\\n-----END PRIVATE KEY-----\\n"


def tls(text: str, *more: str) -> Draft:
    """What the file `f` with that text adds to a configuration whose state directory is /state."""
    Path("f").write_text(text)
    draft = Draft()
    add_tls(draft, parse_flags(["--ssl_config_file=f", *more]), "/state")
    return draft


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "client_verify: true\n",
            [
                "f:1: client_verify: true needs custom_ca, the certificates of who signs clients'",
                "f: server_cert is missing: expected the text of a PEM file",
                "f: server_key is missing: expected the text of a PEM file",
            ],
        ),
        (
            f'server_cert: "/etc/server.crt"\nserver_key: "{KEY}"\n',
            [
                "f:1: server_cert is no PEM text with a CERTIFICATE: expected the file's text, with \\n for the ends of "
                "its lines"
            ],
        ),
        (
            "server_key: 'x'\nserver_crt: 'y'\n",
            ["f:2: SSLConfig has no field server_crt; did you mean server_cert?"],
        ),
    ],
)
def test_keys_and_certificates_that_are_not_there_are_told(text: str, told: list[str]) -> None:
    assert tls(text).problems == told


def test_keys_and_certificates_become_files() -> None:
    draft = tls(
        f'server_key: "{KEY}"\nserver_cert: "{CERTIFICATE}"\ncustom_ca: "{CERTIFICATE}"\nclient_verify: true\n',
        "--grpc_socket_path=/run/s.sock",
    )
    assert (draft.problems, draft.notes) == ([], [])
    assert {key: entry.value for key, entry in draft.tables["server.tls"].items()} == {
        "certificate": "/state/tls/server.crt",
        "key": "/state/tls/server.key",
        "client_ca": "/state/tls/clients.crt",
        "unix_sockets": True,
    }
    pem = {"crt": CERTIFICATE.replace("\\n", "\n"), "key": KEY.replace("\\n", "\n")}
    assert [(file.path, file.text, file.mode) for file in draft.files] == [
        ("/state/tls/server.crt", pem["crt"], 0o600),
        ("/state/tls/server.key", pem["key"], 0o600),
        ("/state/tls/clients.crt", pem["crt"], 0o600),
    ]


def test_who_signs_clients_means_nothing_when_they_are_not_asked() -> None:
    draft = tls(f'server_key: "{KEY}"\nserver_cert: "{CERTIFICATE}"\ncustom_ca: "{CERTIFICATE}"\n')
    assert "client_ca" not in draft.tables["server.tls"]
    assert draft.notes == ["f:3: custom_ca has no effect without client_verify: true; clients are not asked"]


def test_without_the_file_there_is_no_tls() -> None:
    draft = Draft()
    add_tls(draft, parse_flags([BASE]), "/state")
    assert (draft.tables, draft.files, draft.problems) == ({}, [], [])
