"""What `fastserve profile` and `optimize` take for real inputs, and what `export` leaves for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from unit.saved_model_files import add_signature, meta_graph, tensor_info, write

from fastserve.cli import main
from fastserve.offline.model import OpenModel
from fastserve.offline.records import MAX_RECORDS, REQUESTS_FILE, read_requests
from fastserve.offline.tensors import RECORDED, Tensor
from fastserve.savedmodel import SavedModel, Signature, read
from fastserve.workshop.export_samples import Inputs, Samples
from fastserve.workshop.export_warmup import write_warmup
from fastserve.workshop.optimizing.requests import find_pools, load_of
from fastserve.workshop.optimizing.values import Wanted
from fastserve.workshop.profiling.inputs import pool_of

FLOAT = 1


@pytest.fixture
def version(tmp_path: Path) -> Path:
    meta = meta_graph()
    for name in ("clicks", "serving_default"):
        add_signature(meta, name, {"x": tensor_info("x:0", FLOAT, (-1, 2))}, {"y": tensor_info("y:0")})
    return write(tmp_path / "1", meta)


def warmup_make(version: Path, *args: object) -> None:
    result = CliRunner().invoke(main, ["warmup", "make", str(version), *map(str, args)])
    assert result.exit_code == 0, result.output


def signature(saved_model: SavedModel, name: str = "serving_default") -> Signature:
    found = saved_model.signature(name)
    assert found is not None
    return found


def requests(rows: int) -> list[Inputs]:
    return [{"x": Tensor(FLOAT, np.full((1, 2), row, np.float32))} for row in range(rows)]


# ---- real and made up --------------------------------------------------------------------


def test_what_was_made_up_is_nobodys_real_input(version: Path) -> None:
    saved_model = read(version)
    warmup_make(version)
    assert len(read_requests(version, saved_model)) == 4  # and yet the trial runs them
    pool = pool_of(saved_model, signature(saved_model), None)
    assert (pool.rows, pool.style, pool.origin) == ({}, None, "made-up values")
    for wanted in (Wanted(None, (), (8,), ()), Wanted(None, (version / REQUESTS_FILE,), (8,), ())):
        pools = find_pools(version, saved_model, wanted)
        assert not pools.rows and not pools.requests
        assert load_of(signature(saved_model), pools, wanted) is None


def test_rows_that_somebody_has_are_real(version: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=np.arange(10.0).reshape(5, 2))
    warmup_make(version, "--rows", tmp_path / "rows.npz", "--batch-size", 2)
    saved_model = read(version)
    assert pool_of(saved_model, signature(saved_model), None).origin == f"5 rows of {REQUESTS_FILE}"
    pools = find_pools(version, saved_model, Wanted(None, (), (8,), ()))
    assert pools.origin == "3 requests of its warm-up file" and "serving_default" in pools.rows


def test_of_an_export_only_the_rows_of_the_user_are_real(version: Path) -> None:
    saved_model = read(version)
    made_up = Samples((), requests(2), made_up=True)
    write_warmup(version, saved_model, {"clicks": made_up, "serving_default": Samples((), requests(3))})
    assert pool_of(saved_model, signature(saved_model, "clicks"), None).origin == "made-up values"
    assert pool_of(saved_model, signature(saved_model), None).origin == f"3 rows of {REQUESTS_FILE}"
    assert list(find_pools(version, saved_model, Wanted(None, (), (8,), ())).requests) == ["serving_default"]


# ---- as the signature has them ----------------------------------------------------------


def test_rows_fit_a_signature_with_a_batch_of_its_own(tmp_path: Path) -> None:
    meta = meta_graph()
    add_signature(meta, "four", {"x": tensor_info("x:0", FLOAT, (4, 1))}, {"y": tensor_info("y:0")})
    file = tmp_path / "rows.npz"
    np.savez(file, x=np.arange(6.0).reshape(6, 1))
    saved_model = read(write(tmp_path / "1", meta))
    (four,) = saved_model.signatures

    pool = pool_of(saved_model, four, file)
    model = OpenModel(None, recorded=pool.rows)  # type: ignore[arg-type]
    (sample,) = model.sample(four, 1, RECORDED)
    assert sample.array.shape == (4, 1)

    wanted = Wanted(file, (), (8,), ())
    load = load_of(four, find_pools(tmp_path / "1", saved_model, wanted), wanted)
    assert load is not None and list(load.timed) == [4]
    assert [inputs[0].array.ravel().tolist() for inputs in load.checked] == [[0, 1, 2, 3], [4, 5, 0, 1]]


def test_what_has_no_rows_is_one_request(tmp_path: Path) -> None:
    meta = meta_graph()
    ports = {"k": tensor_info("k:0", FLOAT, ()), "x": tensor_info("x:0", FLOAT, (2,))}
    add_signature(meta, "whole", ports, {"y": tensor_info("y:0")})
    file = tmp_path / "rows.npz"
    np.savez(file, k=np.float32(5), x=np.arange(2.0))
    saved_model = read(write(tmp_path / "1", meta))
    (whole,) = saved_model.signatures

    model = OpenModel(None, recorded=pool_of(saved_model, whole, file).rows)  # type: ignore[arg-type]
    assert [tensor.array.tolist() for tensor in model.sample(whole, 1, RECORDED)] == [5.0, [0.0, 1.0]]
    wanted = Wanted(file, (), (8,), ())
    load = load_of(whole, find_pools(tmp_path / "1", saved_model, wanted), wanted)
    assert load is not None
    (request,) = load.checked
    assert [tensor.array.tolist() for tensor in request] == [5.0, [0.0, 1.0]]


# ---- how many ----------------------------------------------------------------------------


def test_signatures_take_turns_and_a_version_has_no_more_than_it_may(version: Path) -> None:
    saved_model = read(version)

    def names(*counts: int) -> list[str]:
        samples = {
            name: Samples((), requests(count))
            for name, count in zip(("clicks", "serving_default"), counts, strict=True)
        }
        written = write_warmup(version, saved_model, samples)
        found = [warmup.signature.name for warmup in read_requests(version, saved_model)]
        assert written == len(found)
        return found

    assert names(2, 3) == ["clicks", "serving_default"] * 2 + ["serving_default"]
    assert names(MAX_RECORDS, 3).count("clicks") == MAX_RECORDS - 3
    assert names(MAX_RECORDS, MAX_RECORDS).count("clicks") == MAX_RECORDS // 2
