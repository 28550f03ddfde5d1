"""The parts of `fastserve export` that need no TensorFlow: names, structures, differences, files' heads."""

from __future__ import annotations

import json
import zipfile
from collections import namedtuple
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastserve.offline.tensors import BFLOAT16, STRING, Tensor
from fastserve.protos import message
from fastserve.savedmodel import Port, SavedModel, Signature
from fastserve.workshop import export
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.export_compare import Difference, compare
from fastserve.workshop.export_keras_file import look
from fastserve.workshop.export_samples import Samples, record
from fastserve.workshop.export_source import SourceOptions, read_source
from fastserve.workshop.imports import import_named
from fastserve.workshop.python_ops import python_ops
from fastserve.workshop.renames import Renames, chosen_signatures, pairs
from fastserve.workshop.runs import RunFailed
from fastserve.workshop.structure import fill, flat_names, flatten, names_of

FLOAT, INT64, HALF = 1, 9, 19
Pair = namedtuple("Pair", "left right")


def layer(leaf: Any, number: int) -> str:
    return f"layer{number}"


# ---- structures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("structure", "names"),
    [
        ("x", ["layer0"]),
        (["x", "y"], ["layer0", "layer1"]),
        ({"b": "x", "a": "y"}, ["a", "b"]),
        (
            {"user": {"id": "x", "age": "y"}, "items": ["p", "q"]},
            ["items_0", "items_1", "user_age", "user_id"],
        ),
        (["x", {"a": "y"}, {"a": "z"}], ["layer0", "a", "a_1"]),
        (Pair("x", ["y"]), ["left", "right_0"]),
        ((), []),
    ],
)
def test_leaves_have_names_and_find_their_way_back(structure: Any, names: list[str]) -> None:
    named = names_of(structure, layer)
    assert list(flat_names(named)) == names
    flat = flatten(named, structure)
    assert list(flat) == names
    assert fill(named, flat) == structure


def test_a_list_of_one_is_its_item_and_other_shapes_are_errors() -> None:
    assert flatten(["a"], 1) == flatten("a", [1]) == {"a": 1}
    assert flatten(["a", "b"], (1, 2)) == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match=r"expected \{p, q\}, found \{p\}"):
        flatten({"p": "p", "q": "q"}, {"p": 1})
    with pytest.raises(ValueError, match="a dict where a should be"):
        flatten("a", {"x": 1})
    with pytest.raises(KeyError):
        fill(["a", "b"], {"a": 1})


# ---- names -------------------------------------------------------------------------------


def test_signatures_are_chosen_and_renamed() -> None:
    there = ["predict", "rank"]
    assert chosen_signatures([], there, named=True) == {"predict": "predict", "rank": "rank"}
    assert chosen_signatures(["rank"], there, named=True) == {"rank": "rank"}
    assert chosen_signatures(["rank=serving_default", "rank"], there, named=True) == {
        "serving_default": "rank",
        "rank": "rank",
    }
    assert chosen_signatures(["score"], ["serving_default"], named=False) == {"score": "serving_default"}
    with pytest.raises(WorkshopError, match="has 'predict', which --signature predict=score renames"):
        chosen_signatures(["score"], ["predict"], named=True)
    with pytest.raises(WorkshopError, match="TensorFlow's own"):
        chosen_signatures(["rank=__saved_model_init_op"], there, named=True)


def test_inputs_swap_their_names() -> None:
    renames = Renames("--input", ["a=b", "b=a"])
    assert renames.of("s", ["a", "b", "c"]) == {"a": "b", "b": "a", "c": "c"}
    renames.check_used()
    with pytest.raises(WorkshopError, match="'a' has a new name already"):
        Renames("--input", ["a=b", "a=c"])


def test_inputs_are_called_as_arguments_may_be() -> None:
    renames = Renames("--input", ["user-id=user"], arguments=True)
    assert renames.of("s", ["user-id", "item-id", "2nd", "_x", "class"]) == {
        "user-id": "user",
        "item-id": "item_id",
        "2nd": "arg_2nd",
        "_x": "arg__x",
        "class": "arg_class",
    }
    assert Renames("--output", []).of("s", ["item-id"]) == {"item-id": "item-id"}
    with pytest.raises(WorkshopError, match="'user-id' is no name"):
        Renames("--input", ["a=user-id"], arguments=True)


def test_pairs() -> None:
    assert pairs("--dtype", ["a=int64"], "NAME=DTYPE") == {"a": "int64"}
    with pytest.raises(WorkshopError, match="--dtype int64: expected NAME=DTYPE"):
        pairs("--dtype", ["int64"], "NAME=DTYPE")


# ---- graphs ------------------------------------------------------------------------------


def test_calls_into_python_are_found_where_the_graph_gets_to() -> None:
    graph = message("tensorflow.GraphDef")()
    graph.node.add(name="call", op="StatefulPartitionedCall").attr["f"].func.name = "outer"
    for name, op in (("outer", "While"), ("body", "EagerPyFunc"), ("idle", "PyFunc")):
        function = graph.library.function.add()
        function.signature.name = name
        node = function.node_def.add(name=f"in_{name}", op=op)
        if op == "While":
            node.attr["branches"].list.func.add(name="body")
    assert list(python_ops(graph)) == [("EagerPyFunc", "in_body")]


# ---- differences -------------------------------------------------------------------------


def outputs(values: Any, dtype: int = FLOAT, kind: Any = np.float32) -> dict[str, Tensor]:
    return {"y": Tensor(dtype, np.array(values, dtype=kind))}


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        (outputs([1.0, 2.0]), outputs([1.0, 2.00001]), None),
        (outputs([1.0, 2.0]), outputs([1.0, 2.001]), "1 of 2 values, by up to 0.001: 2 became 2.001"),
        (outputs([1.0, np.nan]), outputs([1.0, np.nan]), None),
        (outputs([1.0, np.nan]), outputs([1.0, 3.0]), "1 of 2 values, infinite or NaN in one of them"),
        (outputs([[1.0]]), outputs([1.0]), r"shape: \[1, 1\] became \[1\]"),
        (outputs([1.0]), outputs([1], INT64, np.int64), "type: float became int64"),
        (outputs([1, 2], INT64, np.int64), outputs([1, 3], INT64, np.int64), "1 of 2 values"),
        (outputs([b"a"], STRING, object), outputs([b"a"], STRING, object), None),
        (outputs([b"a"], STRING, object), outputs([b"b"], STRING, object), "1 of 1 values"),
        # Roundings of the dtype are no difference, whatever the tolerance.
        (outputs([1.0, 2.0], HALF, np.float16), outputs([1.0, 2.002], HALF, np.float16), None),
        (outputs([1.0], BFLOAT16), outputs([1.0078125], BFLOAT16), None),
        # More than those is one.
        (outputs([1.0], BFLOAT16), outputs([1.125], BFLOAT16), "1 of 1 values, by up to 0.125"),
        (outputs([1.0, 2.0], HALF, np.float16), outputs([1.0, 2.02], HALF, np.float16), "1 of 2 values"),
        # Of two gaps, the one that is not allowed is told, which may be the smaller one.
        (
            outputs([1.0, 1000.0], 2, np.float64),
            outputs([1.0105, 1000.0199], 2, np.float64),
            "1 of 2 values, by up to 0.0105: 1 became 1.0105",
        ),
    ],
)
def test_differences(one: dict[str, Tensor], other: dict[str, Tensor], why: str | None) -> None:
    _, found = compare(one, other, 1e-5)
    if why is None:
        assert found is None
    else:
        with pytest.raises(WorkshopError, match=f"output 'y' differs in {why}"):
            raise WorkshopError(found)


def test_the_largest_difference_is_told() -> None:
    found, wrong = compare(outputs([4.0, 2.0]), outputs([4.0, 1.0]), 1.0)
    assert wrong is None
    assert (found.absolute, found.relative) == (1.0, 0.25)


# ---- files and modules -------------------------------------------------------------------


def keras_zip(path: Path, version: str, config: Any) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("metadata.json", json.dumps({"keras_version": version} if version else {}))
        file.writestr("config.json", json.dumps(config))
    return path


def test_a_file_says_which_keras_wrote_it(tmp_path: Path) -> None:
    config = {"class_name": "Sequential", "config": {"layers": []}}
    for version, generation in (("3.5.0", 3), ("2.16.0", 2)):
        file = look(keras_zip(tmp_path / "a.keras", version, config))
        assert (file.version, file.generation, file.lambdas) == (version, generation, ())
    marked = {"module": "keras.models", "class_name": "Functional", "config": {}}
    assert look(keras_zip(tmp_path / "a.keras", "", marked)).generation == 3
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as archive:
        archive.writestr("other", "")
    with pytest.raises(WorkshopError, match=r"without config.json and metadata.json"):
        look(tmp_path / "b.keras")


CODE = {"class_name": "__lambda__", "config": {"code": ""}}


@pytest.mark.parametrize(
    ("class_name", "config", "has_code"),
    [
        ("Lambda", {"function": CODE}, True),
        ("Lambda", {"function_type": "lambda"}, True),
        ("Lambda", {"function_type": "function", "output_shape_type": "lambda"}, True),
        ("Lambda", {"function_type": "function", "output_shape_type": "raw", "mask_type": "lambda"}, True),
        ("Lambda", {"function": "relu", "output_shape": CODE}, True),
        ("Lambda", {"function": "relu", "arguments": {"more": [CODE]}}, True),
        ("Custom>Lambda", {"mask_type": "lambda"}, True),
        ("Dense", {"activation": CODE}, True),
        ("Lambda", {"function_type": "function", "output_shape_type": "raw", "mask": None}, False),
        ("Dense", {"activation": "lambda", "units": 3}, False),
    ],
)
def test_code_is_found_in_what_either_keras_writes(
    tmp_path: Path, class_name: str, config: dict[str, Any], has_code: bool
) -> None:
    layer = {"class_name": class_name, "config": {"name": "a", **config}}
    model = {"class_name": "Sequential", "config": {"name": "all", "layers": [layer, layer]}}
    file = look(keras_zip(tmp_path / "a.keras", "3.0", model))
    assert file.lambdas == (("a",) if has_code else ())


def test_without_tensorflow_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WorkshopError, match=r"pip install 'fastserve\[workshop\]'"):
        read_source("module:function", SourceOptions())


def test_modules_are_found_by_name_and_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neighbour.py").write_text("VALUE = 5\n")
    (tmp_path / "mine_of_export.py").write_text("from neighbour import VALUE\nclass A:\n    b = VALUE\n")
    (tmp_path / "broken_of_export.py").write_text("import no_such_thing_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert import_named("SOURCE", "mine_of_export:A.b") == 5
    assert import_named("SOURCE", f"{tmp_path / 'mine_of_export.py'}:A.b") == 5
    with pytest.raises(WorkshopError, match="mine_of_export has no 'B'; it has A, VALUE"):
        import_named("SOURCE", "mine_of_export:B")
    with pytest.raises(WorkshopError, match=r"importing broken_of_export failed: .*no_such_thing_at_all"):
        import_named("--custom", "broken_of_export")


# ---- pieces ------------------------------------------------------------------------------


def test_answers_are_compared_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither rows nor answers of a big file are in memory all at once."""
    signature = Signature("rank", "", (Port("x", "x:0", FLOAT, (-1, 2)),), ())
    traced: Any = SimpleNamespace(name="rank", chunk=None)
    taken: list[int] = []
    runs: list[tuple[int, int]] = []

    def request(row: int) -> dict[str, Tensor]:
        return {"x": Tensor(FLOAT, np.full((1 + row // 6, 2), row, np.float32))}

    def compared() -> Iterator[dict[str, Tensor]]:
        for row in range(7):
            taken.append(row)
            yield request(row)

    def answer(wrong: int | None, failing: int | None = None) -> tuple[Difference, set[int]]:
        taken.clear()
        runs.clear()

        def run(path: Path, records: Sequence[bytes], libraries: Sequence[str]) -> list[dict[str, Tensor]]:
            first = sum(count for count, _ in runs)
            runs.append((len(records), len(taken)))
            if failing in range(first, first + len(records)):
                raise RunFailed("run", failing - first, "INTERNAL", "no")
            rows = range(first, first + len(records))
            return [{"y": Tensor(FLOAT, request(row)["x"].array + (row == wrong))} for row in rows]

        monkeypatch.setattr(export, "run_requests", run)
        saved_model = SavedModel("", (), "", (signature,))
        return export._compare(
            export.Wanted("source", Path()), [traced], saved_model, {"rank": Samples(compared(), ())}
        )

    monkeypatch.setattr(export, "ask", lambda traced, signature, inputs: {"y": inputs["x"]})
    monkeypatch.setattr(export, "_PIECE_BYTES", 2 * (len(record(signature, request(0))) + 8))
    difference, sizes = answer(None)
    assert runs == [(2, 2), (2, 4), (2, 6), (1, 7)]
    assert difference.absolute == 0.0 and sizes == {1, 2}
    with pytest.raises(WorkshopError, match="'rank': at 1 rows the export does not answer as the source"):
        answer(3)
    assert runs == [(2, 2), (2, 4)]
    with pytest.raises(WorkshopError, match="'rank' fails at 2 rows where the source does not"):
        answer(None, failing=6)
