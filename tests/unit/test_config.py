"""The configuration file: defaults, units, paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.config import MIB, Config
from fastserve.config_address import TcpAddress, UnixAddress, parse_address
from fastserve.config_read import parse_config, parse_size, powers_of_two, read_config
from fastserve.errors import ConfigError

ONE_MODEL = '[[models]]\nname = "m"\nbase_path = "models/m"\n'


def parse(text: str, file: str = "/etc/fastserve/config.toml") -> Config:
    return parse_config(text, file)


def test_one_model_is_a_whole_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastserve.config_read.available_memory_bytes", lambda: 16 << 30)
    config = parse(ONE_MODEL)
    assert config.server.listen == ("127.0.0.1:8500",)
    assert config.server.drain_timeout_s == 30
    assert config.limits.max_message_bytes == 256 * MIB
    assert config.limits.max_compressed_bytes == 64 * MIB
    assert config.limits.max_total_bytes == 4 << 30
    assert config.tensorflow.intra_op_threads == config.tensorflow.inter_op_threads == 1
    assert config.executor.threads >= 1
    (model,) = config.models
    assert (model.xla, model.row_wise, model.unknown_shapes, model.tags) == (
        "off",
        "probe",
        "plain",
        ("serve",),
    )
    assert model.batching.allowed_batch_sizes == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def test_executor_threads_default_to_the_available_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastserve import config

    assert parse(ONE_MODEL).executor.threads == config.available_cpus()
    assert parse("[executor]\nthreads = 7\n" + ONE_MODEL).executor.threads == 7


def test_the_bytes_in_flight_always_have_room_for_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastserve.config_read.available_memory_bytes", lambda: 256 * MIB)
    assert parse(ONE_MODEL).limits.max_total_bytes == 256 * MIB


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[server]\nlisten = ["unix:run/s.sock"]\nstate_dir = "state"\nadmin_socket = "../admin.sock"\n'
        '[tensorflow]\nlibrary_dir = "tf"\nop_libraries = ["ops.so", "/ops.so"]\n'
        '[litert]\nlibrary_dir = "lite"\n[executor]\nthreads = 3\n' + ONE_MODEL
    )
    config = read_config(file)
    assert config.models[0].base_path == f"{tmp_path}/models/m"
    assert config.server.listen == (f"unix:{tmp_path}/run/s.sock",)
    assert config.server.state_dir == f"{tmp_path}/state"
    assert config.server.admin_socket == f"{tmp_path.parent}/admin.sock"
    assert config.tensorflow.library_dir == f"{tmp_path}/tf"
    assert config.tensorflow.op_libraries == (f"{tmp_path}/ops.so", "/ops.so")
    assert config.litert.library_dir == f"{tmp_path}/lite" and config.litert.interpreters == 3


def test_paths_of_credentials_and_of_the_admin_address_start_at_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[server]\nadmin_listen = "unix:run/a.sock"\nreload_roots = ["models", "gs://bucket/models"]\n'
        '[server.tls]\ncertificate = "tls/c.pem"\nkey = "/etc/k.pem"\n' + ONE_MODEL + 'token_file = "t"\n'
    )
    config = read_config(file)
    assert config.server.admin_listen == f"unix:{tmp_path}/run/a.sock"
    assert config.server.reload_roots == (f"{tmp_path}/models", "gs://bucket/models")
    assert config.server.tls.certificate == f"{tmp_path}/tls/c.pem"
    assert config.server.tls.key == "/etc/k.pem"
    assert config.server.tls.client_ca == ""
    assert config.models[0].token_file == f"{tmp_path}/t"
    assert parse(ONE_MODEL).models[0].token_file == "" == parse(ONE_MODEL).server.admin_listen
    assert parse(ONE_MODEL).server.socket_mode == 0o660


def test_a_listen_address_from_the_command_line_starts_where_the_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_config(ONE_MODEL, "/etc/config.toml", listen=("unix:s.sock", "127.0.0.1:0"))
    assert config.server.listen == (f"unix:{tmp_path}/s.sock", "127.0.0.1:0")


def test_each_file_has_a_state_directory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib/state")
    a, again, b = (
        parse(ONE_MODEL, "/etc/a.toml"),
        parse(ONE_MODEL, "/etc/a.toml"),
        parse(ONE_MODEL, "/etc/b.toml"),
    )
    assert a.server.state_dir.startswith("/var/lib/state/fastserve/")
    assert a.server.state_dir == again.server.state_dir != b.server.state_dir
    assert a.server.admin_socket == a.server.state_dir + "/admin.sock"
    # The specification says that a relative XDG_STATE_HOME is to be ignored.
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert parse(ONE_MODEL, "/etc/a.toml").server.state_dir.startswith(str(Path.home()))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("64MiB", 64 << 20),
        ("1.5 GiB", 3 << 29),
        ("2GB", 2 * 10**9),
        ("10kB", None),
        ("-1KiB", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(ValueError):
            parse_size(text)
    else:
        assert parse_size(text) == size


def test_a_size_may_be_a_string_or_a_number() -> None:
    config = parse('[limits]\nmax_message_bytes = "1MiB"\nmax_header_bytes = 32768\n' + ONE_MODEL)
    assert config.limits.max_message_bytes == MIB
    assert config.limits.max_header_bytes == 32768


def test_whole_numbers_are_durations_too() -> None:
    assert parse("[server]\nlame_duck_s = 5\n" + ONE_MODEL).server.lame_duck_s == 5.0


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(1, (1,)), (2, (1, 2)), (48, (1, 2, 4, 8, 16, 32, 48)), (64, (1, 2, 4, 8, 16, 32, 64))],
)
def test_default_batch_sizes_end_at_the_largest(largest: int, sizes: tuple[int, ...]) -> None:
    assert powers_of_two(largest) == sizes
    assert parse(ONE_MODEL + f"[models.batching]\nmax_batch_size = {largest}\n").models[
        0
    ].batching.allowed_batch_sizes == (sizes)


def test_default_batch_sizes_end_at_the_execution_size_when_requests_are_split() -> None:
    config = parse(ONE_MODEL + "[models.batching]\nmax_batch_size = 100\nmax_execution_batch_size = 8\n")
    assert config.models[0].batching.largest_batch == 8
    assert config.models[0].batching.allowed_batch_sizes == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("text", "address", "written"),
    [
        ("127.0.0.1:8500", TcpAddress("127.0.0.1", 8500), "127.0.0.1:8500"),
        ("localhost:0", TcpAddress("localhost", 0), "localhost:0"),
        ("[::1]:80", TcpAddress("::1", 80), "[::1]:80"),
        ("unix:/run/a:b.sock", UnixAddress("/run/a:b.sock"), "unix:/run/a:b.sock"),
    ],
)
def test_addresses(text: str, address: object, written: str) -> None:
    assert parse_address(text) == address
    assert str(parse_address(text)) == written


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8500", "HOST:PORT"),
        (":8500", "0.0.0.0:8500"),
        ("::1:80", "[::1]:80"),
        ("host:70000", "0 to 65535"),
        ("host:x", "0 to 65535"),
        ("host:²", "0 to 65535"),
        ("unix:", "path"),
        ("unix:/" + "x" * 107, "107"),
    ],
)
def test_wrong_addresses_say_what_would_be_right(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_address(text)
    assert words in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8 text, at byte 8"):
        read_config(tmp_path / "binary.toml")


def test_monitoring_has_addresses_of_its_own(tmp_path: Path) -> None:
    config = parse(
        '[monitoring]\nlisten = ["127.0.0.1:8501", "unix:run/watch.sock"]\nmetrics_path = "/metrics"\n'
        "page = false\n" + ONE_MODEL,
        str(tmp_path / "config.toml"),
    )
    assert config.monitoring.listen == ("127.0.0.1:8501", f"unix:{tmp_path}/run/watch.sock")
    assert (config.monitoring.metrics_path, config.monitoring.page) == ("/metrics", False)
    assert parse(ONE_MODEL).monitoring.listen == ()
