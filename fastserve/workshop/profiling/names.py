"""Names of nodes and ops as the model's author knows them. Pure.

TensorFlow puts functions into the graph that calls them, and names what comes of it by the call; behind that
stands the path of layers and name scopes, or in a plain tf.function a name like MatMul_2, which says
something only with the function's own. Where the processor suits oneDNN, TensorFlow puts its ops in the
place of many, under names of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_CALLS = re.compile(r"^(?:(?:Stateful)?PartitionedCall(?:_\d+)?/)+")
_FUNCTION = re.compile(r"^__(?:inference|forward|backward)_(.+?)(?:_\d+)*$")
# Functions that tf.saved_model.save and Keras put around the author's.
_WRAPPERS = re.compile(
    r"signature_wrapper|wrapped_model|serving_fn|call_fn|restored_function_body|lambda|<lambda>"
)

_ONEDNN = re.compile(r"^_Mkl(?:Native)?(Fused)?")


def op_type(op: str) -> str:
    """ "MatMul" of "_MklMatMul", "_FusedMatMul" of "_MklFusedMatMul"; others are as they are."""
    return _ONEDNN.sub(lambda found: "_Fused" if found[1] else "", op)


def readable(node: str, functions: Iterable[str] = ()) -> str:
    """`functions`: those that the node was in before they were inlined, the innermost last."""
    path = _CALLS.sub("", node)
    if "/" in path:
        return path
    inside = [name for name in map(function_name, functions) if name]
    return f"{path} in {inside[-1]}()" if inside else path


def function_name(name: str) -> str:
    """ "score" of "__inference_score_1234"; empty for what the author has not written."""
    found = _FUNCTION.match(name)
    short = found[1] if found else name
    return "" if _WRAPPERS.search(short) else short
