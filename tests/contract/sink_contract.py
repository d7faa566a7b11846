"""What base.Sink promises, held for every shipped sink: a subclass makes one that sends to a local server, which answers as told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
from aiohttp import web

from headrace.cdc.event import CustomerEvent
from headrace.sinks.base import Item, Sink
from headrace.sinks.verdict import DELIVERED, Fault, FaultKind
from shop_log import heartbeat


def viewed(number: int) -> CustomerEvent:
    """An event that every sink of the contract wants."""
    at_us = 1_700_000_000_000_000 + number
    return CustomerEvent(
        f"web-event-{number}", "track", "Viewed", "u1", at_us, at_us, at_us, "web", str(number), b'{"item_id":"i1"}', None, "u1"
    )  # fmt: skip


class Case(msgspec.Struct):
    """answer: sets the server's status, 0 = it breaks the connection off. got: bodies that came."""

    sink: Sink
    got: list[bytes]
    answer: Callable[[int], None]

    def items(self) -> list[Item]:
        """As many as one request takes."""
        made = [self.sink.prepare(viewed(number), number, "u1") for number in range(8)]
        items = [item for item in made if item is not None]
        assert len(items) == 8, "the sink wants all of these"
        spec = next(call for call in self.sink.calls if call.name == items[0].call)
        return items[: spec.max_events]


class SinkContract:
    def make(self, url: str) -> Sink:
        """A sink whose secrets are all ``secret``, and whose destination is below that URL."""
        raise NotImplementedError

    @pytest.fixture
    async def case(self) -> AsyncIterator[Case]:
        status = 200
        got: list[bytes] = []

        async def answer(request: web.Request) -> web.Response:
            got.append(await request.read())
            if status == 0:
                assert request.transport is not None
                request.transport.abort()
            return web.json_response({}, status=status or 200)

        def set_status(to: int) -> None:
            nonlocal status
            status = to

        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        sink = self.make(f"http://127.0.0.1:{runner.addresses[0][1]}")
        await sink.open()
        yield Case(sink, got, set_status)
        await sink.close()
        await runner.cleanup()

    async def test_prepare_is_pure_and_leaves_out_what_is_not_for_it(self, case: Case) -> None:
        assert case.items() == case.items()
        assert case.sink.prepare(heartbeat(1), 0, "k") is None
        names = [call.name for call in case.sink.calls]
        assert len(set(names)) == len(names) and "" not in names, "the empty name is that of dead letters"
        for item in case.items():
            assert item.call in names and item.size > 0 and (item.attempts, item.fault) == (0, "")

    async def test_each_event_gets_its_verdict_and_its_id_is_known_to_the_destination(self, case: Case) -> None:
        items = case.items()
        assert await case.sink.send(items[0].call, items) == [DELIVERED] * len(items)
        for item in items:
            assert item.event.id.encode() in case.got[-1], "a repeated request must be known by its ids"

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (503, FaultKind.OUTAGE),
            (429, FaultKind.THROTTLED),
            (401, FaultKind.DENIED),
            (413, FaultKind.TOO_LARGE),
            (400, FaultKind.BAD_BATCH),
            (0, FaultKind.OUTAGE),
        ],
    )
    async def test_trouble_is_a_fault_and_never_an_exception(self, case: Case, status: int, kind: FaultKind) -> None:
        case.answer(status)
        items = case.items()
        answer = await case.sink.send(items[0].call, items)
        assert isinstance(answer, Fault) and answer.kind is kind, answer
        assert "127.0.0.1" in answer.reason and "secret" not in answer.reason

    async def test_it_closes_twice_and_opens_again(self, case: Case) -> None:
        await case.sink.close()
        await case.sink.close()
        await case.sink.open()
        items = case.items()
        assert not isinstance(await case.sink.send(items[0].call, items), Fault)

    async def test_check_says_something_and_sends_no_event(self, case: Case) -> None:
        findings = await case.sink.check()
        assert findings and all(finding.message for finding in findings)
        assert case.got and not any(b"web-event" in body for body in case.got)
