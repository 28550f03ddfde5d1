"""GetModelStatus: what is served, what has failed or ended, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
from conformance.case import Case, ask, check, named, spec


def state(version: int) -> str:
    return f"model_version_status {{ version: {version} state: AVAILABLE status {{ }} }} "


def ok(name: str, request: str, *versions: int) -> Case:
    return Case(name, "GetModelStatus", request, reply="".join(map(state, versions)))


def wrong(name: str, request: str, message: str, code: str = "NOT_FOUND") -> Case:
    return Case(name, "GetModelStatus", request, code, message)


CASES = [
    ok("one version", spec("half_plus_two"), 123),
    ok("several, the newest first", spec("versions"), 2, 1),
    ok("one of several", spec("versions", version=1), 1),
    ok("a label does not count", spec("versions", label="stable"), 2, 1),
    ok("an unknown label does not either", spec("half_plus_two", label="zzz"), 123),
    ok("nor a signature", spec("half_plus_two", "zzz"), 123),
    wrong("no model spec", "", "Missing ModelSpec", "INVALID_ARGUMENT"),
    wrong("unknown model", spec("nope"), "Could not find any versions of model nope"),
    wrong("no name", spec(""), "Could not find any versions of model "),
    wrong("unknown version", spec("versions", version=7), "Could not find version 7 of model versions"),
    wrong("version 0", spec("versions", version=0), "Could not find version 0 of model versions"),
    wrong("a negative version", spec("versions", version=-1), "Could not find version -1 of model versions"),
    wrong("a version of an unknown model", spec("nope", version=1), "Could not find version 1 of model nope"),
]


@pytest.mark.parametrize(**named(CASES))
def test_model_status(channel: grpc.Channel, case: Case) -> None:
    check(channel, case)


def test_versions_that_failed_or_were_unloaded(models: Path, serve: Any, tmp_path: Path) -> None:
    """Both are END: one with the error that its load ended with, the other without any."""
    base = tmp_path / "m"
    shutil.copytree(models / "half_plus_two" / "123", base / "1")
    daemon = serve(
        {}, more=f'[[models]]\nname = "m"\nbase_path = "{base}"\n[loading]\nretries = 0\npoll_s = 0.1\n'
    )
    with daemon.channel() as channel:

        def states() -> dict[int, tuple[int, int, str]]:
            reply: Any = ask(channel, "GetModelStatus", spec("m")).reply
            return {
                version.version: (version.state, version.status.error_code, version.status.error_message)
                for version in reply.model_version_status
            }

        assert states() == {1: (30, 0, "")}
        broken = tmp_path / "broken"
        shutil.copytree(base / "1", broken)
        graph = (broken / "saved_model.pb").read_bytes()
        assert b"ParseExampleV2" in graph
        (broken / "saved_model.pb").write_bytes(graph.replace(b"ParseExampleV2", b"ParseNothingV2"))
        broken.rename(base / "2")
        _state, code, text = daemon.until(lambda: (found := states().get(2)) and found[0] == 50 and found)
        assert code != 0 and "ParseNothingV2" in text
        assert states()[1] == (30, 0, "")
        fresh = tmp_path / "fresh"
        shutil.copytree(base / "1", fresh)
        fresh.rename(base / "3")
        daemon.until(lambda: states().get(3) == (30, 0, ""))
        daemon.until(lambda: states()[1] == (50, 0, ""))
