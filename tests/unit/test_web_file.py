"""What `fastserve check` sees of a route's file without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.web_file import look_at

BOTH = "def preprocess(request): ...\ndef postprocess(outputs, request): ...\n"


@pytest.mark.parametrize(
    "text",
    [
        BOTH,
        BOTH.replace("def", "async def"),
        "from hooks import preprocess, postprocess\n",
        "from hooks import a as preprocess, b as postprocess\n",
        "from hooks import *\n",
        "preprocess = postprocess = print\n",
        "try:\n    import x\nexcept ImportError:\n    preprocess: object = 1\nelse:\n    preprocess = 2\n"
        "if preprocess:\n    class postprocess: ...\n",
        "raise SystemExit('it is not run')\n" + BOTH,
    ],
)
def test_a_file_with_both_functions_is_fine(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.py").write_text(text)
    assert look_at(str(tmp_path / "r.py")) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no preprocess() and no postprocess(): expected preprocess(request)"),
        ("def preprocess(r): ...\n", "has no postprocess()"),
        ("def postprocess(o, r): ...\ndef f():\n    def preprocess(r): ...\n", "has no preprocess()"),
        ("x = 1\ndef preprocess(:\n", "r.py:2: invalid syntax"),
    ],
)
def test_what_is_wrong_is_said_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.py").write_text(text)
    assert said in look_at(str(tmp_path / "r.py"))


def test_a_file_that_is_not_there_or_no_text_is_said(tmp_path: Path) -> None:
    assert look_at(str(tmp_path / "r.py")) == f"{tmp_path}/r.py: No such file or directory"
    (tmp_path / "r.py").write_bytes(b"\0\xff")
    assert f"{tmp_path}/r.py" in look_at(str(tmp_path / "r.py"))
