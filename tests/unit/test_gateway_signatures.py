"""What the gateway remembers of signatures: for how long, for whom, and that many ask once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fastserve.client.errors import NotFound
from fastserve.client.messages import ModelMetadata, ModelVersion
from fastserve.gateway.paths import Place
from fastserve.gateway.signatures import Signatures

PLACE = Place("m", None, None, "predict")


class FakeClient:
    """Its metadata method alone. Answers when `go` is set."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.version = 1
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None

    async def metadata(self, model: str, *, version: Any, label: Any, timeout: float, metadata: Any) -> Any:  # noqa: ASYNC109
        self.asked.append((model, version, label, metadata))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return ModelMetadata(ModelVersion(model, self.version, ""), {})


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.client = FakeClient()
        self.signatures = Signatures(self.client, 1.0, lambda: self.now)  # type: ignore[arg-type]


@pytest.fixture
async def world() -> World:
    return World()


async def test_they_are_known_for_a_second(world: World) -> None:
    first = await world.signatures.get(PLACE, [])
    world.now += 0.9
    assert await world.signatures.get(PLACE, []) is first
    world.now += 0.2
    assert await world.signatures.get(PLACE, []) is not first
    assert len(world.client.asked) == 2


async def test_what_one_may_know_is_not_told_another(world: World) -> None:
    mine, other = [("authorization", "Bearer a")], [("authorization", "Bearer b")]
    await world.signatures.get(PLACE, mine)
    world.client.error = NotFound("NOT_FOUND", "no")
    assert (await world.signatures.get(PLACE, mine)).version == 1
    for asking in (other, []):
        with pytest.raises(NotFound):
            await world.signatures.get(PLACE, asking)
    assert [asked[3] for asked in world.client.asked] == [mine, other, []]


async def test_places_are_told_apart(world: World) -> None:
    for place in (PLACE, Place("m", 1, None, ""), Place("m", None, "x", ""), Place("n", None, None, "")):
        await world.signatures.get(place, [])
    assert len(world.client.asked) == 4
    await world.signatures.get(Place("m", 1, None, "classify"), [])
    assert len(world.client.asked) == 4


async def test_many_ask_once(world: World) -> None:
    world.client.go.clear()
    waiting = [asyncio.create_task(world.signatures.get(PLACE, [])) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    world.client.go.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert all(one is found[1] for one in found[1:]) and len(world.client.asked) == 1


async def test_failures_are_not_remembered(world: World) -> None:
    world.client.error = NotFound("NOT_FOUND", "no")
    for _ in range(2):
        with pytest.raises(NotFound):
            await world.signatures.get(PLACE, [])
    world.client.error = None
    assert (await world.signatures.get(PLACE, [])).version == 1


async def test_an_answer_of_another_version_ends_what_is_known(world: World) -> None:
    first = await world.signatures.get(PLACE, [])
    world.now += 0.2
    world.signatures.answered(PLACE, [], 1)
    assert await world.signatures.get(PLACE, []) is first
    world.signatures.answered(PLACE, [], 2)
    world.client.version = 2
    second = await world.signatures.get(PLACE, [])
    assert second.version == 2
    # A canary answers some: not every such answer asks again.
    world.signatures.answered(PLACE, [], 1)
    assert await world.signatures.get(PLACE, []) is second


async def test_again_asks_whatever_is_known(world: World) -> None:
    first = await world.signatures.get(PLACE, [])
    again = await world.signatures.again(PLACE, [])
    assert again is not first and await world.signatures.get(PLACE, []) is again


async def test_what_was_asked_again_a_moment_ago_will_do(world: World) -> None:
    await world.signatures.get(PLACE, [])
    again = await world.signatures.again(PLACE, [])
    world.now += 0.09
    assert await world.signatures.again(PLACE, []) is again
    world.now += 0.02
    assert await world.signatures.again(PLACE, []) is not again
    assert len(world.client.asked) == 3


async def test_memory_is_bounded(world: World) -> None:
    for number in range(2500):
        await world.signatures.get(Place(f"m{number}", None, None, ""), [])
    assert len(world.signatures._known) <= 1000
