"""Signatures of webhooks: the published examples hold, and nothing that differs in one bit does."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from headrace.cdc.process.signature import Signing, Verifier
from headrace.cdc.sources.webhook_config import Preset, preset

NOW_S = 1_614_265_330
NOW_US = NOW_S * 1_000_000


def reason(verifier: Verifier, headers: dict[str, str], body: bytes, now_us: int = NOW_US) -> str | None:
    refusal = verifier.refusal(headers, body, now_us)
    return None if refusal is None else refusal.reason


def stripe(secret: str, body: bytes, at_s: int = NOW_S) -> str:
    return hmac.new(secret.encode(), f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()


def of_preset(name: Preset, *secrets: str) -> Verifier:
    return Verifier(preset(name).signature, secrets)


def test_the_example_of_githubs_documentation() -> None:
    verifier = of_preset("github", "It's a Secret to Everybody")
    header = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert reason(verifier, {"x-hub-signature-256": header}, b"Hello, World!") is None
    assert reason(verifier, {"x-hub-signature-256": header}, b"Hello, World?") == "wrong_signature"
    assert (
        reason(verifier, {"x-hub-signature-256": header.removeprefix("sha256=")}, b"Hello, World!") == "wrong_signature"
    )
    assert reason(verifier, {}, b"Hello, World!") == "unsigned"


def test_the_example_of_standard_webhooks() -> None:
    verifier = of_preset("standard", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": str(NOW_S),
        "webhook-signature": "v1a,AAAA v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    assert reason(verifier, headers, body) is None
    assert reason(verifier, headers | {"webhook-id": "msg_2"}, body) == "wrong_signature"


def test_stripe_with_several_signatures_and_secrets_while_one_is_replaced() -> None:
    body = b'{"id": "evt_1"}'
    verifier = of_preset("stripe", "whsec_new", "whsec_old")
    for secret, wanted in [("whsec_new", None), ("whsec_old", None), ("whsec_other", "wrong_signature")]:
        header = f"t={NOW_S},v1={'0' * 64},v1={stripe(secret, body)},v0=x"
        assert reason(verifier, {"stripe-signature": header}, body) == wanted
    assert (
        reason(verifier, {"stripe-signature": f"t={NOW_S},v0={stripe('whsec_new', body)}"}, body) == "wrong_signature"
    )


@pytest.mark.parametrize(("off_s", "wanted"), [(0, None), (300, None), (-300, None), (301, "stale"), (-301, "stale")])
def test_a_request_is_good_for_the_tolerance_around_the_clock(off_s: int, wanted: str | None) -> None:
    header = f"t={NOW_S},v1={stripe('s3cret', b'{}')}"
    found = reason(of_preset("stripe", "s3cret"), {"stripe-signature": header}, b"{}", NOW_US + off_s * 1_000_000)
    assert found == wanted


@pytest.mark.parametrize("time", ["", "now", "-1", "1e9", "9" * 13, "²"])
def test_a_time_that_is_none_is_refused(time: str) -> None:
    header = f"t={time},v1={stripe('s3cret', b'{}')}"
    assert reason(of_preset("stripe", "s3cret"), {"stripe-signature": header}, b"{}") == "no_timestamp"


def test_another_time_than_the_signed_one_is_refused() -> None:
    header = f"t={NOW_S + 1},v1={stripe('s3cret', b'{}')}"
    assert reason(of_preset("stripe", "s3cret"), {"stripe-signature": header}, b"{}") == "wrong_signature"


@pytest.mark.parametrize("name", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
def test_each_hash_in_each_writing(name: str, encoding: str) -> None:
    signing = Signing(header="X-Sig", hash=name, encoding=encoding, over="v0:{header:X-Id}:{body}")  # type: ignore[arg-type]
    made = hmac.new(b"k", b"v0:7:{}", name).digest()
    text = made.hex() if encoding == "hex" else base64.b64encode(made).decode()
    assert reason(Verifier(signing, ["k"]), {"x-sig": text, "x-id": "7"}, b"{}") is None
    assert reason(Verifier(signing, ["k"]), {"x-sig": text, "x-id": "8"}, b"{}") == "wrong_signature"


@pytest.mark.parametrize(
    "text", ["zz", "", "é", "AAA", "=" * 40, "\udcff", "0" * 100_000, ",".join(["v1=00"] * 10_000)]
)
def test_a_signature_that_makes_no_sense_is_wrong(text: str) -> None:
    for encoding in ("hex", "base64"):
        signing = Signing(header="X", encoding=encoding)  # type: ignore[arg-type]
        assert reason(Verifier(signing, ["k"]), {"x": text}, b"{}") in ("wrong_signature", "unsigned")


def test_a_token_is_the_secret_itself() -> None:
    verifier = Verifier(Signing(header="X-Gitlab-Token", hash="none"), ["one", "two"])
    assert reason(verifier, {"x-gitlab-token": "two"}, b"") is None
    assert reason(verifier, {"x-gitlab-token": "tw"}, b"") == "wrong_signature"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"over": "{timestamp}", "timestamp": "T"}, "leaves the body out"),
        ({"over": "{body}", "timestamp": "T"}, "leaves the timestamp out"),
        ({"over": "{timestamp}{body}"}, "say with timestamp where it stands"),
        ({"timestamp": "t="}, "needs a separator"),
        ({"hash": "none", "timestamp": "T"}, "need a hash"),
    ],
)
def test_a_scheme_that_protects_nothing_is_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Signing(header="X", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("secret", "encoding"), [("", "text"), ("xyz", "hex"), ("whsec_", "base64"), ("a", "base64")])
def test_a_secret_that_cant_be_one_is_named_by_its_place_only(secret: str, encoding: str) -> None:
    with pytest.raises(ValueError, match=r"secrets\[1\]") as raised:
        Verifier(Signing(header="X", secret_encoding=encoding), ["YWE=" if encoding == "base64" else "ff", secret])  # type: ignore[arg-type]
    assert not secret or f"{secret!r}" not in str(raised.value)
