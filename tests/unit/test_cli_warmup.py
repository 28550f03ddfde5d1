"""`fastserve warmup`: files made of signatures and rows, recorded from a daemon that is made up, and
shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from unit.saved_model_files import add_signature, meta_graph, tensor_info, write

from fastserve.cli import main
from fastserve.cli_warmup_record import Recording, run
from fastserve.errors import FastServeError
from fastserve.offline.records import read_requests
from fastserve.protos import message
from fastserve.savedmodel import read
from fastserve.savedmodel.tfrecord import read_records, write_records

FLOAT, STRING, INT64, BFLOAT16, RESOURCE = 1, 7, 9, 14, 20
REQUESTS = Path("assets.extra", "tf_serving_warmup_requests")


def call(*args: object) -> Result:
    return CliRunner().invoke(main, ["warmup", *map(str, args)])


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SavedModel with two signatures."""
    monkeypatch.setenv("COLUMNS", "200")
    meta = meta_graph()
    y = {"y": tensor_info("y:0")}
    add_signature(
        meta,
        "serving_default",
        {"dense": tensor_info("d:0", FLOAT, (-1, 3)), "ids": tensor_info("i:0", INT64, (-1,))},
        y,
    )
    add_signature(
        meta,
        "texts",
        {"text": tensor_info("t:0", STRING, (-1, -1)), "half": tensor_info("h:0", BFLOAT16, ())},
        y,
    )
    add_signature(meta, "__saved_model_init_op", {}, {})
    return write(tmp_path / "4", meta)


def predicts(file: Path) -> list[Any]:
    logs = [message("tensorflow.serving.PredictionLog").FromString(r) for r in read_records(file)]
    return [log.predict_log.request for log in logs]


def shapes(file: Path) -> list[tuple[str, dict[str, list[int]]]]:
    return [
        (
            request.model_spec.signature_name,
            {a: [d.size for d in t.tensor_shape.dim] for a, t in request.inputs.items()},
        )
        for request in predicts(file)
    ]


# ---- make ---------------------------------------------------------------------------------


def test_made_up_requests_are_what_the_trial_takes(version: Path) -> None:
    result = call("make", version)
    assert (result.exit_code, result.stdout) == (0, f"4 requests in {version / REQUESTS}\n")
    assert shapes(version / REQUESTS) == [
        ("serving_default", {"dense": [1, 3], "ids": [1]}),
        ("serving_default", {"dense": [32, 3], "ids": [32]}),
        ("texts", {"text": [1, 1], "half": []}),
        ("texts", {"text": [32, 1], "half": []}),
    ]
    requests = read_requests(version, read(version))
    assert [warmup.signature.name for warmup in requests] == 2 * ["serving_default"] + 2 * ["texts"]
    values = requests[1].inputs[0].array
    assert values.dtype == np.float32 and np.std(values) > 0.5


def test_sizes_signatures_and_seeds_can_be_chosen(version: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        result = call(
            *("make", version, "--signature", "texts", "--batch-size", 3, "--inner", 5, "--seed", seed),
            *("-o", file),
        )
        assert (result.exit_code, result.stdout) == (0, f"1 request in {file}\n")
    assert shapes(files[0]) == [("texts", {"text": [3, 5], "half": []})]
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert not (version / REQUESTS).exists()


def test_a_file_is_replaced_only_when_told_to(version: Path) -> None:
    (version / REQUESTS).parent.mkdir()
    (version / REQUESTS).write_text("precious")
    result = call("make", version)
    assert result.exit_code == 2
    assert f"{version / REQUESTS} is there already; --force replaces it" in result.stderr
    assert (version / REQUESTS).read_text() == "precious"
    assert call("make", version, "--force").exit_code == 0
    assert len(shapes(version / REQUESTS)) == 4
    assert [path.name for path in (version / REQUESTS).parent.iterdir()] == [REQUESTS.name]


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--signature", "tests"), "has no signature tests; there are: serving_default, texts"),
        (("--tag", "train"), "no meta graph has the tags ['train']"),
        (("-o", "/nowhere/at/all"), "/nowhere/at: no such directory; make it first"),
    ],
)
def test_what_cannot_be_made_says_so(version: Path, args: tuple[str, ...], why: str) -> None:
    result = call("make", version, *args)
    assert result.exit_code in (1, 2)
    assert why in result.stderr
    assert not (version / REQUESTS).exists()


def test_a_dtype_without_values_is_named(tmp_path: Path) -> None:
    meta = meta_graph()
    add_signature(meta, "table", {"t": tensor_info("t:0", RESOURCE)}, {"y": tensor_info("y:0")})
    result = call("make", write(tmp_path / "1", meta))
    assert result.exit_code == 2
    assert "signature table has an input of a dtype that no values can be made up for" in result.stderr


def npz(path: Path, rows: int, **more: Any) -> Path:
    arrays = {
        "dense": np.arange(rows * 3, dtype=np.float64).reshape(rows, 3),
        "ids": np.arange(rows, dtype=np.int32),
        **more,
    }
    np.savez(path, **arrays)
    return path


def test_rows_are_cut_into_requests(version: Path, tmp_path: Path) -> None:
    rows = npz(tmp_path / "rows.npz", 10)
    assert call("make", version, "--rows", rows, "--batch-size", 1, "--batch-size", 4).exit_code == 0
    requests = read_requests(version, read(version))
    assert [len(warmup.inputs[1].array) for warmup in requests] == [1, 4, 1, 4]
    assert np.concatenate([w.inputs[1].array for w in requests]).tolist() == list(range(10))
    assert [w.inputs[1].dtype for w in requests] == 4 * [INT64]
    assert requests[1].inputs[0].array.tolist()[0] == [3.0, 4.0, 5.0]


def test_rows_as_json(version: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(
        json.dumps({"instances": [{"dense": [1, 2, 3], "ids": 7}, {"dense": [4, 5, 6], "ids": 8}]})
    )
    assert call("make", version, "--rows", rows, "--batch-size", 2).exit_code == 0
    (warmup,) = read_requests(version, read(version))
    assert warmup.inputs[0].array.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert warmup.inputs[1].array.tolist() == [7, 8]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ids": np.zeros(9, np.int64)}, "every input needs as many rows as the others: dense 10, ids 9"),
        ({"ids": np.full(10, 0.5)}, "input ids has values that int64 cannot hold"),
        ({"ids": np.full(10, "a")}, "input ids is of <U1, which is no int64"),
        ({"dense": np.zeros((10, 4))}, "input dense has the shape [10, 4]; the signature takes [?, 3]"),
        ({"dense": np.zeros(10)}, "input dense has the shape [10]; the signature takes [?, 3]"),
        ({"more": np.zeros(10)}, "takes dense, ids; the file has more, which the signature has not"),
    ],
)
def test_rows_that_do_not_fit_are_named(
    version: Path, tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    result = call("make", version, "--rows", npz(tmp_path / "rows.npz", 10, **change))
    assert result.exit_code == 2
    assert why in result.stderr
    assert not (version / REQUESTS).exists()


def test_too_many_requests_are_refused(version: Path, tmp_path: Path) -> None:
    rows = npz(tmp_path / "rows.npz", 1001)
    result = call("make", version, "--rows", rows, "--batch-size", 1)
    assert result.exit_code == 2
    assert "1001 requests, but a version takes 1000 at most" in result.stderr
    assert call("make", version, "--rows", rows, "--batch-size", 2).exit_code == 0


# ---- show ---------------------------------------------------------------------------------


def _example() -> Any:
    return message("tensorflow.Example")()


def log(kind: str = "predict_log", **spec: Any) -> bytes:
    made = message("tensorflow.serving.PredictionLog")()
    part = getattr(made, kind)
    part.SetInParent()
    if kind == "multi_inference_log":
        for name in ("a", "b"):
            part.request.tasks.add(method_name="tensorflow/serving/classify").model_spec.signature_name = name
        part.request.input.example_list.examples.extend([_example(), _example()])
    elif kind in ("classify_log", "regress_log"):
        part.request.model_spec.name = "m"
        part.request.input.example_list.examples.append(_example())
    elif kind == "predict_log":
        part.request.model_spec.name = spec.get("name", "m")
        tensor = part.request.inputs["x"]
        tensor.dtype = FLOAT
        tensor.tensor_shape.dim.add(size=2)
        made.log_metadata.model_spec.version.value = 3
    data: bytes = made.SerializeToString()
    return data


def records(path: Path, *logs: bytes) -> Path:
    with open(path, "wb") as file:
        write_records(file, logs)
    return path


def test_a_table_of_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    kinds = ["predict_log", "classify_log", "multi_inference_log", "session_run_log"]
    result = call("show", records(tmp_path / "f", *map(log, kinds)))
    assert result.exit_code == 0
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert cells == [
        ["1", "predict", "m", "3", "serving_default", "x float[2]"],
        ["2", "classify", "m", "", "serving_default", "examples string[1]"],
        ["3", "multi_inference", "", "", "a, b", "examples string[2]"],
        ["4", "session_run", "", "", "", "is not run"],
    ]
    assert result.stdout.splitlines()[-1] == "4 records"


def test_json_is_a_line_for_each(version: Path) -> None:
    assert call("make", version, "--signature", "serving_default").exit_code == 0
    result = call("show", version, "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["record"] for row in rows] == [1, 2]
    assert rows[1]["inputs"] == {
        "dense": {"dtype": "float", "shape": [32, 3]},
        "ids": {"dtype": "int64", "shape": [32]},
    }
    assert {row["kind"] for row in rows} == {"predict"}


def test_only_the_first_few(tmp_path: Path) -> None:
    file = records(tmp_path / "f", *(log() for _ in range(5)))
    assert call("show", file, "--limit", 2).stdout.splitlines()[-1] == "2 records shown"


def test_more_than_a_version_takes_is_said(tmp_path: Path) -> None:
    file = records(tmp_path / "f", *(log() for _ in range(1001)))
    assert "1001 records; a version takes 1000 at most" in call("show", file).stdout


def damaged(tmp_path: Path, how: str) -> Path:
    file = records(tmp_path / "f", log(), log(), log())
    data = bytearray(file.read_bytes())
    if how == "cut off":
        data = data[:-3]
    elif how == "payload":
        data[len(data) // 3 + 20] ^= 1
    elif how == "no records":
        data = bytearray(b"this is a text file, and a long one")
    elif how == "no log":
        return records(tmp_path / "f", log(), b"\xff\xff\xff")
    file.write_bytes(data)
    return file


@pytest.mark.parametrize(
    ("how", "why", "shown"),
    [
        ("cut off", "record 3 is cut off: the file was not written to its end; the 2 before it are whole", 2),
        ("payload", "record 2 has a wrong checksum: the file is damaged from there on", 1),
        ("no records", "record 1: its length has a wrong checksum: this is no TFRecord file", 0),
        ("no log", "record 2 is no PredictionLog (3 bytes); a warm-up file has nothing else", 1),
    ],
)
def test_damage_names_file_and_record(tmp_path: Path, how: str, why: str, shown: int) -> None:
    file = damaged(tmp_path, how)
    result = call("show", file, "--json")
    assert result.exit_code == 1
    assert f"{file}: {why}" in result.stderr
    assert len(result.stdout.splitlines()) == shown


def test_a_version_without_a_file(version: Path) -> None:
    result = call("show", version)
    assert result.exit_code == 1
    assert "no such file; `fastserve warmup make` and `fastserve warmup record` write one" in result.stderr


# ---- record -------------------------------------------------------------------------------


class FakeDaemon:
    """Records as many requests at each question as it is told to."""

    def __init__(self, directory: Path, steps: list[int]) -> None:
        self.file = directory / "recordings" / "requests"
        self.file.parent.mkdir()
        self.asked: list[dict[str, Any]] = []
        self.records = 0
        self.failed = 0
        self.error = ""
        self._steps = iter(steps)

    def ask(self, request: dict[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
        self.asked.append(request)
        verb = request["verb"]
        if verb == "record":
            self.wanted = request["records"]
            return {"ok": True, "file": str(self.file)}
        if verb == "record_progress":
            self.records = min(self.records + next(self._steps), self.wanted)
        row = {
            "path": str(self.file),
            "file": str(self.file),
            "records": self.records,
            "finished": self.records == self.wanted,
            "failed": self.failed,
            "error": self.error,
        }
        if verb == "record_end" and self.records:
            records(self.file, *(log() for _ in range(self.records)))
        return {"ok": True, **row}

    def verbs(self) -> list[str]:
        return [request["verb"] for request in self.asked]


class Clock:
    """Time passes in sleeps only."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def take(daemon: FakeDaemon, output: Path, n: int = 10, **options: Any) -> str:
    clock = Clock()
    return run(daemon, Recording("m", n, 1.0, 1.0), output, clock=clock, sleep=clock.sleep, **options)


def test_what_was_wanted_is_in_the_file(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path, [3, 4, 5])
    output = tmp_path / "out"
    assert take(daemon, output) == f"10 requests of m in {output}"
    assert len(list(read_records(output))) == 10
    assert daemon.verbs() == ["record", *3 * ["record_progress"], "record_end"]
    assert daemon.asked[0] == {
        "verb": "record",
        "model": "m",
        "records": 10,
        "sampling_rate": 1.0,
        "timeout_s": 1.0,
    }
    assert not daemon.file.parent.exists()


def test_time_is_up_with_some(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path, [1, *100 * [0]])
    said = take(daemon, tmp_path / "out")
    assert said.endswith("; 10 were wanted, but time was up")
    assert len(list(read_records(tmp_path / "out"))) == 1


def test_time_is_up_with_nothing(tmp_path: Path) -> None:
    with pytest.raises(FastServeError, match="no request of m was answered in 1 s; send some meanwhile"):
        take(FakeDaemon(tmp_path, 100 * [0]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ctrl_c_writes_what_there_is(tmp_path: Path) -> None:
    def steps() -> Iterator[int]:
        yield 2
        raise KeyboardInterrupt

    daemon = FakeDaemon(tmp_path, [])
    daemon._steps = steps()
    assert take(daemon, tmp_path / "out").startswith("2 requests of m")


def test_a_daemon_that_cannot_write_is_told_of(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path, [0, 0])
    daemon.failed, daemon.error = 4, "No space left on device"
    with pytest.raises(FastServeError, match=r"cannot write them to .*requests: No space left on device"):
        take(daemon, tmp_path / "out")
    assert daemon.verbs()[-1] == "record_end"


def test_where_it_cannot_be_written_is_found_out_first(tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path, [10])
    (tmp_path / "out").write_text("precious")
    with pytest.raises(FastServeError, match="is there already"):
        take(daemon, tmp_path / "out")
    with pytest.raises(FastServeError, match="no such directory"):
        take(daemon, tmp_path / "no" / "out")
    assert daemon.asked == []
    take(daemon, tmp_path / "out", force=True)
    assert len(list(read_records(tmp_path / "out"))) == 10


def test_a_version_takes_no_more_than_a_thousand() -> None:
    result = call("record", "m", "-n", 1001, "-o", "x")
    assert result.exit_code == 2
    assert "1001 is not in the range" in result.stderr


def test_help_teaches() -> None:
    for command in ("record", "make", "show"):
        text = call(command, "--help").stdout
        assert f"fastserve warmup {command} " in text
