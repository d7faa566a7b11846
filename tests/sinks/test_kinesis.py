"""Kinesis against a stub in this process, which isn't the service: it checks signatures with botocore, and limits from its model."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import botocore.loaders
import botocore.model
import botocore.validate
import msgspec
import pytest
from aiohttp import web

from headrace.sinks.awscredentials import CredentialSource
from headrace.sinks.base import Item, OrderConfig, Unfit
from headrace.sinks.kinesis import KinesisConfig, KinesisSink
from headrace.sinks.sigv4 import Credentials
from headrace.sinks.verdict import DELIVERED, Fault, FaultKind, Outcome
from shop_log import heartbeat, order_event

NOW_S = 1_700_000_000.0
SERVICE = botocore.model.ServiceModel(
    botocore.loaders.Loader().load_service_model("kinesis", "service-2", "2013-12-02"), "kinesis"
)


class Stub(msgspec.Struct):
    """answer: status and tree for the records of a request. got: what was put."""

    answer: Callable[[list[Any]], tuple[int, Any]] = lambda records: (
        200,
        {"Records": [{"SequenceNumber": "1"}] * len(records)},
    )
    got: list[Any] = []
    targets: list[str] = []
    url: str = ""

    async def post(self, request: web.Request) -> web.Response:
        body = await request.read()
        operation = request.headers["X-Amz-Target"].removeprefix("Kinesis_20131202.")
        assert request.headers["Content-Type"] == "application/x-amz-json-1.1"
        self._verify(request, body)
        tree = msgspec.json.decode(body)
        for record in tree.get("Records", ()):
            record["Data"] = base64.b64decode(record["Data"])
        shape = SERVICE.operation_model(operation).input_shape
        assert not (report := botocore.validate.ParamValidator().validate(tree, shape)).has_errors(), (
            report.generate_report()
        )
        self.targets.append(operation)
        if operation != "PutRecords":
            return web.json_response({"StreamDescriptionSummary": {}})
        assert 1 <= len(tree["Records"]) <= 500
        status, said = self.answer(tree["Records"])
        if status == 200:
            put = [
                record
                for record, entry in zip(tree["Records"], said["Records"], strict=True)
                if "ErrorCode" not in entry
            ]
            self.got += put
        return web.json_response(said, status=status)

    @staticmethod
    def _verify(request: web.Request, body: bytes) -> None:
        signed = {name: request.headers[name] for name in ("Content-Type", "X-Amz-Target", "X-Amz-Security-Token")}
        copy = botocore.awsrequest.AWSRequest("POST", str(request.url), signed, body)
        copy.context["timestamp"] = request.headers["X-Amz-Date"]
        auth = botocore.auth.SigV4Auth(botocore.credentials.Credentials("A", "secret", "tok"), "kinesis", "eu-west-1")
        copy.headers["X-Amz-Date"] = request.headers["X-Amz-Date"]
        text = auth.string_to_sign(copy, auth.canonical_request(copy))
        assert request.headers["Authorization"].endswith("Signature=" + auth.signature(text, copy))


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    made = Stub()
    application = web.Application()
    application.router.add_post("/", made.post)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def sink(stub: Stub) -> AsyncIterator[KinesisSink]:
    config = KinesisConfig(region="eu-west-1", stream="shop", endpoint=stub.url)
    made = KinesisSink(config, CredentialSource(Credentials("A", "secret", "tok")), wall=lambda: NOW_S)
    await made.open()
    yield made
    await made.close()


def items_of(sink: KinesisSink, count: int) -> list[Item]:
    found = [sink.prepare(order_event(number), number, str(number)) for number in range(count)]
    return [item for item in found if item is not None]


async def test_records_hold_event_and_key_and_are_signed(stub: Stub, sink: KinesisSink) -> None:
    assert await sink.send("put_records", items_of(sink, 3)) == [DELIVERED] * 3
    assert [record["PartitionKey"] for record in stub.got] == ["0", "1", "2"]
    assert msgspec.json.decode(stub.got[1]["Data"])["id"] == "shop-1"
    assert sink.prepare(heartbeat(1), 0, "k") is None


async def test_each_record_has_its_verdict(stub: Stub, sink: KinesisSink) -> None:
    codes = [None, "ProvisionedThroughputExceededException", "InternalFailure", "Strange"]
    stub.answer = lambda records: (200, {"Records": [{"ErrorCode": code} if code else {} for code in codes]})
    answer = await sink.send("put_records", items_of(sink, 4))
    assert not isinstance(answer, Fault)
    assert [each.outcome for each in answer] == [Outcome.DELIVERED, Outcome.AGAIN, Outcome.AGAIN, Outcome.REFUSED]
    codes = ["ProvisionedThroughputExceededException"] * 2
    fault = await sink.send("put_records", items_of(sink, 2))
    assert isinstance(fault, Fault) and fault.kind is FaultKind.THROTTLED


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (400, "ProvisionedThroughputExceededException", FaultKind.THROTTLED),
        (400, "com.amazonaws.kinesis#ResourceNotFoundException", FaultKind.DENIED),
        (400, "AccessDeniedException", FaultKind.DENIED),
        (400, "ExpiredTokenException", FaultKind.OUTAGE),
        (400, "ResourceInUseException", FaultKind.OUTAGE),
        (400, "InvalidArgumentException", FaultKind.BAD_BATCH),
        (413, "", FaultKind.TOO_LARGE),
        (500, "InternalFailure", FaultKind.OUTAGE),
        (503, "", FaultKind.OUTAGE),
    ],
)
async def test_errors_are_classified(stub: Stub, sink: KinesisSink, status: int, name: str, kind: FaultKind) -> None:
    stub.answer = lambda records: (status, {"__type": name} if name else {})
    answer = await sink.send("put_records", items_of(sink, 2))
    assert isinstance(answer, Fault) and answer.kind is kind, answer
    assert "127.0.0.1" in answer.reason and "secret" not in answer.reason


async def test_check_asks_for_the_stream_and_puts_nothing(stub: Stub, sink: KinesisSink) -> None:
    assert [finding.is_fine for finding in await sink.check()] == [True]
    assert stub.targets[-1] == "DescribeStreamSummary"


def test_limits_are_told_before_they_are_met(sink: KinesisSink) -> None:
    with pytest.raises(Unfit, match="a record may have 1048576"):
        sink.prepare(order_event(1, properties=b'{"a":"%b"}' % (b"x" * (1 << 20))), 0, "k")
    item = sink.prepare(order_event(1, key="x" * 300), 0, "x" * 300)
    assert item is not None and len(msgspec.json.decode(item.payload)["PartitionKey"]) == 64
    with pytest.raises(ValueError, match="no order"):
        KinesisConfig(region="eu-west-1", stream="s", order=OrderConfig(mode="run"))
