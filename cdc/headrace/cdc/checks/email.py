"""One address: its syntax, its domain's mail servers, or what a verifier says. email-validator and dnspython behind it."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import msgspec

from headrace.cdc.checks.config import EmailCheckConfig, Verdict
from headrace.cdc.errors import ConfigError

_MOST_CHARS = 320  # RFC 3696, erratum 1690: 64 of the local part, the sign, 255 of the domain
_MOST_BYTES = 64 << 10


class Answer(msgspec.Struct, frozen=True):
    """reason: in a word; never the address."""

    verdict: Verdict
    reason: str


class EmailCheck:
    """``of`` may be asked many times at once; ``close`` ends it."""

    def __init__(self, config: EmailCheckConfig) -> None:
        """Raises ConfigError when the library is missing."""
        self._config = config
        self._session: Any = None
        try:
            import dns.resolver
            import email_validator
        except ImportError as error:
            raise ConfigError(
                "checks.email needs a library", problems=("checks.email: headrace[checks] isn't installed",),
                advice="pip install 'headrace[checks]'",
            ) from error  # fmt: skip
        self._library = email_validator
        self._resolver = dns.resolver.Resolver(configure=config.nameserver is None)
        if config.nameserver is not None:
            address, _, port = config.nameserver.partition(":")
            self._resolver.nameservers = [address]
            self._resolver.port = int(port or 53)
        self._resolver.lifetime = config.timeout.s
        self._resolver.cache = dns.resolver.LRUCache(10_000)

    async def of(self, address: str) -> Answer:
        try:
            return await asyncio.wait_for(self._of(address), self._config.timeout.s)
        except TimeoutError:
            return Answer("unknown", "too late")

    async def _of(self, address: str) -> Answer:
        library = self._library
        if len(address) > _MOST_CHARS:
            return Answer("invalid", "syntax")
        try:
            found = library.validate_email(address, check_deliverability=False)
        except library.EmailSyntaxError:
            return Answer("invalid", "syntax")
        if self._config.verifier is not None:
            return await self._verified(found.normalized)
        if self._config.method == "syntax":
            return Answer("valid", "syntax")
        try:
            found = await asyncio.to_thread(
                library.validate_email, address, check_deliverability=True, dns_resolver=self._resolver
            )
        except library.EmailUndeliverableError:
            return Answer("invalid", "domain takes no mail")
        if not getattr(found, "mx", None):
            return Answer("unknown", "DNS doesn't answer")
        return Answer("valid", "domain takes mail")

    async def _verified(self, address: str) -> Answer:
        verifier = self._config.verifier
        assert verifier is not None
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession()
        try:
            async with self._session.get(
                verifier.url.replace("{email}", quote(address, safe="")),
                headers=verifier.headers,
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    return Answer("unknown", f"verifier answered {response.status}")
                said: Any = msgspec.json.decode(await response.content.read(_MOST_BYTES))
        except (aiohttp.ClientError, OSError, msgspec.DecodeError) as error:
            return Answer("unknown", f"verifier: {type(error).__name__}")
        for part in verifier.verdict.split("."):
            said = said.get(part) if isinstance(said, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        word = str(said).lower() if isinstance(said, bool) else str(said)  # pyright: ignore[reportUnknownArgumentType]
        if word in verifier.valid:
            return Answer("valid", "verifier")
        return Answer("invalid" if word in verifier.invalid else "unknown", "verifier")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        self._session = None


__all__ = ["Answer", "EmailCheck"]
