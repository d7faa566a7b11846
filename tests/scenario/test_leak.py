"""What privacy hides stands in no byte that a running headrace leaves or says: log, dead letters, stores, feature log, sinks, metrics, output.

One process takes rows, SDK events and webhooks, good ones and each kind of bad ones, with marked values wherever a rule hides them. Then every
byte is searched for the marks. Marks that nothing hides are found by the same search, so it can see.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
import http.client
import json
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb

from fix_servers import Database
from hook_server import hook_server
from running import RunningHeadrace

SECRET = "whsec-of-the-test"
DEFINITIONS = """
from headrace.features import *
person = Entity("person", join_keys={"id": Int64})
view = FeatureView(
    "people", entity=person, source=Table("public.people"), features=[latest("name", String), latest("phone", String), latest("mail", String)],
)
"""
STEPS = """
def fails(event):
    if event.properties.get("fails"):
        raise ValueError(str(event.properties))
    return event
"""
PLAN = {"track": {"Bought": {"schema": {"type": "object", "properties": {"total": {"type": "number"}}}}}}


def configuration(dsn: str, name: str, hook: str) -> str:
    return f"""
log: {{path: leak.log.db}}
sources:
  shop: {{type: postgres, dsn: "{dsn}", slot: leak_{name}, publication: leak_{name}}}
  web: {{type: http, max_event: 4KiB}}
  pay:
    type: webhook
    path: /pay
    secrets: ["{SECRET}"]
    signature: {{header: X-Signature, over: "{{body}}"}}
    map: [{{name: Paid, key: customer, id: id}}]
privacy:
  salt: a salt of sixteen
  events:
    - remove: [context.ip, "context.traits.**.email", "properties.**.secret"]
      mask: {{properties.card: "***"}}
      hash: [user_id, anonymous_id, previous_id, group_id, properties.mail, properties.customer]
      detect: [email, card, phone]
events:
  public.people: {{columns: {{exclude: [secret], hash: [mail], mask: {{phone: "***"}}}}}}
pipeline:
  plan: plan.yaml
  transforms: ["steps.py:fails"]
features: {{definitions: definitions.py, project: leak, store: {{type: sqlite, path: online.db}}, offline: {{path: offline, roll_every: 1s}}}}
sinks:
  hook: {{type: http, destination: {{url: "{hook}"}}}}
"""


def post(running: RunningHeadrace, path: str, body: bytes, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        return connection.getresponse().status
    finally:
        connection.close()


class Marks:
    """Values that must not be found, by what they stand for, and ones that must."""

    def __init__(self) -> None:
        self.hidden: dict[str, str] = {}
        self.shown: dict[str, str] = {}

    def hide(self, what: str) -> str:
        return self.hidden.setdefault(what, "HID" + secrets.token_hex(8))

    def show(self, what: str) -> str:
        return self.shown.setdefault(what, "SHO" + secrets.token_hex(8))


def call(marks: Marks, kind: str, where: str, **properties: Any) -> dict[str, Any]:
    """A call full of marks. where: in their names."""
    hide = marks.hide
    return {
        "type": kind,
        "event": "Bought",
        "messageId": f"m-{where}",
        "userId": hide(f"{where} user"),
        "anonymousId": hide(f"{where} anonymous"),
        "properties": {
            "secret": hide(f"{where} property"), "deep": [{"secret": {"x": hide(f"{where} deep property")}}],
            "card": hide(f"{where} card"), "mail": hide(f"{where} mail"),
            "note": f"write to {hide(f'{where} text').lower()}@example.org", **properties,
        },
        "context": {
            "ip": hide(f"{where} ip"), "traits": {"more": {"email": hide(f"{where} trait")}},
            "page": {"title": f"for {hide(f'{where} title').lower()}@example.org"},
        },
    }  # fmt: skip


def test_marked_values_are_found_nowhere(database: Database, tmp_path: Path) -> None:
    marks = Marks()
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "steps.py").write_text(STEPS)
    (tmp_path / "plan.yaml").write_text(json.dumps(PLAN))
    database.execute("create table people (id int primary key, name text, mail text, phone text, secret text)")
    insert = "insert into people values (%s, %s, %s, %s, %s)"
    database.execute(
        insert, 1, marks.show("copied row"), marks.hide("row mail"), marks.hide("row phone"), marks.hide("row secret")
    )
    with hook_server() as hook:
        running = RunningHeadrace(tmp_path, configuration(database.dsn, database.name, hook.url))
        running.start()
        try:
            running.wait_until(running.client.is_ready, "starting")
            said = send(running, database, marks)
            running.wait_until(lambda: len(hook.got) >= 6, "delivery")
            running.wait_until(
                lambda: bool(list((tmp_path / "offline").rglob("*.parquet"))) and rows(tmp_path) > 0, "Parquet"
            )
            said += asked(running, tmp_path)
        finally:
            if running.process is not None and running.process.poll() is None:
                running.terminate()
        said += json.dumps(hook.got).encode()
    everything = {"what was said": said}
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file():
            everything[str(path.relative_to(tmp_path))] = path.read_bytes()
    for path in (tmp_path / "offline").rglob("*.parquet"):
        everything[f"rows of {path.name}"] = str(duckdb.read_parquet(str(path)).fetchall()).encode()
    for what, mark in marks.shown.items():
        assert any(mark.encode() in body for body in everything.values()), f"the search doesn't see {what}"
    found = [
        f"{what} in {name}"
        for what, mark in marks.hidden.items()
        for name, body in everything.items()
        if mark.encode() in body or mark.lower().encode() in body
    ]
    assert not found


def rows(folder: Path) -> int:
    return sum(len(duckdb.read_parquet(str(path)).fetchall()) for path in (folder / "offline").rglob("*.parquet"))


def send(running: RunningHeadrace, database: Database, marks: Marks) -> bytes:
    """Every good and bad way in; what was answered."""
    hide, show = marks.hide, marks.show
    statuses: list[int] = []

    def track(*calls: dict[str, Any], batch: dict[str, Any] | None = None) -> None:
        statuses.append(post(running, "/v1/batch", json.dumps({"batch": calls, **(batch or {})}).encode()))

    track(call(marks, "track", "good", shown=show("an SDK's event")), call(marks, "identify", "identify"))
    track(
        call(marks, "track", "batch"),
        batch={"context": {"ip": hide("batch ip"), "traits": {"email": hide("batch trait")}}},
    )
    track({**call(marks, "alias", "alias"), "previousId": hide("former id")})
    track({**call(marks, "group", "group"), "groupId": hide("group id")})
    track(call(marks, "track", "plan", total="no number", shown=show("refused by the plan")))
    track(call(marks, "track", "step", fails=True, shown=show("refused by a step")))
    track(call(marks, "nonsense", "kind"))
    track({**call(marks, "track", "no name"), "event": None})
    track(call(marks, "track", "large", filler="x" * 9000))
    track(call(marks, "track", "twice"))
    track({**call(marks, "track", "twice again"), "messageId": "m-twice"})
    body = json.dumps(call(marks, "track", "cut")).encode()
    statuses.append(post(running, "/v1/track", body[:-20]))
    statuses.append(post(running, "/v1/track", gzip.compress(body)[:-9], **{"Content-Encoding": "gzip"}))
    statuses.append(post(running, "/v1/track", b'"' + hide("text").encode() + b'"'))
    for number, event in enumerate(
        [
            {"id": "w1", "customer": hide("hook customer"), "secret": hide("hook secret"), "shown": show("a webhook")},
            {"id": "w2", "customer": {"x": hide("hook object")}, "secret": hide("hook secret 2")},
            {"id": "w3", "customer": hide("hook customer 3"), "fails": True, "secret": hide("hook secret 3")},
        ]
    ):
        body = json.dumps(event).encode()
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        statuses.append(post(running, "/pay", body, **{"X-Signature": signature}))
        statuses.append(post(running, "/pay", body, **{"X-Signature": f"wrong{number}"}))
    database.execute(
        "insert into people values (2, %s, %s, %s, %s)", show("row"), hide("mail 2"), hide("phone 2"), hide("secret 2")
    )
    database.execute("update people set name = 'changed', secret = %s where id = 2", hide("secret 3"))
    database.execute("delete from people where id = 1")
    assert statuses.count(200) >= 11, statuses
    return str(statuses).encode()


def asked(running: RunningHeadrace, folder: Path) -> bytes:
    """What every way of asking says."""
    said = b""
    for path in ("/metrics", "/v1/status", "/readyz", "/v1/stream?from=earliest&wait=0", "/"):
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            end = time.monotonic() + 3
            while time.monotonic() < end and (piece := answer.read1(1 << 16)):
                said += piece
        except TimeoutError:
            pass  # the stream goes on for ever
        finally:
            connection.close()
    for words in (["deadletter", "ls"], ["status"], ["deadletter", "retry", "--all"], ["deadletter", "ls", "--json"]):
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from headrace.cdc.cli import main; sys.exit(main())", *words],
            cwd=folder, capture_output=True, check=False,
        )  # fmt: skip
        said += done.stdout + done.stderr
    listed = subprocess.run(
        [sys.executable, "-c", "import sys; from headrace.cdc.cli import main; sys.exit(main())", "deadletter", "ls", "--json"],
        cwd=folder, capture_output=True, check=True, text=True,
    )  # fmt: skip
    ids = [str(json.loads(line)["id"]) for line in listed.stdout.splitlines()]
    assert len(ids) >= 8, listed.stdout
    shown = subprocess.run(
        [sys.executable, "-c", "import sys; from headrace.cdc.cli import main; sys.exit(main())", "deadletter", "show", *ids],
        cwd=folder, capture_output=True, check=True,
    )  # fmt: skip
    return said + shown.stdout + shown.stderr
