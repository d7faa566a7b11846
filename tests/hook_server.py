"""A small HTTP server in a thread of its own, for commands that bring their own event loop: keeps what it was sent, answers by a rule."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec


class Hook:
    """answer: status for a body; reply: the answer's body for it. got: bodies that were answered 200, in order; headers beside them."""

    def __init__(self) -> None:
        self.answer: Callable[[Any], int] = lambda body: 200
        self.reply: Callable[[Any], bytes] = lambda body: b""
        self.got: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.requests = 0
        self.url = ""
        self._lock = threading.Lock()

    def post(self, headers: dict[str, str], body: Any) -> int:
        with self._lock:
            self.requests += 1
            status = self.answer(body)
            if status == 200:
                self.got.append(body)
                self.headers.append(headers)
            return status


@contextlib.contextmanager
def hook_server() -> Iterator[Hook]:
    hook = Hook()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = msgspec.json.decode(self.rfile.read(int(self.headers["Content-Length"])))
            status = hook.post({name.lower(): value for name, value in self.headers.items()}, body)
            self._end(status, hook.reply(body))

        def do_GET(self) -> None:
            self._end(200)

        def _end(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        # The default of 5 drops the connections of a burst, and TCP tries each again after 1, 3, 7, 15 s.
        request_queue_size = 256

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that was killed leaves a broken connection behind: no news here."""

    server = Server(("127.0.0.1", 0), Handler)
    hook.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
