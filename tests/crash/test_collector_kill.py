"""kill -9 of ``headrace run`` while clients send calls of SDKs and signed webhooks: everything answered 200 is in the log, and every event is there once.

Clients do what SDKs do: send a body again, the same, until it is answered 200. The kills come at random moments of a process at work:
before an append, in it, between it and the answer, after. The seed is part of every message.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from headrace.cdc.config import load
from headrace.cdc.demo.embedded import free_port
from headrace.cdc.log.reader import open_reader

DEADLINE_S = 60.0
SECRET = "whsec-of-the-test"


class Served:
    """``headrace run`` with a collector in a process of its own, started again on the same port after each kill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.config = folder / "headrace.yaml"
        self.config.write_text(
            "log: {path: web.log.db}\n"
            "sources:\n"
            "  web: {type: http, write_keys: {k: website}}\n"
            f'  crm: {{type: webhook, secrets: [{SECRET}], signature: {{header: X-Signature, over: "{{body}}"}}, each: batch,'
            " map: [{name: A, id: messageId, key: userId}]}\n"
            f'server: {{listen: "127.0.0.1:{self.port}"}}\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "run.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "import sys; from headrace.cdc.cli import main; sys.exit(main())", "run"],
                cwd=self.folder, env={**os.environ, "PYTHONFAULTHANDLER": "1"}, stdout=log, stderr=log,
            )  # fmt: skip

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL, self.said()

    def terminate(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(20) == 0, self.said()

    def said(self) -> str:
        return (self.folder / "run.log").read_text(errors="replace")[-3000:]


class Client(threading.Thread):
    """Sends batches until told to stop, each until it is answered. answered: message ids of bodies that got a 200."""

    def __init__(self, port: int, name: str, stop: threading.Event, *, is_webhook: bool = False) -> None:
        super().__init__(name=name, daemon=True)
        self._is_webhook = is_webhook
        self._port = port
        self._stop_asked = stop
        self.answered: list[str] = []
        self.tries = self.bodies = 0
        self.refused: Counter[int] = Counter()

    def run(self) -> None:
        rng = random.Random(self.name)
        link: http.client.HTTPConnection | None = None
        number = 0
        while not self._stop_asked.is_set():
            ids = [f"{self.name}-{number + place}" for place in range(rng.choice((1, 1, 5, 40)))]
            number += len(ids)
            calls = [{"type": "track", "userId": one, "event": "A", "messageId": one} for one in ids]
            body = json.dumps({"batch": calls, "writeKey": "k"})
            self.bodies += 1
            while True:
                self.tries += 1
                try:
                    link = link or http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
                    if self._is_webhook:
                        signature = hmac.new(SECRET.encode(), body.encode(), hashlib.sha256).hexdigest()
                        link.request("POST", "/webhooks/crm", body, {"X-Signature": signature})
                    else:
                        link.request("POST", "/v1/batch", body)
                    answer = link.getresponse()
                    answer.read()
                except (OSError, http.client.HTTPException):
                    if link is not None:
                        link.close()
                    link = None
                    time.sleep(0.01)  # as an SDK pauses before it tries again; nothing tells when the process is back
                    continue
                if answer.status == 200:
                    self.answered += ids
                    break
                self.refused[answer.status] += 1
                time.sleep(0.01)
        if link is not None:
            link.close()


@pytest.mark.parametrize("seed", [1])
def test_kills_lose_and_double_nothing_that_was_sent(tmp_path: Path, seed: int) -> None:
    kill_and_judge(tmp_path, seed=seed, kills=6)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [11, 12])
def test_a_hundred_kills_lose_and_double_nothing_that_was_sent(tmp_path: Path, seed: int) -> None:
    kill_and_judge(tmp_path, seed=seed, kills=100)


def kill_and_judge(folder: Path, *, seed: int, kills: int) -> None:
    rng = random.Random(seed)
    served = Served(folder)
    stop = threading.Event()
    clients = [Client(served.port, f"{seed}-{number}", stop, is_webhook=number % 2 == 1) for number in range(4)]
    served.start()
    for client in clients:
        client.start()
    try:
        for number in range(kills):
            wait_for_answers(served, clients, f"seed {seed}, kill {number}")
            time.sleep(rng.uniform(0.0, 0.15))  # the moment of the kill is what is drawn
            served.kill()
            served.start()
        wait_for_answers(served, clients, f"seed {seed}: at the end")
    finally:
        stop.set()
        for client in clients:
            client.join(DEADLINE_S)
        served.terminate()
    assert sum(client.tries - client.bodies for client in clients) >= kills, "kills met requests"
    logged = asyncio.run(message_ids(served.config))
    answered = {one for client in clients for one in client.answered}
    doubled = [one for one, count in logged.items() if count > 1]
    assert not doubled, f"seed {seed}: {doubled[:5]} of {len(doubled)} are there twice"
    assert set(logged) == answered, f"seed {seed}: lost {sorted(answered - set(logged))[:5]}"
    assert not any(client.refused.keys() - {503} for client in clients)


def wait_for_answers(served: Served, clients: list[Client], what: str) -> None:
    before = [len(client.answered) for client in clients]
    end = time.monotonic() + DEADLINE_S
    while any(len(client.answered) <= old for client, old in zip(clients, before, strict=True)):
        assert served.process is not None and served.process.poll() is None, f"{what}\n{served.said()}"
        assert time.monotonic() < end, f"{what} took too long\n{served.said()}"
        time.sleep(0.005)  # a poll of other threads' lists


async def message_ids(config: Path) -> Counter[str]:
    reader = await open_reader(load(config))
    found: Counter[str] = Counter()
    try:
        offset = 0
        while True:
            batch = await reader.read(0, offset)
            if not batch.events:
                assert await reader.letters() == []
                return found
            # A client's user is its message.
            found.update(event.key or "" for event in batch.events)
            offset = batch.next_offset
    finally:
        await reader.close()
