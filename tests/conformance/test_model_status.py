"""GetModelStatus: what is served, and what is refused."""

from __future__ import annotations

import grpc
import pytest
from conformance.case import Case, check, named, spec


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
