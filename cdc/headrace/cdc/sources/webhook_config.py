"""What ``sources.NAME`` of type webhook may say, and the presets that are shipped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from headrace.cdc.config import Section, Size, load_part
from headrace.cdc.process.signature import Signing, Verifier
from headrace.cdc.process.webhook import Place, Rule

Preset: TypeAlias = Literal["stripe", "github", "shopify", "standard"]

_FOLDER: Final = Path(__file__).parent / "webhook_presets"
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_OURS: Final = re.compile(r"/(?:v1|healthz|readyz|metrics|pixel|projects|sourceConfig|beacon|health|version)(?:/.*)?")


class ChallengeConfig(Section, frozen=True):
    """How a service makes sure that this address is yours: it asks by GET with a text that is to be answered, or posts one."""

    query: Annotated[
        str,
        Meta(
            description="Parameter of the GET whose value is answered.", examples=["hub.challenge", "validationToken"]
        ),
    ] = ""
    token_query: Annotated[
        str, Meta(description="Parameter that must hold token; others are refused.", examples=["hub.verify_token"])
    ] = ""
    token: Annotated[
        str, Meta(description="What you told the service, by ${VARIABLE}.", examples=["${VERIFY_TOKEN}"])
    ] = ""
    body: Annotated[
        str,
        Meta(
            description="Field of a posted JSON object whose text is answered, and which is no event.",
            examples=["challenge"],
        ),
    ] = ""

    def __post_init__(self) -> None:
        if bool(self.query) == bool(self.body):
            raise ValueError("give query (asked by GET) or body (posted), one of them")
        if bool(self.token_query) != bool(self.token):
            raise ValueError("token_query and token belong together")
        if self.body and self.token_query:
            raise ValueError("a posted challenge is signed; token_query is for query")

    def __repr__(self) -> str:
        return "ChallengeConfig()"


class WebhookConfig(Section, frozen=True):
    """Webhooks of another service, at the process's own server (server.listen): one source for each service."""

    preset: Annotated[
        Preset | None,
        Meta(
            description="Whose webhooks: gives signature, map and form_field, each of which may be given in its place."
        ),
    ] = None
    secrets: Annotated[
        list[str],
        Meta(
            description="Secrets that requests may be signed with: the one of now, and the former ones while it is replaced. Without any,"
            " requests are taken from this machine only.",
            examples=[["${STRIPE_SECRET}"]],
        ),
    ] = msgspec.field(default_factory=list[str])
    path: Annotated[
        str, Meta(description="Path of the requests. Default: /webhooks/NAME.", examples=["/hooks/crm"])
    ] = ""
    signature: Annotated[Signing | None, Meta(description="How requests are signed.")] = None
    challenge: Annotated[
        ChallengeConfig | None, Meta(description="What the service asks before it sends anything.")
    ] = None
    map: Annotated[list[Rule], Meta(description="What a body becomes: the first rule that fits says it.")] = (
        msgspec.field(default_factory=list[Rule])
    )
    others: Annotated[
        Literal["quarantine", "ignore"], Meta(description="What becomes of a body that no rule fits.")
    ] = "quarantine"
    each: Annotated[
        Place, Meta(description='Place of an array in the body, each element of which is mapped alone; ".": the body.')
    ] = ""
    form_field: Annotated[
        str, Meta(description="Field that holds the JSON, where the body is a form.", examples=["payload"])
    ] = ""
    max_body: Annotated[Size, Meta(description="Largest body of a request; beyond it 413. Default: 10MiB.")] = (
        msgspec.field(default_factory=lambda: Size(10 << 20))
    )
    max_event: Annotated[
        Size, Meta(description="Largest event; a larger one becomes a dead letter. Default: 1MiB.")
    ] = msgspec.field(default_factory=lambda: Size(1 << 20))

    def __post_init__(self) -> None:
        if self.path and (_PATH.fullmatch(self.path) is None or _OURS.fullmatch(self.path)):
            raise ValueError(f'path "{self.path}" is no path of its own; write one such as /hooks/crm')
        if self.preset is None and not self.map:
            raise ValueError("give map, which says what a body becomes, or a preset")
        signing = self.signing()
        if self.secrets and signing is None:
            raise ValueError("give signature, which says how the secrets are used, or a preset")
        if self.signature is not None and not self.secrets:
            raise ValueError('a signature needs secrets, such as ["${SECRET}"]')
        if signing is not None:
            Verifier(signing, self.secrets)

    def __repr__(self) -> str:
        return "WebhookConfig()"

    def signing(self) -> Signing | None:
        return self.signature or (None if self.preset is None else preset(self.preset).signature)

    def rules(self) -> tuple[Rule, ...]:
        return tuple(self.map or (() if self.preset is None else preset(self.preset).map))

    def field_of_form(self) -> str:
        return self.form_field or ("" if self.preset is None else preset(self.preset).form_field)


class PresetFile(Section, frozen=True):
    """A file of webhook_presets/."""

    signature: Signing
    map: list[Rule]
    form_field: str = ""


_read: dict[str, PresetFile] = {}


def preset(name: Preset) -> PresetFile:
    """A shipped preset, read once."""
    if name not in _read:
        no_variables: dict[str, Any] = {}
        _read[name] = load_part(_FOLDER / f"{name}.yaml", PresetFile, no_variables)
    return _read[name]


__all__ = ["PresetFile", "WebhookConfig", "preset"]
