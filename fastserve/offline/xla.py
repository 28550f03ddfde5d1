"""What XLA makes of a signature: whether it compiles, answers as TensorFlow does, and is faster.

Two kinds of answer must agree with plain TensorFlow before a compiled signature is served: those for ordinary
rows, at every batch size, and those for ids out of range, which are an error in TensorFlow's own kernels and
silently a value of some other id under XLA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fastserve._native.runtime import RuntimeFailure, dtype_name
from fastserve.offline.model import OpenModel
from fastserve.offline.row_wise import first_line
from fastserve.offline.tensors import IDS, STRING, Style, Tensor, first_difference
from fastserve.savedmodel import Signature

# "auto" wants this much before it takes what is compiled: its semantics differ in corners, its memory grows.
_WORTH = 0.95

_EDGES = (-1, 2**31 - 1)


@dataclass
class Findings:
    """What is known about one signature. `why`: why it runs plain; empty when it may run compiled."""

    why: str
    # By batch size, in microseconds.
    plain_us: dict[int, float] = field(default_factory=dict)
    compiled_us: dict[int, float] = field(default_factory=dict)
    compile_s: dict[int, float] = field(default_factory=dict)
    # The first plain run, which builds what later ones go by.
    warm_s: dict[int, float] = field(default_factory=dict)


def why_not_compilable(signature: Signature, batched_why: str) -> str:
    """Empty when compiling `signature` for a list of batch sizes makes sense, else the reason."""
    for kind, ports in (("input", signature.inputs), ("output", signature.outputs)):
        for port in ports:
            if port.dtype == STRING:
                return f"{kind} '{port.alias}' is of strings, which XLA does not know"
    if batched_why:
        return f"only signatures that are batched are compiled, and this one is not: {batched_why}"
    for port in signature.inputs:
        if any(dim < 0 for dim in (port.dims or ())[1:]):
            return (
                f"input '{port.alias}' has the shape {port.shape}: with an unknown dimension after the "
                "first, every new shape would be compiled while a request waits"
            )
    return ""


def examine(
    model: OpenModel,
    signature: Signature,
    style: Style,
    buckets: Sequence[int],
    on_bucket: Callable[[int], None],
    clock: Callable[[], float],
) -> Findings:
    """Compiles every bucket, compares its answers and measures both variants."""
    findings = Findings(why="")
    names = [port.alias for port in signature.outputs]
    for bucket in buckets:
        on_bucket(bucket)
        inputs = model.sample(signature, bucket, style)
        begin = clock()
        try:
            plain = model.run(signature, inputs)
        except RuntimeFailure as error:
            findings.why = f"a plain run of {bucket} rows failed: {first_line(error.message)}"
            return findings
        findings.warm_s[bucket] = round(clock() - begin, 4)
        begin = clock()
        try:
            compiled = model.run(signature, inputs, compiled=True)
        except RuntimeFailure as error:
            findings.why = f"XLA cannot compile it: {first_line(error.message)}"
            return findings
        findings.compile_s[bucket] = round(clock() - begin, 4)
        how = first_difference(names, plain, compiled)
        if how is None and bucket == buckets[0]:
            how = _edge_difference(model, signature, names, inputs)
        if how is not None:
            findings.why = f"answers differ under XLA: {how}"
            return findings
        plain_us, compiled_us = model.cost_us(signature, inputs, (False, True))
        findings.plain_us[bucket] = plain_us
        findings.compiled_us[bucket] = compiled_us
    return findings


def _edge_difference(
    model: OpenModel, signature: Signature, names: Sequence[str], inputs: Sequence[Tensor]
) -> str | None:
    """How the answers differ when one id of one input is far out of range; None when they do not."""
    for position, port in enumerate(signature.inputs):
        if port.dtype not in IDS or not inputs[position].array.size:
            continue
        for edge in _EDGES:
            changed = inputs[position].array.copy()
            changed.flat[0] = np.array(edge, changed.dtype)
            edged = [*inputs]
            edged[position] = Tensor(port.dtype, changed)
            how = _outcome_difference(model, signature, names, edged)
            if how is not None:
                return f"with {edge} in input '{port.alias}' ({dtype_name(port.dtype)}), {how}"
    return None


def _outcome_difference(
    model: OpenModel, signature: Signature, names: Sequence[str], inputs: Sequence[Tensor]
) -> str | None:
    outcomes: list[list[Tensor] | str] = []
    for compiled in (False, True):
        try:
            outcomes.append(model.run(signature, inputs, compiled=compiled))
        except RuntimeFailure as error:
            outcomes.append(first_line(error.message, 120))
    plain, compiled_outcome = outcomes
    if isinstance(plain, str) and isinstance(compiled_outcome, str):
        return None
    if isinstance(plain, str):
        return f"plain TensorFlow fails ({plain}) and XLA gives a value"
    if isinstance(compiled_outcome, str):
        return f"XLA fails ({compiled_outcome}) and plain TensorFlow gives a value"
    return first_difference(names, plain, compiled_outcome)


def compiled_pays(findings: Findings) -> bool:
    """Whether compiled runs are the faster ones over all batch sizes, each counting the same.

    A plain batch is not padded: it is charged for the mean of its own bucket and the one below.
    """
    ratios = []
    below = None
    for bucket, compiled_us in sorted(findings.compiled_us.items()):
        own = findings.plain_us[bucket]
        plain_us = own if below is None else (own + findings.plain_us[below]) / 2
        ratios.append(math.log(compiled_us / plain_us))
        below = bucket
    return bool(ratios) and math.exp(sum(ratios) / len(ratios)) < _WORTH
