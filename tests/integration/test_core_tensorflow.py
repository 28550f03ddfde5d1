"""The core with TensorFlow in it: what its loader threads leave behind, seen from outside the process."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from core_driver import PREDICT, Core, Refused, predict_request
from integration.test_trial import model_path, tried

from fastserve.config import TensorFlow
from fastserve.environment import tensorflow_dir

NICE = 7
FOR_GOOD = 5  # FS_NICE_FOR_GOOD
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}
LIBRARY = {"library_dir": tensorflow_dir(TensorFlow())}


def nice_values(core: Core) -> Counter[int]:
    """How many threads of the process have which nice value, less this process's own."""
    normal = os.getpriority(os.PRIO_PROCESS, 0)
    found: Counter[int] = Counter()
    for task in Path(f"/proc/{core.process.pid}/task").iterdir():
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        found[int(fields[16]) - normal] += 1
    return found


def privileged() -> bool:
    """Whether threads can be raised again here."""
    with Core(loading={"nice": 19}) as core:
        core.call("serve")
        return not [event for event in core.events if event.get("message", "").startswith("loads give way")]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A version that runs under XLA."""
    found = tried(model_path("half_plus_two"), tmp_path_factory.mktemp("xla") / "p", xla="full")
    assert found.signature()["compiled"]
    return found.servable


def test_after_a_load_beside_requests_nobody_gives_way_but_the_loader(compiled: dict[str, Any]) -> None:
    may_raise = privileged()
    low = NICE if may_raise else FOR_GOOD
    with Core(tensorflow=LIBRARY, loading={"nice": NICE}, environment=QUIET) as core:
        core.call("serve")
        core.call("load", servable=compiled)
        found = nice_values(core)
    assert set(found) == {0, low}
    assert found[0] > 6  # TensorFlow's pools are among them
    if may_raise:
        assert found[low] == 1  # and so are the threads that XLA started in the middle of the load


def test_before_requests_come_loads_do_not_give_way(compiled: dict[str, Any]) -> None:
    with Core(tensorflow=LIBRARY, loading={"nice": NICE}, environment=QUIET) as core:
        core.call("load", servable=compiled)
        assert set(nice_values(core)) == {0}


def test_a_library_that_is_not_there_fails_the_load_and_not_the_core(compiled: dict[str, Any]) -> None:
    with Core(tensorflow={"library_dir": "/no/such"}, environment=QUIET) as core:
        for _ in range(2):
            with pytest.raises(
                Refused, match="FAILED_PRECONDITION: cannot open TensorFlow's library: /no/such"
            ):
                core.call("load", servable=compiled)
        assert core.call("list")["servables"] == []


def test_two_loads_at_once_open_the_library_once(compiled: dict[str, Any]) -> None:
    with Core(tensorflow=LIBRARY, environment=QUIET) as core:
        loads = [core.begin("load", servable={**compiled, "version": version}) for version in (1, 2)]
        for number in loads:
            core.finish(number)
        assert {row["state"] for row in core.call("list")["servables"]} == {"loaded"}


@pytest.mark.parametrize("ablate", ["pool", "warmup", "nice", "unload"])
def test_what_is_left_out_for_measurement_is_served_all_the_same(
    ablate: str, compiled: dict[str, Any]
) -> None:
    plain = tried(model_path("half_plus_two"), Path("/nonexistent")).servable
    with Core(tensorflow=LIBRARY, ablate=[ablate], environment=QUIET) as core:
        core.serve(plain)
        with grpc.insecure_channel(core.address) as channel:
            reply = channel.unary_unary(PREDICT)(predict_request("m", b"\0\0\0\x41", [1]), timeout=30)
            assert b"\0\0\xc0\x40" in reply  # 8 / 2 + 2
        core.call("retire", model="m", version=7)
        core.call("close", model="m", version=7)
        assert core.call("list")["servables"] == []
