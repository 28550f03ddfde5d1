"""`fastserve export`: a model from its source to a version directory that a server can load.

Read, traced, written beside its later place, run there by a process like the one that will serve it, compared
with the source's own predictions, and only then given its number. Called by cli_export, in a process of its
own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastserve.offline.records import REQUESTS_FILE
from fastserve.offline.tensors import Tensor
from fastserve.savedmodel import SavedModel, Signature, read
from fastserve.workshop.endpoint import Source, first_line
from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.export_answers import ask
from fastserve.workshop.export_compare import Difference, compare
from fastserve.workshop.export_samples import Inputs, Samples, made_up, of_file, record, rows_of
from fastserve.workshop.export_source import SourceOptions, read_source
from fastserve.workshop.export_warmup import write_warmup
from fastserve.workshop.export_write import Traced, save, trace
from fastserve.workshop.renames import Renames, chosen_signatures
from fastserve.workshop.runs import RunFailed, run_requests
from fastserve.workshop.version_directory import new_version

STEPS = 6
_DEFAULT_SIGNATURE = "serving_default"
# Requests are compared so many at a time that they and the source's answers take about this.
_PIECE_BYTES = 64 << 20


@dataclass(frozen=True)
class Wanted:
    """The command's arguments. Names are as on the command line: [OLD=]NEW of signatures, OLD=NEW of
    others."""

    source: str
    base_path: Path
    options: SourceOptions = field(default_factory=SourceOptions)
    version: int | None = None
    signatures: Sequence[str] = ()
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    samples: Path | None = None
    batch_sizes: Sequence[int] = (1, 3, 32)
    tolerance: float = 1e-5
    compare: bool = True
    warmup: bool = True
    allow_fixed_batch: bool = False


@dataclass(frozen=True)
class Exported:
    """`saved_model.path` is the version's. `rows`: the sizes of what was compared. `relaxed`: signatures
    whose source insists on so many rows, and that now take any number."""

    what: str
    version: int
    saved_model: SavedModel
    rows: tuple[int, ...]
    difference: Difference | None
    warmup_requests: int
    relaxed: dict[str, int]


def export(wanted: Wanted, step: Callable[[str], None]) -> Exported:
    """`step` is told what begins. FastServeError, and then there is no new version; so with
    KeyboardInterrupt."""
    step(f"reading {wanted.source}")
    source = read_source(wanted.source, wanted.options)
    with new_version(wanted.base_path, wanted.version) as making:
        step("tracing")
        traced = _trace(wanted, source)
        step("writing")
        save(wanted.source, traced, making.path)
        _copy_extras(source, making.path)
        saved_model = read(making.path)
        step("asking the source for its predictions")
        samples = {one.name: _samples(wanted, one, saved_model) for one in traced}
        step("running the export")
        difference, sizes = _compare(wanted, traced, saved_model, samples)
        warmup = write_warmup(making.path, saved_model, samples) if wanted.warmup else 0
        step("giving it its number")
    assert making.version is not None
    return Exported(
        what=source.what,
        version=making.version,
        saved_model=replace(saved_model, path=str(wanted.base_path / str(making.version))),
        rows=tuple(sorted(sizes)),
        difference=difference if wanted.compare else None,
        warmup_requests=warmup,
        relaxed={one.name: one.chunk for one in traced if one.chunk is not None},
    )


def _trace(wanted: Wanted, source: Source) -> list[Traced]:
    by_name = {endpoint.name: endpoint for endpoint in source.endpoints}
    inputs, outputs = Renames("--input", wanted.inputs, arguments=True), Renames("--output", wanted.outputs)
    chosen = chosen_signatures(wanted.signatures, list(by_name), named=source.named)
    traced = [
        trace(wanted.source, new, by_name[old], inputs, outputs, allow_fixed=wanted.allow_fixed_batch)
        for new, old in chosen.items()
    ]
    inputs.check_used()
    outputs.check_used()
    return traced


def _copy_extras(source: Source, path: Path) -> None:
    """What else a SavedModel brings along, save for its warm-up requests, whose names may be others now."""
    folder = REQUESTS_FILE.parent
    if source.path is not None and (source.path / folder).is_dir():
        shutil.copytree(source.path / folder, path / folder, ignore=lambda *_: {REQUESTS_FILE.name})


# ---- the source and the export side by side ------------------------------------------------------


def _samples(wanted: Wanted, traced: Traced, saved_model: SavedModel) -> Samples:
    signature = _signature(saved_model, traced)
    if wanted.samples is not None and traced.name == _sampled(wanted, saved_model):
        return of_file(wanted.samples, signature, wanted.batch_sizes)
    return made_up(
        wanted.source, signature, wanted.batch_sizes, lambda inputs: ask(traced, signature, inputs)
    )


def _sampled(wanted: Wanted, saved_model: SavedModel) -> str:
    """Which signature the rows are for: the only one, or serving_default."""
    names = [signature.name for signature in saved_model.signatures if signature.inputs]
    if len(names) == 1:
        return names[0]
    if _DEFAULT_SIGNATURE in names:
        return _DEFAULT_SIGNATURE
    raise WorkshopError(
        f"--samples {wanted.samples}: for which signature? They are taken for serving_default, and there are "
        f"{', '.join(names)}; choose one with --signature"
    )


def _signature(saved_model: SavedModel, traced: Traced) -> Signature:
    signature = saved_model.signature(traced.name)
    assert signature is not None
    return signature


@dataclass(frozen=True)
class _Asked:
    """A request, and what the source answers."""

    traced: Traced
    signature: Signature
    inputs: Inputs
    record: bytes
    expected: dict[str, Tensor]

    @property
    def rows(self) -> int:
        return rows_of(self.signature, self.inputs)

    @property
    def held_bytes(self) -> int:
        return len(self.record) + sum(tensor.array.nbytes for tensor in self.expected.values())


def _compare(
    wanted: Wanted, traced: Sequence[Traced], saved_model: SavedModel, samples: dict[str, Samples]
) -> tuple[Difference, set[int]]:
    """How far the answers lie apart, and at how many rows they were compared. WorkshopError: too far, or the
    export does not run."""
    largest, sizes = Difference(), set()
    asked = (
        _asked(wanted, one, _signature(saved_model, one), inputs)
        for one in traced
        for inputs in samples[one.name].compared
    )
    for piece in _pieces(asked):
        largest = largest.or_larger(_compare_piece(wanted, Path(saved_model.path), piece))
        sizes |= {one.rows for one in piece}
    return largest, sizes


def _asked(wanted: Wanted, traced: Traced, signature: Signature, inputs: Inputs) -> _Asked:
    try:
        expected = ask(traced, signature, inputs)
    except Exception as error:
        sizes = "--batch-size of what it takes, or " if signature.any_rows else ""
        other = "rows that it takes" if wanted.samples is None else "others"
        raise WorkshopError(
            f"{wanted.source}: signature {traced.name!r}: the source itself fails at "
            f"{rows_of(signature, inputs)} rows: {first_line(error)}; give {sizes}{other} with --samples"
        ) from error
    return _Asked(traced, signature, inputs, record(signature, inputs), expected)


def _pieces(asked: Iterable[_Asked]) -> Iterator[list[_Asked]]:
    """Some at a time: not all answers of both sides are to be in memory together."""
    piece: list[_Asked] = []
    held = 0
    for one in asked:
        piece.append(one)
        held += one.held_bytes
        if held >= _PIECE_BYTES:
            yield piece
            piece, held = [], 0
    if piece:
        yield piece


def _compare_piece(wanted: Wanted, path: Path, piece: Sequence[_Asked]) -> Difference:
    try:
        answers = run_requests(path, [one.record for one in piece], wanted.options.op_libraries)
    except RunFailed as failed:
        one = piece[failed.request]
        raise WorkshopError(_why_it_fails(wanted, one.traced, one.rows, failed)) from failed
    largest = Difference()
    for one, answer in zip(piece, answers, strict=True):
        if not wanted.compare:
            continue
        found, wrong = compare(one.expected, answer, wanted.tolerance)
        largest = largest.or_larger(found)
        if wrong is not None:
            raise WorkshopError(_why_it_differs(wanted, one, wrong))
    return largest


# ---- what went wrong, and what to do -------------------------------------------------------------


def _why_it_fails(wanted: Wanted, traced: Traced, rows: int, failed: RunFailed) -> str:
    text = f"{failed.code}: {failed.message.strip()}"[:1000]
    if failed.stage == "library":
        return f"--op-library: {text}"
    if failed.stage == "open":
        remedy = ""
        if "not registered" in failed.message:
            remedy = (
                "; give the library of ops that it needs with --op-library PATH.so, and to the daemon as "
                "[tensorflow] op_libraries"
            )
        return f"{wanted.source}: TensorFlow cannot load what was exported: {text}{remedy}"
    start = (
        f"{wanted.source}: signature {traced.name!r} fails at {rows} rows where the source does not: {text}"
    )
    if "initialized" in failed.message:
        return (
            f"{start}; a table or a variable is not initialized when the model is loaded: make it an "
            "attribute of the model, with its initializer"
        )
    if traced.chunk is not None:
        return f"{start}; {_fixed_inside(traced)}"
    return start


def _why_it_differs(wanted: Wanted, asked: _Asked, wrong: str) -> str:
    traced = asked.traced
    start = f"{wanted.source}: signature {traced.name!r}"
    again = ask(traced, asked.signature, asked.inputs)
    _, varies = compare(asked.expected, again, wanted.tolerance)
    if varies is not None:
        return (
            f"{start}: the source's own predictions vary from call to call ({varies}): it draws random "
            "numbers when it predicts, or keeps a state; --no-compare exports it all the same"
        )
    found = f"{start}: at {asked.rows} rows the export does not answer as the source does: {wrong}"
    if traced.chunk is not None:
        return f"{found}; {_fixed_inside(traced)}"
    return f"{found}; if that is near enough, give --tolerance (now {wanted.tolerance:g})"


def _fixed_inside(traced: Traced) -> str:
    return (
        f"the source has a fixed batch of {traced.chunk}, which is built into it: build it without a batch "
        "size, or give --allow-fixed-batch to have it as it is"
    )
