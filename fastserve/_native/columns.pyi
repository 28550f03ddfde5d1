from typing import Any

from fastserve.errors import FastServeError

class ColumnError(FastServeError, ValueError): ...

class Column:
    def __init__(self, values: Any, name: str) -> None: ...
    def __len__(self) -> int: ...
    name: str
    ndim: int
    width: int
    int_bytes: int
    is_text: bool
    is_real: bool
    def exceeds_int64(self) -> bool: ...
