"""The warm-up requests that an exported version brings along: its signatures' in turn, no more than a server
takes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path

from fastserve.offline.records import MAX_RECORDS, REQUESTS_FILE, read_requests
from fastserve.savedmodel import SavedModel
from fastserve.savedmodel.tfrecord import write_records
from fastserve.workshop.export_samples import Samples, record


def write_warmup(path: Path, saved_model: SavedModel, samples: Mapping[str, Samples]) -> int:
    """Writes them into the version's directory `path`; `samples` by signature. How many there are. OSError;
    FastServeError: the server would refuse one."""
    each = []
    for signature in saved_model.signatures:
        if signature.name in samples:
            one = samples[signature.name]
            each.append(map(partial(record, signature, made_up=one.made_up), one.warmup))
    in_turn = (log for logs in zip_longest(*each) for log in logs if log is not None)
    records = list(islice(in_turn, MAX_RECORDS))
    if records:
        file = path / REQUESTS_FILE
        file.parent.mkdir(exist_ok=True)
        with open(file, "wb") as opened:
            write_records(opened, records)
        read_requests(path, saved_model)
    return len(records)
