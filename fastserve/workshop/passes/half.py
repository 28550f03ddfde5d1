"""bfloat16, float16: products with large matrices are computed in half the bytes.

Only where it is asked for, the processor is faster at it, and the model's answers stay within the tolerance,
which measuring decides: of the rows that are run. Others may be further off, and above 65,504 float16 has no
numbers. Matrices are converted now; what comes in and goes out stays float32.
"""

from __future__ import annotations

from collections.abc import Callable

from fastserve.workshop.optimizing.graph import Graph, dtype_of
from fastserve.workshop.passes.base import Options, Pass
from fastserve.workshop.passes.tables import new_table, table_of, value_of

_FLOAT = dtype_of(1)
# Below, converting costs more than the product.
_AT_LEAST = 64 * 64


def _converted(dtype: int) -> Callable[[Graph, Options], int]:
    def run(graph: Graph, options: Options) -> int:
        from tensorflow.python.framework import dtypes

        changes = 0
        for node in [n for n in graph.nodes.values() if n.op == "MatMul"]:
            table = table_of(graph, node.input[1])
            if table is None or table.dtype != 1 or any(t.startswith("^") for t in node.input):
                continue
            if len(table.shape) != 2 or table.rows * table.width < _AT_LEAST:
                continue
            value = value_of(graph, table).astype(dtypes.as_dtype(dtype).as_numpy_dtype)
            like = f"{node.name}/half"
            fresh = new_table(graph, options, value, dtype, like)
            matrix = fresh.constant or graph.variable(fresh.variable, f"{like}/read")
            kind = dtype_of(dtype)
            left = graph.add("Cast", [node.input[0]], f"{like}/in", SrcT=_FLOAT, DstT=kind, Truncate=False)
            product = graph.add(
                "MatMul",
                [left, matrix],
                f"{like}/product",
                T=kind,
                transpose_a=node.attr["transpose_a"].b,
                transpose_b=node.attr["transpose_b"].b,
            )
            back = graph.add("Cast", [product], f"{like}/out", SrcT=kind, DstT=_FLOAT, Truncate=False)
            graph.replace(node.name, back)
            changes += 1
        graph.prune()
        return changes

    return run


BFLOAT16 = Pass("bfloat16", "multiplies in bfloat16 (--half)", _converted(14), approximate=True)
FLOAT16 = Pass("float16", "multiplies in float16 (--half)", _converted(19), approximate=True)
