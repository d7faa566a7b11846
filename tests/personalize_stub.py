"""A stub of the AWS Personalize events API, as a process of its own: NOT the service, only its published model held against requests.

    python tests/personalize_stub.py SEED TROUBLE      # prints its port; TROUBLE: chance of a fault for each request, 0 to 1

It verifies every signature with botocore's own signer, and every length, number and pattern with the limits of botocore's service model.
By seed it answers 429, 500, 503 and 409, is silent, or closes the connection before or after applying. ``GET /state`` tells what it has
applied: per (user or session) the eventIds in order of first arrival, every user, item and action, and how often each fault came.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import random
import re
import sys
from collections import Counter
from typing import Any
from unittest import mock

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import botocore.loaders
import botocore.model
from aiohttp import web

ACCESS_KEY, SECRET_KEY, REGION = "AKIDEXAMPLE", "stub-secret-key", "eu-west-1"
TRACKER = "tracker-1"
POISON_ITEM = "poison"
"""An interaction with this item is refused, as one that breaks a data set's schema would be."""

_MODEL = botocore.model.ServiceModel(botocore.loaders.Loader().load_service_model("personalize-events", "service-2"))
_CALLS = {_MODEL.operation_model(name).http["requestUri"]: name for name in _MODEL.operation_names}


def problems(shape: Any, value: Any, path: str = "") -> list[str]:
    """What of a value breaks the model, maxima and patterns included."""
    limits = shape.metadata
    if shape.type_name == "structure":
        if not isinstance(value, dict):
            return [f"{path} is no object"]
        found = [f"{path}.{name} is missing" for name in shape.required_members if name not in value]
        found += [f"{path}.{name} is unknown" for name in value if name not in shape.members]
        for name, member in shape.members.items():
            if name in value:
                found += problems(member, value[name], f"{path}.{name}")
        return found
    if shape.type_name == "list":
        if not isinstance(value, list):
            return [f"{path} is no list"]
        found = _length(limits, len(value), path)
        return found + [p for index, item in enumerate(value) for p in problems(shape.member, item, f"{path}[{index}]")]
    if shape.type_name == "string":
        if not isinstance(value, str):
            return [f"{path} is no string"]
        found = _length(limits, len(value), path)
        if "pattern" in limits and re.fullmatch(limits["pattern"], value) is None:
            found.append(f"{path} breaks its pattern")
        return found
    if shape.type_name == "timestamp":
        return [] if isinstance(value, int) and not isinstance(value, bool) else [f"{path} is no time"]
    if shape.type_name == "float":
        return [] if isinstance(value, int | float) and not isinstance(value, bool) else [f"{path} is no number"]
    raise AssertionError(shape.type_name)


def _length(limits: dict[str, Any], length: int, path: str) -> list[str]:
    found = [f"{path} is too short"] if length < limits.get("min", 0) else []
    return found + ([f"{path} is too long"] if length > limits.get("max", length) else [])


def signature(method: str, url: str, body: bytes, headers: dict[str, str], stamp: str, region: str = REGION) -> str:
    """botocore's Authorization for these headers (without Host: it comes from the URL) at that time."""
    token = headers.get("X-Amz-Security-Token")
    credentials = botocore.credentials.Credentials(ACCESS_KEY, SECRET_KEY, token)
    request = botocore.awsrequest.AWSRequest(
        method=method, url=url, data=body, headers={"Content-Type": headers["Content-Type"]}
    )
    now = datetime.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    with mock.patch("botocore.auth.get_current_datetime", return_value=now, create=True):
        botocore.auth.SigV4Auth(credentials, "personalize", region).add_auth(request)
    return str(request.headers["Authorization"])


class Stub:
    def __init__(self, seed: int, trouble: float) -> None:
        self.chance = random.Random(seed)
        self.trouble = trouble
        self.seen: set[str] = set()
        self.lanes: dict[str, list[str]] = {}
        self.records: dict[str, dict[str, Any]] = {"userId": {}, "itemId": {}, "actionId": {}}
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.counts["requests"] += 1
        expected = signature(
            "POST", f"http://{request.host}{request.path}", body, dict(request.headers), request.headers["X-Amz-Date"]
        )
        if request.headers.get("Authorization") != expected:
            self.counts["bad signature"] += 1
            return self._error(403, "InvalidSignatureException")
        name = _CALLS.get(request.path)
        if name is None:
            return self._error(404, "UnknownOperationException")
        params = json.loads(body)
        found = problems(_MODEL.operation_model(name).input_shape, params)
        if found:
            # "sink check" asks with an empty list on purpose.
            if not all(value == [] for value in params.values() if isinstance(value, list)):
                self.wrong += found
            return self._error(400, "InvalidInputException")
        act = self._draw()
        if act in ("429", "500", "503", "409"):
            names = {"429": "ThrottlingException", "409": "ResourceInUseException"}
            return self._error(int(act), names.get(act, "InternalServerError"))
        if act in ("silent before", "cut before"):
            return await self._leave(request, act)
        if any(event.get("itemId") == POISON_ITEM for event in params.get("eventList", [])):
            self.counts["poison"] += 1
            return self._error(400, "InvalidInputException")
        self._apply(params)
        if act in ("silent after", "cut after"):
            return await self._leave(request, act)
        return web.json_response({})

    def _draw(self) -> str:
        if self.chance.random() >= self.trouble:
            return ""
        act = self.chance.choice(
            ["429", "500", "503", "409", "cut before", "cut after", "cut after", "silent before", "silent after"]
        )
        self.counts[act] += 1
        return act

    def _apply(self, params: dict[str, Any]) -> None:
        if "eventList" in params:
            lane = self.lanes.setdefault(params.get("userId") or params["sessionId"], [])
            for event in params["eventList"]:
                self._once(event["eventId"], lane)
        for record in params.get("actionInteractions", []):
            self._once(record["eventId"], self.lanes.setdefault(record.get("userId") or record["sessionId"], []))
        for field, list_name in (("userId", "users"), ("itemId", "items"), ("actionId", "actions")):
            for record in params.get(list_name, []):
                self.records[field][record[field]] = record.get("properties")

    def _once(self, event_id: str, lane: list[str]) -> None:
        if event_id in self.seen:
            self.counts["known already"] += 1
        else:
            self.seen.add(event_id)
            lane.append(event_id)

    async def _leave(self, request: web.Request, act: str) -> web.StreamResponse:
        if act.startswith("silent"):
            await asyncio.sleep(3)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    @staticmethod
    def _error(status: int, name: str) -> web.Response:
        return web.json_response({"message": "no"}, status=status, headers={"x-amzn-ErrorType": f"{name}:http://stub/"})

    async def state(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"lanes": self.lanes, "records": self.records, "counts": self.counts, "wrong": self.wrong}
        )


async def main() -> None:
    stub = Stub(int(sys.argv[1]), float(sys.argv[2]))
    application = web.Application()
    application.router.add_get("/state", stub.state)
    application.router.add_post("/{path:.*}", stub.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
