"""What goes wrong while versions come and go: the version that serves answers all the time, status says what
happened, and once the fault is mended the version comes up."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from daemon_process import alive
from lifecycle import (
    DATA,
    LOADING,
    Caller,
    Serving,
    burn,
    command,
    exported,
    install,
    not_found,
    table,
    with_records,
)
from predict_client import Client, request
from remote_stores import web_store


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """Not started yet; what a test leaves of it is ended."""
    serving = Serving(tmp_path)
    yield serving
    serving.daemon.end()


def lost_connection(error: grpc.RpcError) -> bool:
    """What clients of a core that is killed cannot but see."""
    return error.code() is grpc.StatusCode.UNAVAILABLE


# ---- processes that die ----------------------------------------------------------------------


def test_a_core_that_is_killed_while_it_loads_is_back_and_the_load_goes_on(serving: Serving) -> None:
    base = serving.directory / "m"
    install("slow", base / "1")
    serving.start(serving.config(table("m", base, "row_wise = false")))
    core = serving.daemon.core_pid
    with Caller(serving, "m", suffers=lost_connection) as caller:
        slow_to_load(base / "2")
        serving.daemon.until(lambda: serving.version("m", 2).get("stage") == "load")
        os.kill(core, signal.SIGKILL)
        serving.until_version("m", 2)
        caller.until_served_by(2)
    row = serving.version("m", 2)
    assert row["error"] == "" and row["attempts"] == 1
    assert serving.daemon.admin("status")["core"]["restarts"] == 1
    assert serving.daemon.log.count("trial passed") == 2
    assert serving.daemon.stop() == 0


def slow_to_load(version: Path) -> Path:
    """A version whose warm-up takes about a second."""
    fresh = install("slow", version.with_name(f"{version.name}.slow"))
    with_records(fresh, [request("m", {"x": [400.0]})] * 3)
    fresh.rename(version)
    return version


def test_a_control_process_that_is_killed_in_a_trial_has_a_successor_that_begins_it_anew(
    serving: Serving,
) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    config = serving.config(table("m", base))
    serving.start(config)
    core = serving.daemon.core_pid
    with Caller(serving, "m") as caller:
        install("half", base / "2")
        trial = serving.trial()
        serving.daemon.stop(signal.SIGKILL)
        serving.daemon.until(lambda: not alive(trial))
        caller.more()
        serving.start(config)
        assert serving.daemon.core_pid == core
        serving.until_version("m", 2)
        caller.until_served_by(2)
        serving.daemon.until(lambda: serving.version("m", 1)["state"] == "END")
    assert serving.daemon.stop() == 0
    assert not alive(core)


def test_a_control_process_that_is_killed_in_a_load_has_a_successor_that_finds_it(serving: Serving) -> None:
    base = serving.directory / "m"
    install("slow", base / "1")
    config = serving.config(table("m", base, "row_wise = false"))
    serving.start(config)
    core = serving.daemon.core_pid
    with Caller(serving, "m") as caller:
        slow_to_load(base / "2")
        serving.daemon.until(lambda: serving.version("m", 2).get("stage") == "load")
        serving.daemon.stop(signal.SIGKILL)
        caller.more()
        serving.start(config)
        assert serving.daemon.core_pid == core
        serving.until_version("m", 2)
        caller.until_served_by(2)
    assert serving.daemon.stop() == 0
    assert not alive(core)


def test_sigterm_in_the_middle_of_a_load_ends_everything_soon(serving: Serving) -> None:
    base = serving.directory / "m"
    install("slow", base / "1")
    serving.start(serving.config(table("m", base, "row_wise = false"), server="drain_timeout_s = 5"))
    slow_to_load(base / "2")
    serving.daemon.until(lambda: serving.version("m", 2).get("stage") == "load")
    children = serving.children()
    assert serving.daemon.stop() == 0
    assert not any(alive(pid) for pid in children)


def test_sigterm_in_the_middle_of_a_trial_ends_everything_soon(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    serving.start(serving.config(table("m", base)))
    install("half", base / "2")
    trial = serving.trial()
    children = serving.children()
    assert trial in children
    assert serving.daemon.stop() == 0
    assert not any(alive(pid) for pid in children)
    assert not list((serving.directory / "state" / "prepared").glob("*/2/*"))


def test_a_trial_ends_with_the_control_process(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    serving.start(serving.config(table("m", base)))
    core = serving.daemon.core_pid
    install("hanging", base / "2")
    trial, server = serving.trial(), serving.fork_server()
    assert server is not None
    serving.daemon.stop(signal.SIGKILL)
    serving.daemon.until(lambda: not alive(trial) and not alive(server))
    assert alive(core)


# ---- configurations that race -----------------------------------------------------------------


def test_reloads_that_race_end_with_what_the_file_says_last(serving: Serving) -> None:
    base, more = serving.directory / "m", serving.directory / "more"
    install("half", base / "1")
    install("half", more / "1")
    one, both = serving.config(table("m", base)), serving.config(table("m", base) + table("more", more))
    serving.start(both)
    with Caller(serving, "m") as caller:
        answers: list[bool] = []

        def reload() -> None:
            for _ in range(5):
                answers.append(serving.daemon.admin("reload")["ok"])

        threads = [threading.Thread(target=reload) for _ in range(2)]
        for thread in threads:
            thread.start()
        for text in [one, both] * 10:
            (serving.directory / "config.new").write_text(text)
            (serving.directory / "config.new").rename(serving.directory / "config.toml")
            serving.daemon.process.send_signal(signal.SIGHUP)
            caller.more(3)
        for thread in threads:
            thread.join()
        assert answers == [True] * 10
        serving.daemon.admin("reload")
        serving.until_version("more", 1)
        with serving.daemon.channel() as channel:
            assert Client(channel).outputs(request("more", {"x": [4.0]}))["y"].tolist() == [4.0]
        # Whatever came and went: it can be taken out, and is gone.
        serving.reload(one)
        with serving.daemon.channel() as channel:
            client = Client(channel)
            serving.daemon.until(lambda: not_found(client, "more"))
        serving.daemon.until(
            lambda: {row["model"] for row in serving.daemon.admin("list")["servables"]} == {"m"}
        )
    assert "not available" not in serving.daemon.log
    assert serving.daemon.stop() == 0


# ---- the compile cache -------------------------------------------------------------------------

FULL = 'xla = "full"\n[models.batching]\nmax_batch_size = 2\n'


def cache_entries(serving: Serving) -> list[Path]:
    return list((serving.directory / "state" / "xla").glob("*/*.pb"))


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    for at in range(0, len(data), 97):
        data[at] ^= 0x55
    file.chmod(0o644)
    file.write_bytes(data)


def test_a_damaged_compile_cache_costs_a_compilation_and_no_version(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    serving.start(serving.config(table("m", base, FULL)))
    assert "XLA" in serving.daemon.line
    with Caller(serving, "m") as caller:
        entries = cache_entries(serving)
        assert entries
        for file in entries:
            damage(file)
        install("half", base / "2")
        caller.until_served_by(2)
        assert "compile cache entry removed" in serving.daemon.log
    # Again, for a core that has to begin anew.
    core = serving.daemon.core_pid
    for file in cache_entries(serving):
        damage(file)
    with Caller(serving, "m", suffers=lambda e: lost_connection(e) or not_there(e)) as caller:
        os.kill(core, signal.SIGKILL)
        serving.daemon.until(lambda: not alive(core))
        serving.daemon.until(lambda: serving.daemon.admin("status")["core"]["restarts"] == 1)
        serving.until_version("m", 2)
        caller.more()
        assert caller.last_version == 2
    assert serving.daemon.stop() == 0


def not_there(error: grpc.RpcError) -> bool:
    return error.code() is grpc.StatusCode.NOT_FOUND


# ---- versions that cannot be served ------------------------------------------------------------


class Deployment:
    """A daemon that a model's versions are brought to, one after the other."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.base = serving.directory / "m"
        self.newest = 1
        install("half", self.base / "1")
        self.config = serving.config(table("m", self.base))
        serving.start(self.config)
        self.core = serving.daemon.core_pid

    def next(self) -> Path:
        """Where the next version goes."""
        self.newest += 1
        return self.base / str(self.newest)

    def until_served(self) -> None:
        self.serving.until_version("m", self.newest)

    def until_failed(self) -> str:
        return self.serving.until_failed("m", self.newest)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = Deployment(Serving(tmp_path_factory.mktemp("shared")))
    yield deployment
    assert deployment.serving.daemon.stop() == 0


@pytest.fixture
def deployment(shared: Deployment) -> Iterator[Deployment]:
    """Whatever a test does, the core is the same, and nobody is refused. At its end a good version serves."""
    with Caller(shared.serving, "m") as caller:
        yield shared
        shared.until_served()
        caller.until_served_by(shared.newest)
    assert shared.serving.daemon.core_pid == shared.core


def mend(version: Path) -> None:
    """Brings a good version's files over a bad one's, one by one."""
    good = exported("half")
    for file in sorted(path for path in good.rglob("*") if path.is_file()):
        target = version / file.relative_to(good)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())


def test_a_version_that_is_being_copied_waits_until_all_of_it_is_there(deployment: Deployment) -> None:
    good, index = exported("half"), "variables/variables.index"
    version = deployment.next()
    version.mkdir()

    def copy(name: str, until: int | None = None) -> None:
        (version / name).parent.mkdir(exist_ok=True)
        (version / name).write_bytes((good / name).read_bytes()[:until])

    def waits_for(words: str) -> None:
        deployment.serving.until_problem("m", f"version {deployment.newest} does not count: {words}")
        assert deployment.serving.version("m", deployment.newest)["state"] == ""

    waits_for(f"{version}/saved_model.pb is not there yet")
    (version / "saved_model.pb").write_bytes(b"garbage")
    waits_for(f"{version}/saved_model.pb (7 bytes) is cut short or no SavedModel")
    copy("saved_model.pb", 1000)
    waits_for(f"{version}/saved_model.pb (1000 bytes) is cut short or no SavedModel")
    copy("saved_model.pb")
    waits_for(f"{version}/{index} is not there, and saved_model.pb restores variables")
    copy(index)
    waits_for(f"{version}/{DATA} is not there; by the index it has")
    copy(DATA, -1)
    size = (good / DATA).stat().st_size
    waits_for(f"{version}/{DATA} has {size - 1} bytes of the {size} that the index names")
    copy(DATA)
    deployment.until_served()
    assert deployment.serving.model("m")["problem"] == ""


def test_a_model_file_that_is_damaged_fails_its_version_until_it_is_mended(deployment: Deployment) -> None:
    fresh = install("half", deployment.base / "damaged")
    data = bytearray((fresh / "saved_model.pb").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = b"\xff" * 200
    (fresh / "saved_model.pb").write_bytes(data)
    fresh.rename(version := deployment.next())
    deployment.serving.daemon.until(
        lambda: (
            deployment.serving.version("m", deployment.newest)["state"] == "END"
            or f"version {deployment.newest}" in deployment.serving.model("m")["problem"]
        )
    )
    mend(version)


def test_a_version_whose_warm_up_fails_says_what_the_model_said(deployment: Deployment) -> None:
    fresh = install("picky", deployment.base / "unlucky")
    with_records(fresh, [request("m", {"x": [1.0]}), request("m", {"x": [13.0]})])
    fresh.rename(version := deployment.next())
    why = deployment.until_failed()
    assert "13 is bad luck" in why
    assert deployment.serving.version("m", deployment.newest)["attempts"] == 2
    with_records(version, [request("m", {"x": [1.0]})])


def test_a_version_that_crashes_does_so_in_its_trial(deployment: Deployment) -> None:
    version = install("crashing", deployment.next())
    assert deployment.until_failed().startswith("the trial ended with SIGABRT")
    mend(version)


def test_a_trial_that_is_killed_is_one_attempt(deployment: Deployment) -> None:
    install("half", deployment.next())
    os.kill(deployment.serving.trial(), signal.SIGKILL)

    def killed() -> bool:
        row = deployment.serving.version("m", deployment.newest)
        return row["error"] == "the trial ended with SIGKILL (probably the kernel's out-of-memory killer)"

    deployment.serving.daemon.until(killed)
    deployment.until_served()
    row = deployment.serving.version("m", deployment.newest)
    assert (row["attempts"], row["error"]) == (2, "")


def test_a_version_that_hangs_is_given_up(deployment: Deployment) -> None:
    serving = deployment.serving
    serving.reload(serving.config(table("m", deployment.base, "trial_timeout_s = 5.0")))
    version = install("hanging", deployment.next())
    trial = serving.trial()
    assert deployment.until_failed() == "the trial was not done within trial_timeout_s = 5"
    assert not alive(trial)
    assert not any("fastserve.control.trial" in command(pid) for pid in serving.children())
    serving.reload(deployment.config)
    mend(version)


def test_what_trials_are_forked_from_may_die(deployment: Deployment) -> None:
    serving = deployment.serving

    def served() -> int | None:
        install("half", deployment.next())
        deployment.until_served()
        return serving.fork_server()

    server = served()
    assert server is not None and served() == server
    assert "without the fork server" not in serving.daemon.log
    os.kill(server, signal.SIGKILL)
    assert served() is None
    told = [line for line in serving.daemon.log.splitlines() if "without the fork server" in line]
    assert len(told) == 1 and 'why="it ended with SIGKILL"' in told[0]
    another = served()
    assert another not in (None, server)
    assert "fork server output" not in serving.daemon.log


def test_a_base_path_that_is_gone_takes_nothing_out_of_service(deployment: Deployment) -> None:
    gone = deployment.base.with_name("gone")
    deployment.base.rename(gone)
    deployment.serving.until_problem("m", f"there is no directory {deployment.base}")
    assert deployment.serving.version("m", deployment.newest)["state"] == "AVAILABLE"
    gone.rename(deployment.base)
    deployment.serving.daemon.until(lambda: not deployment.serving.model("m")["problem"])


def test_of_two_hundred_versions_the_newest_is_served(deployment: Deployment) -> None:
    for _ in range(200):
        shutil.copytree(exported("half"), deployment.next(), copy_function=os.link)
    trials = deployment.serving.daemon.log.count("trial passed")
    deployment.until_served()
    # More than one at the most: copies were still being made when it first looked.
    assert deployment.serving.daemon.log.count("trial passed") - trials <= 5
    deployment.serving.daemon.until(
        lambda: (
            [v for v in deployment.serving.model("m")["versions"] if v["state"] == "AVAILABLE"]
            == [deployment.serving.version("m", deployment.newest)]
        )
    )
    # The one before is retired, and then it is closed.
    deployment.serving.daemon.until(lambda: len(deployment.serving.daemon.admin("list")["servables"]) == 1)


def test_status_tells_how_far_a_load_is(deployment: Deployment) -> None:
    fresh = install("slow", deployment.base / "slow")
    with_records(fresh, [request("m", {"x": [400.0]})] * 4)
    fresh.rename(deployment.next())
    seen: dict[str, dict[str, Any]] = {}

    def look() -> bool:
        row = deployment.serving.version("m", deployment.newest)
        if row.get("stage"):
            seen[row["stage"]] = row
        return bool(row["state"] == "AVAILABLE")

    deployment.serving.daemon.until(look)
    assert {"warmup", "load"} <= set(seen)
    assert all(row["seconds"] >= 0 and row["state"] == "LOADING" for row in seen.values())
    assert 1 <= seen["warmup"]["done"] <= seen["warmup"]["total"] == 4


def test_a_load_in_the_shade_of_busy_processes_is_hurried(deployment: Deployment) -> None:
    """Theirs is all that the machine has; a trial at the lowest priority would get a thousandth of it."""
    busy = [burn() for _ in range(os.cpu_count() or 1)]
    try:
        install("half", deployment.next())
        deployment.serving.daemon.until(
            lambda: deployment.serving.version("m", deployment.newest)["state"] == "AVAILABLE", 60
        )
        assert all(process.poll() is None for process in busy)
    finally:
        for process in busy:
            process.kill()
            process.wait()


# ---- resources that are not there --------------------------------------------------------------


def test_a_version_that_does_not_fit_is_refused_with_figures(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    serving.start(serving.config(table("m", base)))
    limit = serving.daemon.core_rss_bytes() + (32 << 20)
    assert serving.daemon.stop() == 0
    serving.start(serving.config(table("m", base), loading=f"{LOADING}\nmemory_limit_bytes = {limit}"))
    with Caller(serving, "m"):
        install("large", base / "2")
        why = serving.until_failed("m", 2)
        assert why.startswith("it does not fit: its files alone have 64 MiB, and of ")
        assert serving.version("m", 1)["state"] == "AVAILABLE"
        assert serving.daemon.admin("status")["core"]["restarts"] == 0
    assert serving.daemon.stop() == 0


def test_a_version_that_may_not_be_read_waits_until_it_may(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    # Root may read everything, unless it has given that up.
    given_up = "-dac_override,-dac_read_search"
    wrapper = ["setpriv", f"--bounding-set={given_up}", f"--inh-caps={given_up}"] if os.geteuid() == 0 else []
    serving.start(serving.config(table("m", base)), wrapper=wrapper)
    with Caller(serving, "m") as caller:
        fresh = install("half", base / "secret")
        (fresh / DATA).chmod(0)
        fresh.rename(version := base / "2")
        serving.until_problem("m", "cannot be read: Permission denied")
        (version / DATA).chmod(0o644)
        caller.until_served_by(2)
        base.chmod(0)
        serving.until_problem("m", f"{base} cannot be listed: Permission denied")
        caller.more()
        base.chmod(0o755)
        serving.daemon.until(lambda: not serving.model("m")["problem"])
        install("half", base / "3")
        caller.until_served_by(3)
    assert serving.daemon.stop() == 0


def test_a_full_disk_costs_the_compile_cache_and_no_version(serving: Serving) -> None:
    """No file can become as large as what XLA makes of this model."""
    base = serving.directory / "m"
    install("wordy", base / "1")
    config = serving.config(table("m", base, FULL.replace("2", "1")))
    serving.start(config, wrapper=["prlimit", "--fsize=20480"])
    assert "XLA" in serving.daemon.line
    assert "trial failed with the compile cache" in serving.daemon.log
    assert "nothing is counted or traced" in serving.daemon.log
    with Caller(serving, "m") as caller:
        caller.more()
    assert serving.daemon.stop() == 0


# ---- a store that fails ------------------------------------------------------------------------


def test_a_store_that_cuts_files_short_or_is_silent_takes_nothing_out_of_service(serving: Serving) -> None:
    store, stop = web_store(serving.directory / "web")
    try:
        store.upload(exported("half"), 1)
        options = "[models.options]\npoll_s = 0.2\ntimeout_s = 1.0"
        serving.start(serving.config(table("m", store.url, options)))
        with Caller(serving, "m") as caller:
            store.faults.by_path[f"2/{DATA}"] = store.faults.CUT
            store.upload(exported("half"), 2)
            serving.until_problem("m", "variables.data")
            assert serving.version("m", 2)["state"] == ""
            store.faults.by_path.clear()
            caller.until_served_by(2)
            store.faults.by_path["/m"] = store.faults.SILENT
            serving.daemon.until(lambda: serving.model("m")["problem"])
            caller.more()
            store.faults.clear()
            store.upload(exported("half"), 3)
            caller.until_served_by(3)
        assert serving.daemon.stop() == 0
    finally:
        stop()
