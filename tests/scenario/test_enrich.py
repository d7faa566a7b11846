"""Enrichment in a real process: an SDK's event gets the row that the database has now, and what a service says, also after kill -9."""

from __future__ import annotations

import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fix_servers import Database
from running import RunningHeadrace


def configuration(dsn: str, name: str, service: str) -> str:
    return f"""
log: {{path: enrich.log.db}}
sources:
  shop: {{type: postgres, dsn: "{dsn}", slot: enrich_{name}, publication: enrich_{name}, tables: [public.products]}}
  web: {{type: http}}
pipeline:
  transforms:
    - lookup: {{table: public.products, by: {{sku: properties.sku}}, into: properties.product, columns: [name, price]}}
      when: {{kinds: [track], where: {{properties.sku: {{exists: true}}}}}}
    - fetch: {{url: "{service}/score/{{user_id}}", into: context.score, timeout: 5s}}
      when: {{names: [Viewed]}}
    - parse: [campaign, user_agent]
"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"of": self.path.rpartition("/")[2]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def track(running: RunningHeadrace, number: int, sku: str) -> None:
    body = {
        "event": "Viewed",
        "userId": f"u{number}",
        "messageId": f"m{number}",
        "properties": {"sku": sku},
        "context": {"page": {"search": "?utm_source=mail"}},
    }
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    try:
        connection.request("POST", "/v1/track", json.dumps(body))
        assert connection.getresponse().status == 200
    finally:
        connection.close()


def test_an_event_gets_the_row_of_now(database: Database, tmp_path: Path) -> None:
    database.execute("create table products (id int primary key, sku text, name text, price numeric, secret text)")
    database.execute("insert into products values (1, 'a', 'Chair', 9.90, 'x')")
    service = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    running = RunningHeadrace(
        tmp_path, configuration(database.dsn, database.name, f"http://127.0.0.1:{service.server_port}")
    )

    def events() -> list[dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        try:
            connection.request("GET", "/v1/events?limit=100&from=earliest")
            return [json.loads(line) for line in connection.getresponse().read().splitlines() if line]
        finally:
            connection.close()

    def viewed(number: int) -> dict[str, Any]:
        return next(event for event in events() if event["name"] == "Viewed" and event["user_id"] == f"u{number}")

    def rows(count: int) -> bool:
        status = running.client.status()
        return (
            sum(event.get("table") == "products" for event in events()) >= count
            and status is not None
            and status["consumers"]["lookup"]["offset"][0] >= count
        )

    running.start()
    try:
        running.wait_until(running.client.is_ready, "starting")
        running.wait_until(lambda: rows(1), "the copy")
        track(running, 1, "a")
        first = viewed(1)
        assert first["after"] if first.get("after") else first["properties"]
        assert first["properties"]["product"] == {"name": "Chair", "price": "9.90"}
        assert first["context"]["score"] == {"of": "u1"} and first["context"]["campaign"] == {"source": "mail"}
        database.execute("update products set price = 12 where id = 1")
        running.wait_until(lambda: rows(2), "the update")
        track(running, 2, "a")
        assert viewed(2)["properties"]["product"]["price"] == "12"
        running.kill()
        database.execute("update products set price = 15 where id = 1")
        running.start()
        running.wait_until(running.client.is_ready, "starting again")
        running.wait_until(lambda: rows(3), "the update while it was away")
        track(running, 3, "a")
        assert viewed(3)["properties"]["product"]["price"] == "15"
        track(running, 4, "none")
        assert "product" not in viewed(4)["properties"]
    finally:
        if running.process is not None and running.process.poll() is None:
            running.terminate()
        service.shutdown()
        service.server_close()
