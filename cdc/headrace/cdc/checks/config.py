"""What ``checks`` may say."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from headrace.cdc.config import Duration, Section

Verdict = Literal["valid", "invalid", "unknown"]


class VerifierConfig(Section, frozen=True):
    """A service that knows more: asked by GET, answers JSON."""

    url: Annotated[
        str,
        Meta(
            pattern=r"^https?://",
            description="Address with {email} in it.",
            examples=["https://verifier.example/v1?email={email}"],
        ),
    ]
    verdict: Annotated[str, Meta(description="Where the answer says it: names with dots.", examples=["data.status"])]
    valid: Annotated[
        list[str], Meta(min_length=1, description="Words there that mean valid.", examples=[["deliverable"]])
    ]
    invalid: Annotated[
        list[str], Meta(description="Words that mean invalid; all others are unknown.", examples=[["undeliverable"]])
    ] = msgspec.field(default_factory=list[str])
    headers: Annotated[dict[str, str], Meta(description="Headers of the request, secrets by ${VARIABLE}.")] = (
        msgspec.field(default_factory=dict[str, str])
    )

    def __post_init__(self) -> None:
        if "{email}" not in self.url:
            raise ValueError("url has no {email} in it")

    def __repr__(self) -> str:
        return "VerifierConfig()"


class EmailCheckConfig(Section, frozen=True):
    """E-mail addresses in events: syntax, then the domain's mail servers, or a verifier."""

    fields: Annotated[
        list[str],
        Meta(min_length=1, description="Paths of addresses.", examples=[["properties.email", "context.traits.email"]]),
    ]
    method: Annotated[
        Literal["syntax", "mx"],
        Meta(description="mx: whether the domain takes mail, by DNS. With a verifier only the syntax comes first."),
    ] = "mx"
    verifier: VerifierConfig | None = None
    nameserver: Annotated[
        Annotated[str, Meta(pattern=r"^[0-9.]+(:[0-9]+)?$")] | None,
        Meta(description="ADDRESS[:PORT] to ask in place of the system's.", examples=["127.0.0.1:5353"]),
    ] = None
    name: Annotated[str, Meta(min_length=1, description="Name of the event that says the verdict.")] = "Email Checked"
    timeout: Annotated[Duration, Meta(description="Later than that it is unknown. Default: 5s.")] = msgspec.field(
        default_factory=lambda: Duration.parse("5s")
    )
    ttl: Annotated[Duration, Meta(description="How long a verdict is good. Default: 7d.")] = msgspec.field(
        default_factory=lambda: Duration.parse("7d")
    )


class ChecksConfig(Section, frozen=True):
    """Values of events that somebody else is asked about; needs the extra headrace[checks]."""

    email: EmailCheckConfig | None = None


__all__ = ["ChecksConfig", "EmailCheckConfig", "Verdict", "VerifierConfig"]
