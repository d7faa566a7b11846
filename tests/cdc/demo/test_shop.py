"""The demo's visitor: what it counted was sent, or the proof would find a difference that isn't headrace's."""

from __future__ import annotations

import threading

from headrace.cdc.demo.shop import Shop, Visitor
from hook_server import hook_server


def test_a_stopped_visitor_has_sent_every_view_it_counted() -> None:
    at_the_door, opened = threading.Event(), threading.Event()
    with hook_server() as hook:

        def answer(body: object) -> int:
            at_the_door.set()
            opened.wait(30)
            return 200

        hook.answer = answer
        visitor = Visitor(hook.url, Shop("", customers=10), rate=2_000, seed=1, recommended=lambda customer: None)
        visitor.start()
        assert at_the_door.wait(30)
        while (
            sum(visitor.counts.values()) < 300
        ):  # several requests' worth queues up behind the one that isn't answered
            pass
        stopping = threading.Thread(target=visitor.stop)
        stopping.start()
        while not visitor._stopping.is_set():  # pyright: ignore[reportPrivateUsage]  # the moment between asking and answering
            pass
        opened.set()
        stopping.join(30)
        assert not stopping.is_alive()
        assert sum(len(body["batch"]) for body in hook.got) == sum(visitor.counts.values()) > 1
