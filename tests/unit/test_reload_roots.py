"""Where the models of a HandleReloadConfigRequest may lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastserve.config import Logging, Model
from fastserve.control.reload_roots import OutsideRoots, check_log_places, check_roots


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """models/ranker, models/out -> secret, link -> models, secret, models-too."""
    for name in ("models/ranker", "secret", "models-too/ranker"):
        (tmp_path / name).mkdir(parents=True)
    os.symlink(tmp_path / "secret", tmp_path / "models" / "out")
    os.symlink(tmp_path / "models", tmp_path / "link")
    return tmp_path


def allowed(path: str, *roots: str, before: str | None = None) -> bool:
    served = {} if before is None else {"m": Model(name="m", base_path=before)}
    try:
        check_roots([Model(name="m", base_path=path)], served, roots)
    except OutsideRoots as refused:
        assert str(refused) == (
            f"the base_path of model m, {path}, is not below one of the [server] reload_roots"
        )
        return False
    return True


@pytest.mark.parametrize(
    ("path", "ok"),
    [
        ("models/ranker", True),
        ("models/ranker/deep/er", True),
        ("models", True),
        ("models/", True),
        ("link/ranker", True),
        ("models/none/yet", True),
        ("models-too/ranker", False),
        ("secret", False),
        ("models/../secret", False),
        ("models/ranker/../../secret", False),
        ("models/out", False),
        ("models/out/1", False),
        ("", False),
    ],
)
def test_directories(folder: Path, path: str, ok: bool) -> None:
    assert allowed(f"{folder}/{path}", f"{folder}/models") is ok
    assert allowed(f"{folder}/{path}", f"{folder}/link") is ok  # the root may be a link itself
    assert allowed(f"{folder}/{path}", "/nowhere", f"{folder}/models/") is ok
    assert allowed(f"{folder}/{path}")  # without roots: anywhere
    assert allowed(f"{folder}/{path}", "/")


@pytest.mark.parametrize(
    ("path", "ok"),
    [
        ("gs://bucket/models/ranker", True),
        ("gs://bucket/models", True),
        ("gs://bucket/models/a/b.c/d", True),
        ("gs://bucket/models-too/ranker", False),
        ("gs://bucket", False),
        ("gs://other/models/ranker", False),
        ("s3://bucket/models/ranker", False),
        ("file:///etc", False),
        ("gs://bucket/models/../secret", False),
        ("gs://bucket/models/./ranker", False),
        ("gs://bucket/models/%2e%2e/secret", False),
        ("gs://bucket/models/..\\secret", False),
        ("gs://bucket/models/x?a=b", False),
        ("gs://bucket/models/x#y", False),
        ("gs://bucket/models/x::file:///etc", False),
        ("/bucket/models/ranker", False),
    ],
)
def test_urls(path: str, ok: bool) -> None:
    assert allowed(path, "gs://bucket/models") is ok
    assert allowed(path, "/models", "gs://bucket/models/") is ok
    assert not allowed(path, "/models")


def test_what_is_served_already_may_stay_but_not_move(folder: Path) -> None:
    served = f"{folder}/secret"
    assert allowed(served, f"{folder}/models", before=served)
    assert not allowed(served, f"{folder}/models", before=f"{folder}/models/ranker")
    assert allowed(f"{folder}/models/ranker", f"{folder}/models", before=served)
    # Another model's place is not its own.
    with pytest.raises(OutsideRoots):
        check_roots(
            [Model(name="new", base_path=served)],
            {"m": Model(name="m", base_path=served)},
            [f"{folder}/models"],
        )


def logged(prefix: str, rate: float = 0.5) -> Model:
    return Model(name="m", base_path="/m", logging=Logging(sampling_rate=rate, filename_prefix=prefix))


@pytest.mark.parametrize(
    ("prefix", "ok"),
    [
        ("logs/m", True),
        ("logs/deep/er/m", True),
        ("models/ranker/m", True),
        ("models/m", True),
        ("models", False),  # files beside it: models-...
        ("logs", False),
        ("secret/m", False),
        ("models/out/m", False),
        ("models-too/m", False),
    ],
)
def test_request_logs_lie_below_the_roots_or_where_logs_are_kept(folder: Path, prefix: str, ok: bool) -> None:
    model, roots, logs = logged(f"{folder}/{prefix}"), [f"{folder}/models"], f"{folder}/logs"
    check_log_places([model], {}, [], logs)  # without roots: anywhere
    check_log_places([logged(f"{folder}/{prefix}", 0.0)], {}, roots, logs)  # nothing is logged
    check_log_places([model], {"m": model}, roots, logs)  # it is there already
    if ok:
        check_log_places([model], {}, roots, logs)
    else:
        with pytest.raises(OutsideRoots, match=r"filename_prefix of model m, .* is neither below"):
            check_log_places([model], {}, roots, logs)
