"""What a trial found out about one signature, and how the core and the report are told. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastserve.offline.tensors import Style
from fastserve.offline.xla import Findings
from fastserve.savedmodel import Signature


@dataclass
class Verdict:
    """`batched_why`, `compiled_why`: why not; empty when it is. `style`: how to make up samples that it
    accepts; None when none was found."""

    signature: Signature
    style: Style | None
    batched_why: str
    compiled: bool
    compiled_why: str
    findings: Findings
    buckets: list[int]

    @property
    def costs_us(self) -> dict[int, float]:
        return self.findings.compiled_us if self.compiled else self.findings.plain_us

    def servable(self) -> dict[str, Any]:
        """What the servable's signature has beyond servable_spec."""
        return {
            "batched": not self.batched_why,
            "why": self.batched_why,
            "compiled": self.compiled,
            "compiled_why": self.compiled_why,
            "buckets": self.buckets,
            "costs_us": {str(rows): round(cost, 1) for rows, cost in self.costs_us.items()},
        }

    def report(self) -> dict[str, Any]:
        """Its measurements, plain and compiled."""
        findings = self.findings
        return {
            "name": self.signature.name,
            "plain_us": {str(rows): round(cost, 1) for rows, cost in findings.plain_us.items()},
            "compiled_us": {str(rows): round(cost, 1) for rows, cost in findings.compiled_us.items()},
            "compile_s": {str(rows): seconds for rows, seconds in findings.compile_s.items()},
            "warm_s": {str(rows): seconds for rows, seconds in findings.warm_s.items()},
        }
