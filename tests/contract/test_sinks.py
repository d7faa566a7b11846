"""The sink contract over every shipped sink."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("contract.sink_contract")

from contract.sink_contract import SinkContract  # rewritten asserts show their values
from headrace.sinks.awscredentials import CredentialSource
from headrace.sinks.base import Sink, WhenConfig
from headrace.sinks.http import HttpSink
from headrace.sinks.httpdefinition import AuthConfig, BatchConfig, Destination
from headrace.sinks.personalize import InteractionMapping, PersonalizeConfig, PersonalizeSink
from headrace.sinks.sigv4 import Credentials

AUTH = AuthConfig(type="bearer", token="secret")


class TestHttp(SinkContract):
    def make(self, url: str) -> Sink:
        return HttpSink(Destination(url=f"{url}/secret", auth=AUTH))


class TestHttpInBatches(SinkContract):
    def make(self, url: str) -> Sink:
        return HttpSink(Destination(url=f"{url}/secret", auth=AUTH, batch=BatchConfig(max_events=5)))


class TestPersonalize(SinkContract):
    def make(self, url: str) -> Sink:
        mapping = InteractionMapping(when=WhenConfig(kind=("track",)))
        config = PersonalizeConfig(region="eu-west-1", tracking_id="t", endpoint=url, events=(mapping,))
        return PersonalizeSink(config, CredentialSource(Credentials("A", "secret")))
