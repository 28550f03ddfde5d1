"""Tables that rows are looked up in: constants and read-only variables, and nodes that look up.

Shared by the passes that replace other things by lookups and by the one that merges lookups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastserve.workshop.optimizing.graph import Graph, dtype_of, split
from fastserve.workshop.passes.base import Options

INT32, INT64 = dtype_of(3), dtype_of(9)
FLOATS = (1, 2, 14, 19)


@dataclass(frozen=True, slots=True)
class Table:
    """`constant` or `variable` says by name where it is."""

    dtype: int
    shape: tuple[int, ...]
    constant: str = ""
    variable: str = ""

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return int(np.prod(self.shape[1:], dtype=np.int64))

    @property
    def key(self) -> str:
        return self.constant or self.variable


@dataclass(frozen=True, slots=True)
class Lookup:
    """A node that gives rows of `table` for `ids`."""

    node: Any
    table: Table
    ids: str


def table_of(graph: Graph, tensor: str) -> Table | None:
    """The table whose value `tensor` is."""
    constant = graph.made_by(tensor, "Const")
    if constant is not None:
        shape = tuple(dim.size for dim in constant.attr["value"].tensor.tensor_shape.dim)
        return Table(constant.attr["dtype"].type, shape, constant=constant.name) if shape else None
    read = graph.made_by(tensor, "ReadVariableOp")
    return None if read is None or len(read.input) > 1 else handle_table(graph, read.input[0])


def handle_table(graph: Graph, handle: str) -> Table | None:
    """The table that a variable's handle is of, if nothing changes it."""
    node = graph.producer(graph.source(handle))
    if node.op != "VarHandleOp" or node.name in graph.written():
        return None
    variable = graph.variables[node.name]
    return Table(variable.dtype, variable.shape, variable=node.name) if variable.shape else None


def value_of(graph: Graph, table: Table) -> npt.NDArray[Any]:
    value = graph.value(table.constant) if table.constant else graph.variables.value(table.variable)
    assert value is not None
    return value


def lookup_of(graph: Graph, tensor: str) -> Lookup | None:
    """The lookup that gives `tensor`."""
    name, place = split(graph.source(tensor))
    node = graph.nodes[name]
    if place or any(t.startswith("^") for t in node.input):
        return None
    if node.op == "ResourceGather" and node.attr["batch_dims"].i == 0:
        table = handle_table(graph, node.input[0])
    elif node.op == "GatherV2" and node.attr["batch_dims"].i == 0 and graph.scalar(node.input[2]) == 0:
        table = table_of(graph, node.input[0])
    else:
        return None
    return None if table is None else Lookup(node, table, node.input[1])


def new_table(graph: Graph, options: Options, value: npt.NDArray[Any], dtype: int, like: str) -> Table:
    """A constant where it is small, else a variable."""
    value = np.ascontiguousarray(value)
    if value.nbytes <= options.freeze_bytes:
        return Table(dtype, value.shape, constant=graph.constant(value, f"{like}/table", dtype))
    name = graph.name(f"{like}/table")
    while name in graph.variables:
        name = graph.name(f"{like}/table")
    return Table(dtype, value.shape, variable=graph.variables.add(name, value, dtype))


def gather(graph: Graph, table: Table, ids: str, like: str) -> str:
    params = table.constant or graph.variable(table.variable, f"{like}/read")
    axis = graph.constant(np.int32(0), f"{like}/axis")
    return graph.add(
        "GatherV2",
        [params, ids, axis],
        f"{like}/lookup",
        Tparams=dtype_of(table.dtype),
        Tindices=dtype_of(graph.dtype(ids)),
        Taxis=INT32,
        batch_dims=0,
    )


def number(graph: Graph, value: int, dtype: int, like: str) -> str:
    """A constant of an integer type."""
    from tensorflow.python.framework import dtypes

    return graph.constant(np.array(value, dtypes.as_dtype(dtype).as_numpy_dtype), like, dtype)


def binary(graph: Graph, op: str, a: str, b: str, like: str) -> str:
    return graph.add(op, [a, b], like, T=dtype_of(graph.dtype(a)))


def add_up(graph: Graph, tensors: list[str], like: str) -> str:
    """The sum of tensors of one shape. That they are is checked: nothing is repeated."""
    if len(tensors) == 1:
        return tensors[0]
    return graph.add("AddN", tensors, f"{like}/add", N=len(tensors), T=dtype_of(graph.dtype(tensors[0])))


def select(graph: Graph, condition: str, then: str, otherwise: str, like: str) -> str:
    return graph.add("SelectV2", [condition, then, otherwise], like, T=dtype_of(graph.dtype(then)))


def reshape(graph: Graph, tensor: str, shape: list[int], like: str) -> str:
    sizes = graph.constant(np.array(shape, np.int32), f"{like}/shape")
    return graph.add(
        "Reshape", [tensor, sizes], f"{like}/reshaped", T=dtype_of(graph.dtype(tensor)), Tshape=INT32
    )


def total(graph: Graph, tensor: str, axis: int, like: str) -> str:
    axes = graph.constant(np.array(axis, np.int32), f"{like}/axis")
    dtype = dtype_of(graph.dtype(tensor))
    return graph.add("Sum", [tensor, axes], f"{like}/sum", T=dtype, Tidx=INT32, keep_dims=False)


def concat(graph: Graph, tensors: list[str], axis: int, like: str) -> str:
    if len(tensors) == 1:
        return tensors[0]
    axes = graph.constant(np.array(axis, np.int32), f"{like}/axis")
    dtype = dtype_of(graph.dtype(tensors[0]))
    return graph.add("ConcatV2", [*tensors, axes], f"{like}/concat", N=len(tensors), T=dtype, Tidx=INT32)


def pack(graph: Graph, tensors: list[str], axis: int, like: str) -> str:
    dtype = dtype_of(graph.dtype(tensors[0]))
    return graph.add("Pack", tensors, f"{like}/pack", N=len(tensors), T=dtype, axis=axis)


def inside(graph: Graph, ids: str, rows: str, like: str) -> str:
    """Which of `ids` are rows of tables of so many: one number, or one for each column."""
    dtype = graph.dtype(ids)
    zero = number(graph, 0, dtype, f"{like}/zero")
    above = graph.add("GreaterEqual", [ids, zero], f"{like}/above", T=dtype_of(dtype))
    below = graph.add("Less", [ids, rows], f"{like}/below", T=dtype_of(dtype))
    return graph.add("LogicalAnd", [above, below], f"{like}/inside")


def both(graph: Graph, conditions: list[str], like: str) -> str | None:
    """All of the conditions; None when there are none."""
    made = None
    for condition in conditions:
        made = condition if made is None else graph.add("LogicalAnd", [made, condition], f"{like}/and")
    return made


def gather_rows(graph: Graph, tensor: str, rows: str, like: str) -> str:
    """Rows of a tensor that is no table."""
    axis = graph.constant(np.int32(0), f"{like}/axis")
    return graph.add(
        "GatherV2",
        [tensor, rows, axis],
        like,
        Tparams=dtype_of(graph.dtype(tensor)),
        Tindices=dtype_of(graph.dtype(rows)),
        Taxis=INT32,
        batch_dims=0,
    )
