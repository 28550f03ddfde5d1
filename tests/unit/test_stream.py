"""The servable stream: what happens to a model's versions, in order, and a model test of its rules."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fastserve.config import Loading, Model, Rollout
from fastserve.control.policy import POLICIES
from fastserve.control.stream import Harness, Rejected, ServableStream, settings_of
from fastserve.errors import CoreError, CoreLost, ModelError
from fastserve.extensions import Action, Aspired, State, Step, VersionPath
from fastserve.log import Log

QUIET = Log(os.open(os.devnull, os.O_WRONLY))


class FakeWork:
    """Loads and unloads end when the test says so; what is in the core is counted."""

    def __init__(self) -> None:
        self.core: list[int] = []  # versions, as loaded
        self.most: dict[int, int] = {}
        self.told: list[str] = []
        self.gates: dict[str, asyncio.Future[None]] = {}
        self.auto = True
        self.bad: dict[int, Exception] = {}

    async def _gate(self, what: str) -> None:
        self.told.append(what)
        if not self.auto:
            gate = self.gates[what] = asyncio.get_running_loop().create_future()
            await gate

    def open(self, what: str, error: Exception | None = None) -> None:
        gate = self.gates.pop(what)
        if not gate.done():
            gate.set_exception(error) if error else gate.set_result(None)

    async def tidy(self, work_dir: str) -> None:
        pass

    async def load(self, harness: Harness, beside: Harness | None) -> None:
        version = harness.version
        harness.cancellable = True
        await self._gate(f"try {version}")
        harness.cancellable = False
        if version in self.bad:
            raise self.bad[version]
        await self._gate(f"load {version}")
        assert (version in self.core) == harness.replacement
        if not harness.replacement:
            self.core.append(version)

    async def prove(self, harness: Harness, beside: Harness) -> None:
        await self._gate(f"prove {harness.version} beside {beside.version}")

    async def unload(self, harness: Harness) -> None:
        await self._gate(f"unload {harness.version}")
        self.core.remove(harness.version)


MADE: list[ServableStream] = []


@pytest.fixture(autouse=True)
async def nothing_left() -> Any:
    """Ends what a test has left waiting."""
    yield
    while MADE:
        await MADE.pop().close()


class Stream:
    """A stream with its work, and time that passes when the test says so."""

    def __init__(self, policy: str | Any = "availability", **loading: Any) -> None:
        self.work = FakeWork()
        self.pauses: list[tuple[float, asyncio.Future[None]]] = []
        self.now = 0.0
        self.model = Model(name="m", base_path="/m", rollout=loading.pop("rollout", Rollout()))
        self.stream = ServableStream(
            self.model,
            POLICIES[policy] if isinstance(policy, str) else policy,
            Loading(**loading),
            self.work,
            QUIET,
            lambda: None,
            clock=lambda: self.now,
            sleep=self._sleep,
        )

        MADE.append(self.stream)

    async def _sleep(self, seconds: float) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pauses.append((seconds, done))
        await done

    def pass_time(self) -> list[float]:
        """Ends every pause; how long they were."""
        pauses, self.pauses = self.pauses, []
        for seconds, done in pauses:
            self.now += seconds
            if not done.done():
                done.set_result(None)
        return [seconds for seconds, _ in pauses]

    async def aspire(self, *versions: int, spares: tuple[int, ...] = (), fingerprint: str = "") -> None:
        paths = [VersionPath(v, f"/m/{v}", fingerprint) for v in (*versions, *spares)]
        self.stream.aspire(Aspired(tuple(paths[: len(versions)]), spares=tuple(paths[len(versions) :])))
        await quiet()

    def states(self) -> dict[int, str]:
        return {h.version: h.state.name for h in self.stream.versions}


async def quiet() -> None:
    """Lets everything happen that waits for nothing."""
    for _ in range(30):
        await asyncio.sleep(0)


async def test_a_new_version_is_loaded_before_the_old_one_goes() -> None:
    s = Stream()
    await s.aspire(1)
    await s.aspire(2)
    assert s.work.told == ["try 1", "load 1", "try 2", "load 2", "unload 1"]
    assert s.states() == {1: "END", 2: "AVAILABLE"}


async def test_with_the_resource_policy_the_old_one_goes_first() -> None:
    s = Stream("resource")
    await s.aspire(1)
    await s.aspire(2)
    assert s.work.told == ["try 1", "load 1", "unload 1", "try 2", "load 2"]


async def test_a_failed_load_is_tried_again_after_growing_pauses() -> None:
    s = Stream(retries=3, retry_s=1.0, retry_max_s=3.0)
    s.work.bad[1] = ModelError("no weights")
    await s.aspire(1)
    assert s.stream.versions[0].state is State.LOADING
    assert (s.stream.versions[0].error, s.stream.versions[0].retry_at) == ("no weights", 1.0)
    waited = []
    while s.pauses:
        waited += s.pass_time()
        await quiet()
    assert waited == [1.0, 2.0, 3.0]
    assert s.states() == {1: "END"} and s.stream.versions[0].failed
    assert s.stream.versions[0].error == "no weights"


@pytest.mark.parametrize("error", [ModelError("x"), CoreError("INTERNAL", "x"), CoreLost("x")])
async def test_what_fails_takes_nobodys_place(error: Exception) -> None:
    s = Stream(retries=0)
    await s.aspire(1)
    s.work.bad[2] = error
    await s.aspire(2)
    assert s.states() == {1: "AVAILABLE", 2: "END"}
    assert s.work.core == [1]


async def test_a_version_that_failed_is_tried_again_when_its_content_has_changed() -> None:
    s = Stream(retries=0)
    s.work.bad[1] = ModelError("cut short")
    await s.aspire(1, fingerprint="a")
    await s.aspire(1, fingerprint="a")
    assert s.work.told == ["try 1"]
    del s.work.bad[1]
    await s.aspire(1, fingerprint="b")
    assert s.states() == {1: "AVAILABLE"}


async def test_an_operator_tries_again_at_once() -> None:
    s = Stream(retries=1)
    s.work.bad[1] = ModelError("x")
    await s.aspire(1)
    s.stream.retry()
    await quiet()
    assert s.states() == {1: "END"}  # the second attempt, without the pause
    del s.work.bad[1]
    s.stream.retry(1)
    await quiet()
    assert s.states() == {1: "AVAILABLE"}


async def test_with_nothing_to_serve_an_older_version_is_better_than_none() -> None:
    s = Stream(retries=0)
    s.work.bad = {3: ModelError("x"), 2: ModelError("y")}
    await s.aspire(3, spares=(1, 2))
    assert s.states() == {3: "END", 2: "END", 1: "AVAILABLE"}
    # It goes when what is wanted is there.
    del s.work.bad[3]
    await s.aspire(3, spares=(1, 2), fingerprint="mended")
    assert s.states() == {3: "AVAILABLE", 1: "END"} or s.states()[3] == "AVAILABLE"
    assert s.work.core == [3]


async def test_a_load_that_nobody_wants_any_more_is_given_up() -> None:
    s = Stream()
    s.work.auto = False
    await s.aspire(1)
    await s.aspire(2)
    assert s.states() == {1: "END", 2: "LOADING"}
    assert not s.stream.versions[0].failed


async def test_a_load_that_the_core_has_begun_is_finished_and_unloaded() -> None:
    s = Stream()
    s.work.auto = False
    await s.aspire(1)
    s.work.open("try 1")
    await quiet()
    await s.aspire(2)
    assert s.states() == {1: "LOADING", 2: "LOADING"}
    s.work.open("load 1")
    await quiet()
    assert s.states() == {1: "AVAILABLE", 2: "LOADING"}
    s.work.auto = True
    s.work.open("try 2")
    await quiet()
    assert s.states() == {1: "END", 2: "AVAILABLE"} and s.work.core == [2]


async def test_what_comes_back_while_it_unloads_is_loaded_again() -> None:
    s = Stream()
    await s.aspire(1)
    s.work.auto = False
    await s.aspire()
    await s.aspire(1)
    assert s.states() == {1: "UNLOADING"}
    s.work.auto = True
    s.work.open("unload 1")
    await quiet()
    assert s.states() == {1: "AVAILABLE"} and s.work.core == [1]


async def test_removal_drains_everything_even_what_is_loading() -> None:
    s = Stream()
    await s.aspire(1, 2)
    s.work.auto = False
    await s.aspire(1, 2, 3)
    s.work.open("try 3")
    await quiet()
    removing = asyncio.create_task(s.stream.remove())
    await quiet()
    assert not removing.done()
    for what in ("load 3", "unload 1", "unload 2"):
        s.work.open(what)
        await quiet()
    s.work.open("unload 3")
    await removing
    assert s.work.core == []
    # The source's last words come too late.
    await s.aspire(1)
    assert s.work.core == []


async def test_closing_gives_up_what_is_under_way_and_touches_nothing_else() -> None:
    s = Stream()
    await s.aspire(1)
    s.work.auto = False
    await s.aspire(2)
    await s.stream.close()
    await quiet()
    assert s.work.core == [1] and not s.stream._tasks


async def test_a_policy_that_asks_for_nonsense_is_not_obeyed() -> None:
    def nonsense(versions: Any) -> Action:
        return Action(Step.UNLOAD, 7)

    s = Stream(nonsense)
    await s.aspire(1)
    assert s.states() == {1: "START"}
    await asyncio.wait_for(s.stream.settled(), 1)


async def test_a_source_that_does_not_know_takes_nothing_away() -> None:
    s = Stream()
    s.stream.adopt(VersionPath(1, "/m/1"), {}, {"settings": settings_of(s.model)})
    s.work.core.append(1)
    s.stream.aspire(Aspired((), "there is no directory /m"))
    await asyncio.wait_for(s.stream.settled(), 1)
    assert s.states() == {1: "AVAILABLE"} and s.stream.problem == "there is no directory /m"
    await s.aspire(1)
    s.stream.aspire(Aspired((), "there is no directory /m"))
    await quiet()
    assert s.states() == {1: "AVAILABLE"} and s.work.told == []
    # Nothing, said without a problem, means nothing.
    await s.aspire()
    assert s.work.core == []


async def test_a_defect_in_a_renewal_leaves_what_is_served() -> None:
    s = Stream()
    await s.aspire(1)
    s.work.bad[1] = ZeroDivisionError()
    s.stream.model = replace(s.model, weight=2.0)
    await s.aspire(1)
    assert s.states() == {1: "AVAILABLE"} and not s.stream.versions[0].held


async def test_a_version_that_is_lost_begins_anew() -> None:
    s = Stream()
    await s.aspire(1)
    s.work.core.remove(1)
    s.stream.lost(s.stream.versions[0], "the core has lost it")
    await quiet()
    assert s.work.told == ["try 1", "load 1", "try 1", "load 1"]
    assert s.states() == {1: "AVAILABLE"}


async def test_settled_waits_for_first_attempts_only() -> None:
    s = Stream(retries=5)
    s.work.bad[1] = ModelError("x")
    waiting = asyncio.create_task(s.stream.settled())
    await quiet()
    assert not waiting.done()
    await s.aspire(1)
    await asyncio.wait_for(waiting, 1)
    assert s.stream.versions[0].state is State.LOADING


async def test_ended_versions_do_not_pile_up() -> None:
    s = Stream()
    for version in range(1, 60):
        await s.aspire(version)
    assert len(s.stream.versions) <= 22
    assert s.states()[59] == "AVAILABLE"


# ---- the same version once more ----------------------------------------------------------------


async def test_new_settings_reach_a_version_that_is_served_and_it_stays_meanwhile() -> None:
    s = Stream()
    await s.aspire(1)
    s.work.auto = False
    s.stream.model = replace(s.model, weight=2.0)
    await s.aspire(1)
    s.work.open("try 1")
    await quiet()
    assert s.states() == {1: "AVAILABLE"} and s.work.core == [1]
    s.work.open("load 1")
    await quiet()
    (harness,) = s.stream.versions
    assert harness.model.weight == 2.0 and harness.renewal is None and not harness.held
    s.work.auto = True
    await s.aspire(1)
    assert s.work.told == ["try 1", "load 1", "try 1", "load 1"]


async def test_settings_that_concern_no_loaded_version_reload_none() -> None:
    s = Stream()
    await s.aspire(1)
    s.stream.model = replace(s.model, labels={"stable": 1}, trial_timeout_s=3.0)
    await s.aspire(1)
    assert s.work.told == ["try 1", "load 1"]


async def test_files_in_another_place_are_loaded_in_place_of_the_old_ones() -> None:
    s = Stream()
    await s.aspire(1)
    s.stream.aspire(Aspired((VersionPath(1, "/elsewhere/1", "x"),)))
    await quiet()
    assert s.stream.versions[0].path.path == "/elsewhere/1"
    assert s.work.told == ["try 1", "load 1", "try 1", "load 1"]


async def test_a_renewal_that_fails_leaves_what_is_served_and_is_not_tried_over_and_over() -> None:
    s = Stream()
    await s.aspire(1)
    s.work.bad[1] = ModelError("it does not compile")
    s.stream.model = replace(s.model, xla="full")
    for _ in range(3):
        await s.aspire(1)
    assert s.work.told == ["try 1", "load 1", "try 1"]
    (harness,) = s.stream.versions
    assert harness.state is State.AVAILABLE and not harness.failed
    assert harness.error == "served as it was loaded before, for this failed: it does not compile"
    del s.work.bad[1]
    s.stream.retry(1)
    await quiet()
    assert harness.model.xla == "full" and harness.error == ""


async def test_a_renewal_that_nobody_wants_any_more_is_given_up() -> None:
    s = Stream()
    await s.aspire(1)
    s.work.auto = False
    s.stream.model = replace(s.model, weight=2.0)
    await s.aspire(1)
    s.work.auto = True
    await s.aspire(2)
    assert s.states() == {1: "END", 2: "AVAILABLE"} and s.work.core == [2]


# ---- rollouts ----------------------------------------------------------------------------------

CANARY = Rollout(mode="canary")


async def test_a_rollout_holds_both_versions_until_the_new_one_is_promoted() -> None:
    s = Stream(rollout=CANARY)
    await s.aspire(1)
    assert "prove" not in " ".join(s.work.told)
    s.work.auto = False
    await s.aspire(2)
    for what in ("try 2", "load 2"):
        s.work.open(what)
        await quiet()
    assert s.states() == {1: "AVAILABLE", 2: "AVAILABLE"}
    s.work.auto = True
    s.work.open("prove 2 beside 1")
    await quiet()
    assert s.states() == {1: "END", 2: "AVAILABLE"}


async def test_a_rejected_version_goes_and_the_old_one_stays() -> None:
    s = Stream(rollout=CANARY)
    await s.aspire(1)
    s.work.auto = False
    await s.aspire(2)
    for what in ("try 2", "load 2"):
        s.work.open(what)
        await quiet()
    s.work.auto = True
    s.work.open("prove 2 beside 1", Rejected("it fails more often"))
    await quiet()
    assert s.states() == {1: "AVAILABLE", 2: "END"}
    (new,) = [h for h in s.stream.versions if h.version == 2]
    assert (new.error, new.failed) == ("it fails more often", True)
    await s.aspire(2)
    assert s.work.core == [1]


async def test_a_newer_version_ends_the_proof_of_the_one_before() -> None:
    s = Stream(rollout=CANARY)
    await s.aspire(1)
    s.work.auto = False
    await s.aspire(2)
    for what in ("try 2", "load 2"):
        s.work.open(what)
        await quiet()
    s.work.auto = True
    await s.aspire(3)
    assert "prove 3 beside 1" in s.work.told
    assert s.states() == {1: "END", 2: "END", 3: "AVAILABLE"}
    assert s.work.core == [3]


# ---- the model test ----------------------------------------------------------------------------

EVENTS = st.one_of(
    st.tuples(st.just("aspire"), st.sets(st.integers(1, 5), max_size=3)),
    st.tuples(st.just("gate"), st.integers(0, 20)),
    st.tuples(st.just("time"), st.just(0)),
    st.tuples(st.just("break"), st.integers(1, 5)),
    st.tuples(st.just("mend"), st.integers(1, 5)),
    st.tuples(st.just("retry"), st.integers(0, 5)),
    st.tuples(st.just("settings"), st.integers(1, 3)),
    st.tuples(st.just("lose"), st.integers(0, 5)),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    events=st.lists(EVENTS, max_size=40),
    policy=st.sampled_from(["availability", "resource"]),
    rollout=st.booleans(),
)
def test_no_sequence_of_events_takes_a_model_away_or_leaks_a_version(
    events: list[tuple[str, Any]], policy: str, rollout: bool
) -> None:
    asyncio.run(_play(events, policy, rollout and policy == "availability"))


async def _play(events: list[tuple[str, Any]], policy: str, rollout: bool) -> None:
    s = Stream(policy, retries=1, rollout=CANARY if rollout else Rollout())
    s.work.auto = False
    wanted: set[int] = set()
    served_once = False

    def check() -> None:
        available = {h.version for h in s.stream.available}
        # What is said to be available is in the core; nothing is there that is not known.
        assert available <= set(s.work.core)
        alive = {h.version for h in s.stream.versions if h.state is not State.END}
        assert set(s.work.core) <= alive
        if policy == "availability" and wanted and served_once:
            assert available, s.states()

    for kind, what in events:
        if kind == "aspire":
            if not what:
                served_once = False  # somebody wants it gone
            wanted = what
            await s.aspire(*sorted(what), spares=tuple(sorted({1, 2, 3, 4, 5} - what))[:2])
        elif kind == "gate" and s.work.gates:
            gate = sorted(s.work.gates)[what % len(s.work.gates)]
            rejected = gate.startswith("prove") and what % 3 == 0
            s.work.open(gate, Rejected("worse") if rejected else None)
        elif kind == "time":
            s.pass_time()
        elif kind == "break":
            s.work.bad[what] = ModelError("broken")
        elif kind == "mend":
            s.work.bad.pop(what, None)
        elif kind == "retry":
            s.stream.retry(what or None)
        elif kind == "settings":
            s.stream.model = replace(s.stream.model, weight=float(what))
            await s.aspire(*sorted(wanted), spares=tuple(sorted({1, 2, 3, 4, 5} - wanted))[:2])
        elif kind == "lose":
            loose = [h for h in s.stream.available if not h.held]
            if loose:
                lost = loose[what % len(loose)]
                s.work.core.remove(lost.version)
                s.stream.lost(lost, "lost")
                served_once = False
        await quiet()
        served_once |= bool(s.stream.available)
        check()

    # In the end everything succeeds that can: what is loadable is served.
    s.work.bad = {v: e for v, e in s.work.bad.items() if v in wanted and v % 2}
    s.work.auto = True
    for _ in range(12):
        for gate in list(s.work.gates):
            s.work.open(gate)
        s.pass_time()
        await quiet()
    s.stream.retry()
    for _ in range(12):
        s.pass_time()
        await quiet()
    good = wanted - set(s.work.bad)
    available = {h.version for h in s.stream.available}
    if good:
        assert good <= available, (s.states(), s.work.bad)
        assert available == set(s.work.core) and available <= wanted
    elif wanted:
        assert available, s.states()  # a spare
    await asyncio.wait_for(s.stream.remove(), 5)
    assert s.work.core == []
    assert not s.stream._tasks and not s.stream._proofs
    MADE.remove(s.stream)
