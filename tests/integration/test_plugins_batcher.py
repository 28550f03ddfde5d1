"""The batcher of examples/plugins, as tables and in a core, beside FastServe's own."""

from __future__ import annotations

import struct

import pytest
from core_driver import Core, predict_request, servable
from example_plugins import installed_plugins
from fastserve._native.runtime import RuntimeFailure
from fastserve._native.scheduler import check_library, pick_queue, plan_rows
from h2_client import Client

from fastserve.control.plugins import batcher_library

NOW = 1000


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed_plugins())


def library() -> str:
    path = batcher_library("priority")
    assert path is not None
    return path


@pytest.mark.parametrize(
    ("queues", "chosen"),  # (oldest_us, ready_us, virtual_us, weight)
    [
        pytest.param([(900, 0, 50, 1.0)], (0, None), id="one queue"),
        pytest.param(
            [(100, 0, 0, 1.0), (900, 0, 9000, 2.0)], (1, None), id="the heaviest, whatever it has had"
        ),
        pytest.param([(900, 0, 0, 2.0), (800, 0, 9, 2.0)], (1, None), id="of equals the longest waiting"),
        pytest.param([(900, NOW + 7, 0, 9.0), (900, 0, 0, 1.0)], (1, NOW + 7), id="not one that may wait"),
        pytest.param([(900, NOW + 7, 0, 9.0), (900, NOW + 3, 0, 1.0)], (-1, NOW + 3), id="none is ripe"),
    ],
)
def test_the_heaviest_model_is_next(
    queues: list[tuple[int, int, int, float]], chosen: tuple[int, int | None]
) -> None:
    assert pick_queue(queues, NOW, library()) == chosen


def test_how_many_rows_stays_our_own_decision() -> None:
    costs_us = {1: 50.0, 8: 60.0, 64: 100.0}
    assert plan_rows(70, 64, costs_us, library()) == plan_rows(70, 64, costs_us)


def test_a_library_that_is_no_batcher_is_refused() -> None:
    with pytest.raises(RuntimeFailure, match="cannot be read: No such file"):
        check_library("/nowhere/priority.so")
    with pytest.raises(RuntimeFailure, match="expected the absolute path"):
        pick_queue([(1, 1, 1)], NOW, "priority.so")


CALLS = 10


def order_of_answers(policy_library: str | None) -> list[str]:
    """The models of the calls in the order in which one executor answered them, without the first: "gate"
    goes before all others, and keeps the executor busy until their calls are there."""
    models = {"gate": (9.0, 500_000), "light": (1.0, 10_000), "heavy": (2.0, 10_000)}
    with Core(policy_library=policy_library, executor={"threads": 1}) as core, Client(core.port) as client:
        core.serve(
            *(
                {**servable(name, options=f"run_us={run_us}", batched=False), "weight": weight}
                for name, (weight, run_us) in models.items()
            )
        )
        asked = {
            client.call(predict_request(name, struct.pack("<f", 1.0), [1, 1])): name
            for name in ["gate", *["light"] * CALLS, *["heavy"] * CALLS]
        }
        client.finish(*asked)
        answered = list(client.status)
        assert set(client.status.values()) == {"0"}
    return [asked[stream] for stream in answered if asked[stream] != "gate"]


def test_in_a_core_the_heavier_model_goes_first_and_the_lighter_waits() -> None:
    assert order_of_answers(library()) == ["heavy"] * CALLS + ["light"] * CALLS


def test_our_own_policy_shares_instead() -> None:
    assert "light" in order_of_answers(None)[:CALLS]


def test_a_core_with_a_batcher_that_is_none_ends_and_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    with Core(policy_library="/nowhere/priority.so") as core:
        assert core.wait() == 1
    assert capfd.readouterr().err == (
        "fastserve.core: /nowhere/priority.so: the plug-in cannot be read: No such file or directory\n"
    )
