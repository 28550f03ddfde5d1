"""The calls of models that a route's worker makes for a request. On the worker's loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from fastserve.client import AsyncClient, Prediction
from fastserve.gateway.frames import Head
from fastserve.web import Call

T = TypeVar("T")


class Asking:
    """The calls of models that one request makes: with its credentials, its trace, and until its time is
    up."""

    def __init__(self, client: AsyncClient | None, settings: Head, head: Head) -> None:
        assert client is not None
        self._client = client
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + head["left_s"]
        # Who asks, the trace that it is part of, and what else the core looks at.
        self._metadata = [(name, value) for name, value in head["metadata"]]

    async def predict(self, call: Call) -> Prediction:
        version, label, signature = call.version, call.label, call.signature
        if call.model == self._settings["model"]:
            if version is None and label is None:
                version, label = self._settings["version"], self._settings["label"] or None
            signature = signature or self._settings["signature"] or None
        return await self._client.predict(
            call.model,
            call.inputs,
            version=version,
            label=label,
            signature=signature,
            outputs=call.outputs,
            timeout=max(0.001, self._until - self._loop.time()),
            metadata=self._metadata,
        )

    async def all(self, calls: list[Call]) -> list[Prediction]:
        """All at the same time; the first failure ends the others."""
        if len(calls) == 1:
            return [await self.predict(calls[0])]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self.predict(call), name="model-call") for call in calls]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]


async def result_of(returned: T | Awaitable[T]) -> T:
    """What a hook returned, whether it was async or not."""
    if inspect.isawaitable(returned):
        return await returned
    return returned


def rows_of(inputs: Mapping[str, Any]) -> int:
    """The first dimension of the first input; 1 for what has none."""
    for value in inputs.values():
        shape = getattr(value, "shape", None)
        if shape is not None:
            return int(shape[0]) if len(shape) else 1
        return len(value) if isinstance(value, (list, tuple)) else 1
    return 0
