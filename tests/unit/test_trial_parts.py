"""The parts of a trial that decide: what is asked, how samples look, when answers agree, and what pays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fastserve._native.runtime import RuntimeFailure

from fastserve.config import Batching, TensorFlow
from fastserve.control.trial_choice import choice_includes, write_choice
from fastserve.control.trial_request import ModelRequest, TrialRequest
from fastserve.offline.row_wise import first_line, why_not_batched
from fastserve.offline.session import may_use_gpu, session_config
from fastserve.offline.tensors import (
    EXAMPLE_STYLES,
    STYLES,
    Style,
    Tensor,
    difference,
    first_difference,
    from_native,
    sample,
)
from fastserve.offline.xla import Findings, compiled_pays, examine, why_not_compilable
from fastserve.protos import message
from fastserve.savedmodel import Feature, Port, Signature

FLOAT, INT32, STRING, INT64, BFLOAT16, HALF = 1, 3, 7, 9, 14, 19
WIDE = Style(2, 1)


def request(**batching: Any) -> TrialRequest:
    model = ModelRequest(name="m", version=1, path="/m/1")
    return TrialRequest(model=model, batching=Batching(**batching), prepared_dir="/p")


# ---- the request --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batching", "buckets"),
    [
        ({"max_batch_size": 1}, [1]),
        ({"max_batch_size": 2}, [1, 2]),
        ({"max_batch_size": 8}, [1, 2, 4, 8]),
        ({"max_batch_size": 100}, [1, 2, 4, 8, 16, 32, 64, 100]),
        ({"max_batch_size": 1000, "max_execution_batch_size": 16}, [1, 2, 4, 8, 16]),
        ({"max_batch_size": 100, "allowed_batch_sizes": (10, 100)}, [10, 100]),
    ],
)
def test_buckets(batching: dict[str, Any], buckets: list[int]) -> None:
    assert request(**batching).buckets == buckets


def test_a_request_survives_json_and_refuses_what_it_does_not_know() -> None:
    original = request(allowed_batch_sizes=(1, 512))
    assert msgspec.json.decode(msgspec.json.encode(original), type=TrialRequest) == original
    with pytest.raises(msgspec.ValidationError, match="colour"):
        msgspec.json.decode(b'{"colour": 1}', type=TrialRequest)


# ---- settings -----------------------------------------------------------------------------


def config(*args: Any, **kwargs: Any) -> Any:
    return message("tensorflow.ConfigProto").FromString(session_config(*args, **kwargs))


def test_session_settings() -> None:
    plain = config(TensorFlow(intra_op_threads=3, inter_op_threads=2), single_threaded=False)
    assert plain.intra_op_parallelism_threads == 3
    assert plain.inter_op_parallelism_threads == 2
    assert plain.allow_soft_placement
    assert plain.gpu_options.allow_growth
    assert plain.gpu_options.per_process_gpu_memory_fraction == 0.0
    assert dict(plain.device_count) == {}
    assert plain.experimental.executor_type == ""
    assert not plain.HasField("graph_options")

    single = config(TensorFlow(device="cpu"), single_threaded=True)
    assert single.experimental.executor_type == "SINGLE_THREADED_EXECUTOR"
    assert dict(single.device_count) == {"GPU": 0}

    gpu = config(
        TensorFlow(device="gpu", gpu_memory_fraction=0.25, gpu_allow_growth=False),
        single_threaded=False,
        cluster=True,
    )
    assert gpu.gpu_options.per_process_gpu_memory_fraction == 0.25
    assert not gpu.gpu_options.allow_growth
    assert gpu.graph_options.optimizer_options.global_jit_level == 2
    assert gpu.graph_options.optimizer_options.cpu_global_jit
    assert not gpu.graph_options.HasField("rewrite_options")


def test_further_session_settings_come_first_and_ours_count() -> None:
    text = "operation_timeout_in_ms: 7\ngraph_options { rewrite_options { constant_folding: OFF } }"
    found = config(
        TensorFlow(session_config=text, intra_op_threads=2), single_threaded=True, disable_meta_optimizer=True
    )
    assert (found.operation_timeout_in_ms, found.intra_op_parallelism_threads) == (7, 2)
    rewrite = found.graph_options.rewrite_options
    assert rewrite.constant_folding == rewrite.OFF and rewrite.disable_meta_optimizer
    assert found.experimental.executor_type == "SINGLE_THREADED_EXECUTOR"


def test_a_gpu_is_looked_for_unless_the_device_is_configured(tmp_path: Path) -> None:
    assert not may_use_gpu(TensorFlow(), tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert not may_use_gpu(TensorFlow(), tmp_path)
    (tmp_path / "nvidia0").touch()
    assert may_use_gpu(TensorFlow(), tmp_path)
    assert not may_use_gpu(TensorFlow(device="cpu"), tmp_path)
    assert may_use_gpu(TensorFlow(device="gpu"), tmp_path / "none")


# ---- the remembered choice ----------------------------------------------------------------


def test_choices() -> None:
    assert write_choice({}) == "off"
    assert write_choice({"a": False}) == "off"
    assert write_choice({"a": True}) == "full"
    some = write_choice({"b,]": True, "a": True, "c": False})
    assert some == 'full ["a", "b,]"]'
    assert choice_includes(some, "b,]") and choice_includes(some, "a") and not choice_includes(some, "c")
    assert choice_includes("full", "anything")
    for unreadable in ("off", "", "fullish", "full [", "full 3", "FULL"):
        assert not choice_includes(unreadable, "a")


# ---- tensors ------------------------------------------------------------------------------


def test_samples_have_the_ports_shape_and_type() -> None:
    rng = np.random.default_rng(1)
    for dtype in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 22, 23):
        for style in STYLES:
            made = sample(Port("x", "x:0", dtype, (-1, 3, -1)), 5, style, rng)
            assert made.dtype == dtype
            assert made.array.shape == (5, 3, style.inner)
            back = from_native(made.native())
            assert difference(made, back) is None
    assert sample(Port("x", "x:0", FLOAT, ()), 5, WIDE, rng).array.shape == ()
    assert sample(Port("x", "x:0", FLOAT, None), 5, WIDE, rng).array.shape == (5,)
    assert sample(Port("x", "x:0", STRING, (2, 0)), 5, WIDE, rng).array.shape == (2, 0)


def test_the_narrowest_samples_are_all_zero_where_they_stand_for_something() -> None:
    rng = np.random.default_rng(1)
    for dtype in (INT32, INT64, STRING):
        zeros = sample(Port("x", "x:0", dtype, (-1, 50)), 4, Style(0, 1), rng)
        assert not any(zeros.array.flat)
        few = sample(Port("x", "x:0", dtype, (-1, 50)), 4, Style(1, 1), rng)
        assert set(few.array.flat) == ({b"", b"a"} if dtype == STRING else {0, 1})


def test_samples_of_examples_have_what_the_graph_looks_for() -> None:
    rng = np.random.default_rng(1)
    wanted = (
        Feature("x", FLOAT, 3),
        Feature("id", INT64, 1),
        Feature("word", STRING, 2),
        Feature("any", INT64, None),
    )
    port = Port("inputs", "e:0", STRING, None, features=wanted)
    for style in EXAMPLE_STYLES:
        made = sample(port, 30, style, rng)
        assert (made.dtype, made.array.shape) == (STRING, (30,))
        counts = set()
        for data in made.array:
            features = message("tensorflow.Example").FromString(data).features.feature
            assert len(features["x"].float_list.value) == 3
            assert len(features["id"].int64_list.value) == 1
            assert len(features["word"].bytes_list.value) == 2
            counts.add(len(features["any"].int64_list.value))
        assert counts == ({1} if style.inner else {0, 1, 2})
    assert len(set(sample(port, 30, EXAMPLE_STYLES[0], rng).array)) == 30
    plain = sample(port, 30, WIDE, rng)  # not as examples: what it takes may be something else after all
    assert set(plain.array) <= {b"", b"a", b"b", b"1", b"2", b"some words"}
    other = sample(Port("y", "y:0", FLOAT, (-1, -1)), 4, EXAMPLE_STYLES[0], rng)
    assert other.array.shape == (4, 1)


def test_native_form_of_bfloat16_strings_and_transposed_arrays() -> None:
    assert Tensor(BFLOAT16, np.array([1.0, -2.0], np.float32)).native() == (
        BFLOAT16,
        (2,),
        b"\x80\x3f\x00\xc0",
    )
    assert Tensor(STRING, np.array([[b"a"], [b""]], object)).native() == (STRING, (2, 1), [b"a", b""])
    turned = np.array([[1, 2], [3, 4]], np.int32).T
    assert Tensor(INT32, turned).native()[2] == np.array([1, 3, 2, 4], np.int32).tobytes()
    assert Tensor(FLOAT, np.array(5.0, np.float32)).native()[1] == ()


def floats(*values: float, dtype: int = FLOAT) -> Tensor:
    kind: Any = {FLOAT: np.float32, HALF: np.float16, BFLOAT16: np.float32, 2: np.float64}[dtype]
    return Tensor(dtype, np.array(values, kind))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (floats(1.0, 2.0), floats(1.00001, 2.0)),
        (floats(1000.0, 1e-6), floats(1000.0, -1e-3)),  # tiny beside the largest: cancellation
        (floats(1e-9), floats(1.0005e-9)),
        (floats(float("nan"), float("inf"), 1.0), floats(float("nan"), float("inf"), 1.0)),
        (floats(1.0, dtype=HALF), floats(1.002, dtype=HALF)),
        (floats(1.0, dtype=BFLOAT16), floats(1.0078125, dtype=BFLOAT16)),
        (floats(1.0, dtype=2), floats(1.0 + 1e-9, dtype=2)),
        (floats(), floats()),
        (Tensor(STRING, np.array([b"a"], object)), Tensor(STRING, np.array([b"a"], object))),
    ],
)
def test_answers_that_agree(one: Tensor, other: Tensor) -> None:
    assert difference(one, other) is None
    assert difference(other, one) is None


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        (floats(1.0, 2.0), floats(1.01, 2.0), "1 of 2 values, by up to 0.01: 1 became 1.01"),
        (floats(1e-9, 1e-9), floats(1e-9, 2e-9), "1 of 2 values, by up to 1e-09: 1e-09 became 2e-09"),
        (floats(1.0), floats(float("nan")), "1 of 1 values, infinite or NaN in one of them"),
        (floats(float("inf")), floats(float("-inf")), "1 of 1 values, infinite or NaN in one of them"),
        (floats(1.0, dtype=2), floats(1.0001, dtype=2), "1 of 1 values, by up to 0.0001: 1 became 1.0001"),
        (floats(1.0), floats(1.0, 1.0), "shape: [1] became [2]"),
        (floats(1.0), floats(1.0, dtype=2), "type: float became double"),
        (Tensor(INT32, np.array([1, 2])), Tensor(INT32, np.array([1, 3])), "1 of 2 values"),
        (Tensor(STRING, np.array([b"a"], object)), Tensor(STRING, np.array([b"b"], object)), "1 of 1 values"),
    ],
)
def test_answers_that_differ(one: Tensor, other: Tensor, how: str) -> None:
    assert difference(one, other) == how
    assert first_difference(["fine", "y"], [one, one], [one, other]) == f"output 'y' differs in {how}"


# ---- rows ---------------------------------------------------------------------------------


class FakeModel:
    """A model that is a Python function of numpy arrays; fails where the function raises ValueError."""

    def __init__(self, plain: Any, compiled: Any = None) -> None:
        self.functions = {False: plain, True: compiled or plain}
        self.compiled_rows: list[int] = []
        self._rng = np.random.default_rng(5)

    def sample(self, signature: Signature, rows: int, style: Style) -> list[Tensor]:
        return [sample(port, rows, style, self._rng) for port in signature.inputs]

    def run(self, signature: Signature, inputs: Sequence[Tensor], *, compiled: bool = False) -> list[Tensor]:
        if compiled:
            self.compiled_rows.append(len(inputs[0].array))
        try:
            answers = self.functions[compiled](*(tensor.array for tensor in inputs))
        except ValueError as error:
            raise RuntimeFailure("INVALID_ARGUMENT", str(error)) from None
        answers = answers if isinstance(answers, tuple) else (answers,)
        return [Tensor(port.dtype, a) for port, a in zip(signature.outputs, answers, strict=True)]

    def cost_us(
        self, signature: Signature, inputs: Sequence[Tensor], variants: Sequence[bool]
    ) -> list[float]:
        return [2.0 if compiled else 4.0 for compiled in variants]


def port(alias: str, dtype: int = FLOAT, dims: tuple[int, ...] | None = (-1, 4)) -> Port:
    return Port(alias, f"{alias}:0", dtype, dims)


def signature(inputs: Sequence[Port] = (), outputs: Sequence[Port] = ()) -> Signature:
    return Signature("s", "", tuple(inputs) or (port("x"),), tuple(outputs) or (port("y"),))


def batched(
    function: Any, of: Signature | None = None, row_wise: Any = "probe", style: Style | None = WIDE
) -> str:
    return why_not_batched(FakeModel(function), of or signature(), style, row_wise)  # type: ignore[arg-type]


def test_rows_that_are_independent_are_batched() -> None:
    assert batched(lambda x: x * 2 + 1) == ""
    assert batched(lambda x: x.sum(1, keepdims=True) * np.ones_like(x)) == ""


def test_rows_that_are_not_are_not() -> None:
    why = batched(lambda x: np.exp(x) / np.exp(x).sum(0))
    assert why.startswith("its rows depend on each other: output 'y' differs in 4 of 4 values")
    assert batched(lambda x: x - x.mean(0)).startswith("its rows depend on each other")
    assert batched(lambda x: x + np.arange(len(x), dtype=np.float32)[:, None]).startswith("its rows depend")
    first_row_wins = batched(lambda x: np.where(np.arange(len(x))[:, None] < 1, x, x + x[:1] * 1e-2))
    assert first_row_wins.startswith("its rows depend")


def test_answers_that_are_not_one_for_each_row() -> None:
    assert batched(lambda x: x[:2]) == "output 'y' has the shape [2, 4] for 6 rows"
    assert batched(lambda x: x.sum()) == "output 'y' has the shape [] for 6 rows"


def test_answers_that_change_by_themselves() -> None:
    rng = np.random.default_rng(1)
    why = batched(lambda x: x + rng.random(x.shape, np.float32))
    assert why.startswith("its answers change from run to run") and "row_wise = true" in why


def test_a_run_of_single_rows_that_fails_is_a_reason() -> None:
    def needs_two(x: Any) -> Any:
        if len(x) < 2:
            raise ValueError("one row is too few\nand more")
        return x

    assert batched(needs_two) == "a run of some rows failed: one row is too few"


def test_shapes_decide_first_and_the_configuration_second() -> None:
    def never(x: Any) -> Any:
        raise AssertionError("it must not run")

    no_inputs = Signature("s", "", (), (port("y"),))
    no_outputs = Signature("s", "", (port("x"),), ())
    for row_wise in (True, False, "probe"):
        assert batched(never, no_inputs, row_wise) == "it has no inputs"
        assert batched(never, no_outputs, row_wise) == "it has no outputs"
        assert batched(never, signature([port("k", dims=())]), row_wise) == "input 'k' is a scalar"
        unknown = signature(outputs=[port("y", dims=None)])
        assert batched(never, unknown, row_wise) == "output 'y' has an unknown number of dimensions"
        fixed = signature([port("x"), port("z", dims=(3, -1))])
        assert batched(never, fixed, row_wise) == "input 'z' has a first dimension of exactly 3"
    assert batched(never, row_wise=True) == ""
    assert batched(never, row_wise=True, style=None) == ""
    assert batched(never, row_wise=False) == "row_wise = false"
    assert "no sample that it accepts was found" in batched(never, style=None)


def test_samples_that_are_all_alike_prove_nothing() -> None:
    ids = signature([port("ids", INT64)], [port("y", INT64)])
    assert "it accepts no sample rows that differ" in batched(lambda x: x, ids, style=Style(0, 1))


def test_long_messages_are_cut_at_their_first_line() -> None:
    assert first_line("  short\nsecond") == "short"
    assert first_line("x" * 400) == "x" * 300 + "..."


# ---- XLA ----------------------------------------------------------------------------------


def test_what_is_not_worth_compiling() -> None:
    assert why_not_compilable(signature(), "") == ""
    assert why_not_compilable(signature([port("x", STRING)]), "") == (
        "input 'x' is of strings, which XLA does not know"
    )
    assert "output 'w' is of strings" in why_not_compilable(signature(outputs=[port("w", STRING)]), "")
    assert why_not_compilable(signature(), "it is odd").endswith("and this one is not: it is odd")
    assert "input 'x' has the shape [?, ?]" in why_not_compilable(signature([port("x", dims=(-1, -1))]), "")


def examined(plain: Any, compiled: Any, of: Signature | None = None) -> tuple[Findings, FakeModel, list[int]]:
    model, told = FakeModel(plain, compiled), []
    findings = examine(
        model,  # type: ignore[arg-type]
        of or signature(),
        WIDE,
        [1, 2, 4],
        told.append,
        iter(range(100)).__next__,
    )
    return findings, model, told


def test_every_bucket_is_compiled_compared_and_measured() -> None:
    findings, model, told = examined(lambda x: x * 2, lambda x: x + x)
    assert findings.why == ""
    assert told == [1, 2, 4] == model.compiled_rows
    assert findings.plain_us == {1: 4.0, 2: 4.0, 4: 4.0}
    assert findings.compiled_us == {1: 2.0, 2: 2.0, 4: 2.0}
    assert findings.compile_s == {1: 1, 2: 1, 4: 1}


def test_a_difference_in_the_last_bucket_is_found() -> None:
    findings, *_ = examined(lambda x: x * 2, lambda x: x * 2 + (len(x) == 4))
    assert findings.why.startswith("answers differ under XLA: output 'y' differs in 16 of 16 values")


def test_what_cannot_be_compiled_says_why() -> None:
    def fails(x: Any) -> Any:
        raise ValueError("Detected unsupported operations\nlong list")

    findings, *_ = examined(lambda x: x, fails)
    assert findings.why == "XLA cannot compile it: Detected unsupported operations"
    findings, *_ = examined(fails, lambda x: x)
    assert findings.why.startswith("a plain run of 1 rows failed: Detected")


def checked(ids: Any) -> Any:
    if (ids < 0).any() or (ids >= 100).any():
        raise ValueError("indices[0] is not in [0, 100)")
    return ids.astype(np.float32)


def clamped(ids: Any) -> Any:
    return np.clip(ids, 0, 99).astype(np.float32)


@pytest.mark.parametrize("dtype", [INT32, INT64])
def test_ids_out_of_range_that_only_one_of_them_refuses_are_a_difference(dtype: int) -> None:
    ids = signature([port("ids", dtype)])
    findings, *_ = examined(checked, clamped, ids)
    assert findings.why.startswith("answers differ under XLA: with -1 in input 'ids'")
    assert "plain TensorFlow fails (indices[0] is not in [0, 100)) and XLA gives a value" in findings.why
    findings, *_ = examined(clamped, checked, ids)
    assert "and plain TensorFlow gives a value" in findings.why
    for same in (checked, clamped):
        findings, *_ = examined(same, same, ids)
        assert findings.why == ""

    def wraps(ids: Any) -> Any:
        return (ids % 100).astype(np.float32)

    def clamps_above(ids: Any) -> Any:
        return np.where(ids < 0, ids % 100, np.minimum(ids, 99)).astype(np.float32)

    findings, *_ = examined(wraps, clamps_above, ids)
    assert findings.why.startswith("answers differ under XLA: with 2147483647 in input 'ids'")


def test_compiled_must_be_faster_over_all_buckets() -> None:
    def pays(plain: Sequence[float], compiled: Sequence[float]) -> bool:
        sizes = (1, 2, 4)
        return compiled_pays(
            Findings("", dict(zip(sizes, plain, strict=True)), dict(zip(sizes, compiled, strict=True)))
        )

    assert pays([10, 20, 40], [5, 10, 20])
    assert not pays([10, 20, 40], [10, 20, 40])
    # Faster at equal sizes, but a padded batch of 3 costs more than a plain one.
    assert not pays([10, 20, 40], [9.5, 16, 32])
    # Slow at one row, fast at four: each size counts the same.
    assert pays([10, 10, 10], [15, 5, 5])
    assert not compiled_pays(Findings(""))
