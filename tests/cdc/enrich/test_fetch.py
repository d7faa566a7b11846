"""Answers of a service: cached, asked for once, given up in time; a failing one is left alone for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from headrace.cdc.enrich import fetch
from headrace.cdc.enrich.fetch import Fetcher


class Service:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.asked.append(self.path)
                if self.path.startswith("/slow"):
                    service.open.wait(20)
                status = 404 if self.path.startswith("/none") else 500 if self.path.startswith("/bad") else 200
                body = b"[" * 5 if self.path.startswith("/broken") else b'{"said": "%s"}' % self.path.encode()
                if self.path.startswith("/huge"):
                    body = b'"' + b"x" * (300 << 10) + b'"'
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.open.set()
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    made = Fetcher()
    yield made
    made.close()
    made.close()


def get(fetcher: Fetcher, url: str, *, timeout_s: float = 10.0, ttl_s: float = 60.0) -> Any:
    return fetcher.get(url, headers={}, service="s", timeout_s=timeout_s, ttl_s=ttl_s)


def test_an_answer_is_asked_for_once_and_kept_for_its_time(service: Service, fetcher: Fetcher) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: get(fetcher, f"{service.url}/a"), range(40)))
    assert found == [{"said": "/a"}] * 40
    assert get(fetcher, f"{service.url}/none") is None and get(fetcher, f"{service.url}/none") is None
    assert sorted(service.asked) == ["/a", "/none"]
    get(fetcher, f"{service.url}/b", ttl_s=0)
    get(fetcher, f"{service.url}/b", ttl_s=0)
    assert service.asked.count("/b") == 2


def test_a_late_answer_is_for_the_next_one(service: Service, fetcher: Fetcher) -> None:
    with pytest.raises(LookupError):
        get(fetcher, f"{service.url}/slow", timeout_s=0.01)
    service.open.set()
    assert get(fetcher, f"{service.url}/slow") == {"said": "/slow"}
    assert (service.asked, fetcher.late) == (["/slow"], 1)


def test_what_came_together_waits_together(service: Service, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BATCH_S", 0.0)
    fetcher.begin()
    for number in range(5):
        with pytest.raises(LookupError):
            get(fetcher, f"{service.url}/slow{number}", timeout_s=60)
    assert fetcher.late == 5
    service.open.set()


@pytest.mark.parametrize("path", ["/bad", "/broken", "/huge"])
def test_a_service_that_fails_is_left_alone(service: Service, fetcher: Fetcher, path: str) -> None:
    for number in range(8):
        with pytest.raises(LookupError):
            get(fetcher, f"{service.url}{path}{number}")
    assert len(service.asked) == 5
    with pytest.raises(LookupError):
        get(fetcher, f"{service.url}/a")
    assert fetcher.get(f"{service.url}/a", headers={}, service="other", timeout_s=10, ttl_s=1) == {"said": "/a"}


def test_nobody_there_is_a_lookup_error(fetcher: Fetcher) -> None:
    with pytest.raises(LookupError):
        get(fetcher, "http://127.0.0.1:9/x")
