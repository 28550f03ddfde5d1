"""Request logs on the control side: from the configuration and from LoggingConfig to what the core is
told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fastserve.config import Logging, Model
from fastserve.config_read import parse_config
from fastserve.control.core_table import CoreTable
from fastserve.control.recorder import Recorder
from fastserve.control.reload_request import Refused, models_of
from fastserve.control.request_log import log_settings
from fastserve.control.stream import settings_of
from fastserve.errors import ConfigError, CoreError
from fastserve.log import Log
from fastserve.protos import message

MODEL = '[[models]]\nname = "m"\nbase_path = "m"\n'
SERVER = '[server]\nstate_dir = "state"\n'


def read(text: str) -> Model:
    return parse_config(text, "/etc/fastserve/c.toml").models[0]


# ---- config.toml --------------------------------------------------------------------------


def test_nothing_is_logged_by_default() -> None:
    assert log_settings(read(MODEL)) is None


def test_the_core_is_told_where_and_how_much() -> None:
    model = read(
        MODEL + 'tags = ["a", "b"]\n[models.logging]\nsampling_rate = 0.25\nfilename_prefix = "logs/m"\n'
        'max_file_bytes = "1MiB"\nresponses = false\n'
    )
    assert log_settings(model) == {
        "path": "/etc/fastserve/logs/m",
        "sampling_rate": 0.25,
        "responses": False,
        "max_file_bytes": 1 << 20,
        "max_file_age_s": 3600.0,
        "keep_files": 100,
        "max_buffer_bytes": 16 << 20,
        "tags": ["a", "b"],
    }


def test_logs_are_in_the_state_directory_unless_it_is_said() -> None:
    model = read(SERVER + MODEL + "[models.logging]\nsampling_rate = 1.0\n")
    assert model.logging.filename_prefix == "/etc/fastserve/state/logs/m"


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("sampling_rate = 1.5", "sampling_rate = 1.5: expected a share, 0 to 1"),
        ("sampling_rate = 1\nfilename_prefix = 's3://logs/m'", "is a URL: expected files of this machine"),
        ("sampling_rate = 1\nfilename_prefix = '/" + 4000 * "a" + "'", "is longer than 3900 bytes"),
        ("max_file_bytes = 10", "max_file_bytes = 10: expected a number of bytes, 1024 or more"),
    ],
)
def test_what_cannot_be_is_refused(keys: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f"{MODEL}[models.logging]\n{keys}\n")
    assert problem in str(caught.value)


def test_two_models_do_not_share_files() -> None:
    table = '[models.logging]\nsampling_rate = 1.0\nfilename_prefix = "logs"\n'
    other = MODEL.replace('"m"', '"n"', 1)
    with pytest.raises(ConfigError, match="filename_prefix: is m's, too: give each model its own"):
        read(MODEL + table + other + table)
    read(MODEL + table + other + table.replace("1.0", "0.0"))


def test_a_version_is_not_loaded_anew_for_its_log() -> None:
    model = read(MODEL)
    assert settings_of(model) == settings_of(replace(model, logging=Logging(sampling_rate=1.0)))


# ---- LoggingConfig ------------------------------------------------------------------------


def reloaded(before: Logging | None = None, **logging: Any) -> Logging:
    config = message("tensorflow.serving.ModelConfig")(name="m", base_path="/m", model_platform="tensorflow")
    if logging:
        config.logging_config.log_collector_config.type = logging.pop("type", "")
        config.logging_config.log_collector_config.filename_prefix = logging.pop("prefix", "")
        config.logging_config.sampling_config.sampling_rate = logging.pop("rate")
    known = {} if before is None else {"m": Model(name="m", base_path="/m", logging=before)}
    (model,) = models_of([config], known, "/state/logs")
    return model.logging


@pytest.mark.parametrize("kind", ["", "file"])
def test_a_reload_may_ask_for_a_log(kind: str) -> None:
    before = Logging(keep_files=7, max_file_bytes=2048)
    made = reloaded(before, type=kind, prefix="/var/log/m", rate=0.5)
    assert made == replace(before, sampling_rate=0.5, filename_prefix="/var/log/m")


@pytest.mark.parametrize(("prefix", "path"), [("", "/state/logs/m"), ("a/b", "/state/logs/a/b")])
def test_a_relative_prefix_is_below_the_state_directory(prefix: str, path: str) -> None:
    assert reloaded(prefix=prefix, rate=1.0).filename_prefix == path


def test_a_reload_that_asks_for_none_ends_it() -> None:
    before = Logging(sampling_rate=0.5, filename_prefix="/var/log/m")
    assert reloaded(before).sampling_rate == 0.0
    assert reloaded(before, rate=0.0).sampling_rate == 0.0


@pytest.mark.parametrize(
    ("wanted", "code", "text"),
    [
        ({"type": "kafka", "rate": 1.0}, 5, "Cannot find LogCollector::Factory for type: kafka"),
        ({"rate": 1.5}, 3, "logging_config of model m: sampling_rate 1.5 is not 0 to 1"),
        ({"rate": float("nan")}, 3, "logging_config of model m: sampling_rate nan is not 0 to 1"),
    ],
)
def test_a_reload_that_cannot_be_done(wanted: dict[str, Any], code: int, text: str) -> None:
    with pytest.raises(Refused) as caught:
        reloaded(**wanted)
    assert (caught.value.code, str(caught.value)) == (code, text)


def test_two_models_of_a_reload_do_not_share_files() -> None:
    configs = [
        message("tensorflow.serving.ModelConfig")(name=name, base_path="/m", model_platform="tensorflow")
        for name in "mn"
    ]
    for config in configs:
        config.logging_config.log_collector_config.filename_prefix = "logs"
        config.logging_config.sampling_config.sampling_rate = 1.0
    with pytest.raises(Refused, match="Illegal to log several models to /state/logs/logs"):
        models_of(configs, {}, "/state/logs")


# ---- telling the core ---------------------------------------------------------------------


class TellingCore:
    """Of a supervisor and a core, what the table uses: it remembers the commands."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []

    async def process(self) -> TellingCore:
        return self

    async def call(self, op: str, **fields: Any) -> dict[str, Any]:
        if op == "logging":
            self.said.append((fields["model"], fields["settings"]))
        return {}


def test_the_core_is_told_of_changes_only() -> None:
    async def run() -> None:
        core, logs = TellingCore(), {"m": None, "n": {"path": "n"}}
        table = CoreTable(core, dict, dict, lambda: logs, Log())  # type: ignore[arg-type]
        await table.tell()
        await table.tell()
        assert core.said == [("n", {"path": "n"})]
        logs["m"] = {"path": "m"}
        del logs["n"]
        await table.tell()
        assert core.said[1:] == [("n", None), ("m", {"path": "m"})]
        # A new core knows nothing.
        other = TellingCore()
        await table.fill(other)  # type: ignore[arg-type]
        assert other.said == [("m", {"path": "m"})]

    asyncio.run(run())


def test_an_adopted_core_may_log_what_is_not_wanted_any_more() -> None:
    async def run() -> None:
        core = TellingCore()
        table = CoreTable(core, dict, dict, lambda: {"m": None}, Log())  # type: ignore[arg-type]
        table.adopted = True
        await table.tell()
        await table.tell()
        assert core.said == [("m", None)]

    asyncio.run(run())


# ---- recordings ---------------------------------------------------------------------------


class RecordingCore:
    """A core that has one log, and the models that a manager knows."""

    def __init__(self) -> None:
        self.recording: dict[str, Any] | None = None
        self.settings: dict[str, Any] | None = None

    def named(self, model: str) -> None:
        if model != "m":
            raise CoreError("NOT_FOUND", f"no model is called {model}")

    async def call(self, op: str, **fields: Any) -> dict[str, Any]:
        if op == "log_stats":
            return {"logs": [{"model": "m", "recording": self.recording}]}
        assert op == "record"
        before, self.recording, self.settings = self.recording, None, fields["settings"]
        if self.settings is not None:
            self.recording = {"path": self.settings["path"], "records": 0}
        return {"recorded": before}


def leave_behind(path: str) -> None:
    Path(path).write_text("of an earlier recording")


def is_there(path: str) -> bool:
    return Path(path).exists()


def recorder(core: RecordingCore, tmp_path: Path) -> Recorder:
    return Recorder(core, core, str(tmp_path))  # type: ignore[arg-type]


def test_a_recording_from_its_begin_to_its_end(tmp_path: Path) -> None:
    async def run() -> None:
        core = RecordingCore()
        one = recorder(core, tmp_path)
        begun = await one.begin("m", 5, 0.5, 10.0)
        assert core.settings is not None
        assert (core.settings["records"], core.settings["sampling_rate"]) == (5, 0.5)
        assert core.settings["timeout_s"] > 10.0  # who asked for it is the first to end it
        assert Path(begun["file"]).parent.parent == tmp_path / "recordings"
        assert (await one.progress("m"))["records"] == 0
        with pytest.raises(CoreError, match="requests of m are being recorded already"):
            await one.begin("m", 5, 1.0, 10.0)
        leave_behind(begun["file"])
        assert (await one.end("m"))["file"] == begun["file"]
        with pytest.raises(CoreError, match="no requests of m are being recorded"):
            await one.end("m")
        with pytest.raises(CoreError, match="no requests of m are being recorded"):
            await one.progress("m")
        again = await one.begin("m", 5, 1.0, 10.0)
        assert again["file"] != begun["file"]
        assert not is_there(begun["file"])

    asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (("m", 0, 1.0, 10.0), "0 records"),
        (("m", 5, 0.0, 10.0), "a sampling rate of 0"),
        (("m", 5, 1.1, 10.0), "a sampling rate of 1.1"),
        (("m", 5, 1.0, 0.0), "0 seconds"),
        (("m", 5, 1.0, 1e6), "1e\\+06 seconds"),
        (("n", 5, 1.0, 10.0), "no model is called n"),
    ],
)
def test_a_recording_that_cannot_be(tmp_path: Path, request_: tuple[Any, ...], why: str) -> None:
    core = RecordingCore()
    with pytest.raises(CoreError, match=why):
        asyncio.run(recorder(core, tmp_path).begin(*request_))
    assert core.settings is None
