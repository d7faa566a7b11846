"""A stub server made from a definition, and the contract that every definition must keep against it.

The stub only knows what the definition says; that the definition is right about the service is held by a hand-made example beside it
(test_http.py): an event, and the request that the service's public reference asks for.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from aiohttp import web

from headrace.cdc.event import CustomerEvent
from headrace.sinks.http import HttpSink
from headrace.sinks.httpdefinition import Destination, ItemsConfig
from headrace.sinks.verdict import Fault, FaultKind, Outcome

Reply = tuple[int, dict[str, str], Any]


class HttpStub:
    """reply: what to answer, told the bodies of a request; by default 200. requests: what came."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.reply: Callable[[list[Any]], Reply] = lambda bodies: (200, {}, None)
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.bodies: list[list[Any]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append(
            (request.method, request.path_qs, {k.lower(): v for k, v in request.headers.items()}, body)
        )
        bodies = self._events(msgspec.json.decode(body)) if body else []
        self.bodies.append(bodies)
        status, headers, value = self.reply(bodies)
        return web.Response(status=status, headers=headers, body=msgspec.json.encode(value))

    def _events(self, tree: Any) -> list[Any]:
        around = self.destination.batch.body
        if around is None:
            return [tree] if self.destination.batch.max_events == 1 else tree
        place = next(name for name, value in around.items() if value == "{events}")
        assert {name: value for name, value in tree.items() if name != place} == {
            name: value for name, value in around.items() if name != place
        }
        return tree[place]


@contextlib.asynccontextmanager
async def http_stub(destination: Destination, **more: Any) -> AsyncIterator[tuple[HttpStub, HttpSink]]:
    """A stub, and a sink of the definition that is open and sends to it."""
    stub = HttpStub(destination)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", stub.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    path = destination.url.partition("://")[2].partition("/")[2]
    sink = HttpSink(msgspec.structs.replace(destination, url=f"{stub.url}/{path}"), **more)
    await sink.open()
    try:
        yield stub, sink
    finally:
        await sink.close()
        await runner.cleanup()


async def keeps_contract(destination: Destination, events: list[CustomerEvent]) -> None:
    """What the definition says is what happens. events: at least two that its actions want, of one action."""
    rules = destination.answer
    async with http_stub(destination) as (stub, sink):
        items = [item for n, event in enumerate(events) if (item := sink.prepare(event, n, str(n))) is not None]
        assert len(items) >= 2 and len({item.call for item in items}) == 1
        items = items[: destination.batch.max_events]
        call = items[0].call

        answer = await sink.send(call, items)
        assert not isinstance(answer, Fault) and all(verdict.outcome is Outcome.DELIVERED for verdict in answer)
        assert len(stub.bodies[-1]) == len(items), "every event is in the request, once"

        expected = {
            **dict.fromkeys(rules.retry, FaultKind.OUTAGE),
            **dict.fromkeys(rules.slow_down, FaultKind.THROTTLED),
            **dict.fromkeys(rules.denied, FaultKind.DENIED),
            **dict.fromkeys(rules.split, FaultKind.TOO_LARGE),
            **dict.fromkeys(rules.partly, FaultKind.BAD_BATCH),
            302: FaultKind.DENIED,
            418: FaultKind.BAD_BATCH,
        }
        for status, kind in expected.items():
            name = rules.retry_after[0] if rules.retry_after else "Retry-After"
            stub.reply = lambda bodies, status=status, name=name: (status, {name: "3"}, {"error": "no"})
            answer = await sink.send(call, items)
            assert isinstance(answer, Fault) and answer.kind is kind, f"{status}: {answer}"
            if kind in (FaultKind.OUTAGE, FaultKind.THROTTLED):
                assert answer.after_s == 3.0
            assert "127.0.0.1" in answer.reason, "the reason names the host"
        for status in rules.done:
            stub.reply = lambda bodies, status=status: (status, {}, None)
            answer = await sink.send(call, items)
            assert not isinstance(answer, Fault) and answer[0].outcome is Outcome.DELIVERED
        if rules.codes is not None:
            of_code = {
                **dict.fromkeys(rules.codes.retry, FaultKind.OUTAGE),
                **dict.fromkeys(rules.codes.slow_down, FaultKind.THROTTLED),
                **dict.fromkeys(rules.codes.denied, FaultKind.DENIED),
                **dict.fromkeys(rules.codes.split, FaultKind.TOO_LARGE),
            }
            for code, kind in of_code.items():
                for said in (_at_path(rules.codes.path, code), _at_path(rules.codes.path, [code])):
                    stub.reply = lambda bodies, said=said: (200, {}, said)
                    answer = await sink.send(call, items)
                    assert isinstance(answer, Fault) and answer.kind is kind, f"{code}: {answer}"
        if rules.items is not None:
            others = Outcome.AGAIN if rules.items.others == "again" else Outcome.DELIVERED
            for listed in _listed(rules.items, items[1].event.id):
                for status in rules.items.statuses:
                    stub.reply = lambda bodies, status=status, listed=listed: (status, {}, listed)
                    answer = await sink.send(call, items[:2])
                    assert not isinstance(answer, Fault)
                    first = Outcome.DELIVERED if 200 <= status < 300 else others
                    assert [verdict.outcome for verdict in answer] == [first, Outcome.REFUSED], status


def _listed(items: ItemsConfig, event_id: str) -> list[Any]:
    """Answers that refuse the second of two events: one for each place where the definition looks."""
    if items.places:
        return [_at_path(path.replace("*", "some_field"), [1]) for path in items.places]
    entry: dict[str, Any] = {items.index: 1} if items.index else {}
    if items.id:
        entry[items.id] = event_id
    if items.code:
        entry[items.code] = 422
    if items.reason:
        first, _, rest = items.reason.partition(".")
        entry[first] = _at_path(rest, "it is wrong")
    return [_at_path(items.path, [entry] if items.index or items.id else [{items.code: 200}, entry])]


def _at_path(path: str, value: Any) -> Any:
    for key in reversed(path.split(".") if path else []):
        value = {key: value}
    return value
