import numpy as np

from fastserve._native.columns import Column

class Pool:
    threads: int
    def __init__(self, threads: int) -> None: ...

class Vocab:
    is_text: bool
    nbytes: int
    def __init__(self, terms: Column) -> None: ...
    def __len__(self) -> int: ...

class Step:
    name: str
    items_in: int
    @staticmethod
    def fingerprint(column: Column, out: np.ndarray) -> Step: ...
    @staticmethod
    def hash(
        column: Column, out: np.ndarray, buckets: int, key: tuple[int, int] | None, mask: bytes | None
    ) -> Step: ...
    @staticmethod
    def cross(columns: list[Column], out: np.ndarray, buckets: int, key: int) -> Step: ...
    @staticmethod
    def bucketize(column: Column, out: np.ndarray, boundaries: list[float]) -> Step: ...
    @staticmethod
    def lookup(
        column: Column,
        out: np.ndarray,
        vocab: Vocab,
        first_id: int,
        unknown: int | None,
        buckets: int,
        key: tuple[int, int] | None,
        mod: bool,
        mask: bytes | None,
    ) -> Step: ...
    @staticmethod
    def dense(
        columns: list[Column], out: np.ndarray, refine: list[tuple[float, float, float, bool]] | None
    ) -> Step: ...

def run(steps: list[Step], pool: Pool | None = None) -> tuple[int, int] | None: ...
