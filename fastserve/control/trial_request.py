"""What a trial is asked to try. The JSON that trial_runner writes, checked. Values only."""

from __future__ import annotations

from typing import Literal

import msgspec

from fastserve.config import Batching, LiteRT, TensorFlow
from fastserve.savedmodel import Signature


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One version of a model, with the settings of [[models]] that a trial needs."""

    name: str
    version: int
    path: str
    tags: tuple[str, ...] = ("serve",)
    xla: Literal["off", "cluster", "full", "auto"] = "off"
    # What xla = "auto" chose for an earlier version, as report["xla_choice"] gave it.
    previous_choice: str | None = None
    row_wise: Literal["probe"] | bool = "probe"
    unknown_shapes: Literal["plain", "refuse"] = "plain"
    weight: float = 1.0
    reserved_executors: int = 0
    # What opens `path`: "tensorflow", "litert", or a plug-in's library by its path.
    runtime: str = "tensorflow"
    runtime_library: str = ""
    tflite_aliases: Literal["signatures", "tensors"] = "signatures"
    # What the version offers, where its loader says so; None: the model is read, which says so itself.
    signatures: tuple[Signature, ...] | None = None


class TrialRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: ModelRequest
    batching: Batching = Batching()
    tensorflow: TensorFlow = TensorFlow()
    litert: LiteRT = LiteRT()
    # Where a rewritten model may be put.
    prepared_dir: str
    # Whether the requests that the version brings along are run.
    warmup_records: bool = True
    # Whether the trial takes breaks while it gives way.
    breaks: bool = False
    # The directory of the compile cache that this process has been given; empty: none.
    xla_cache: str = ""

    @property
    def buckets(self) -> list[int]:
        """The batch sizes that a batch is padded to: as configured, or powers of two up to the largest."""
        largest = self.batching.largest_batch
        if self.batching.allowed_batch_sizes:
            return sorted(self.batching.allowed_batch_sizes)
        powers = [1 << shift for shift in range(largest.bit_length()) if 1 << shift < largest]
        return [*powers, largest]
