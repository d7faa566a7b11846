"""Where AWS credentials come from: the configuration, the environment, a profile's file; botocore's own chain where it is installed.

The first three are a look at variables and an INI file. What needs more (web identity, container and instance roles, SSO, their renewal)
is left to botocore, which is imported only then: ``pip install headrace[aws]``.
"""

from __future__ import annotations

import asyncio
import configparser
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from headrace.cdc.errors import SinkError
from headrace.sinks.sigv4 import Credentials

_KEEP_S: Final = 60.0
"""How long an answer of botocore is kept; it renews temporary credentials itself, a quarter of an hour before they end."""


class CredentialSource:
    """Asked before each request; cheap then. static: from the configuration. profile: "" = the environment's."""

    def __init__(
        self,
        static: Credentials | None = None,
        profile: str = "",
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._static = static
        self._profile = profile
        self._environ = environ
        self._clock = clock
        self._found: Credentials | None = None
        self._until_s = 0.0
        self._session: Any = None
        self._lock = asyncio.Lock()

    async def current(self) -> Credentials:
        """Raises SinkError when there are none."""
        if self._static is not None:
            return self._static
        if self._found is not None and self._clock() < self._until_s:
            return self._found
        async with self._lock:
            if self._found is None or self._clock() >= self._until_s:
                found, is_fixed = await self._look()
                self._found = found
                self._until_s = float("inf") if is_fixed else self._clock() + _KEEP_S
            return self._found

    def forget(self) -> None:
        """They were refused as outdated: look again before the next request."""
        self._found = self._session = None

    async def _look(self) -> tuple[Credentials, bool]:
        found = from_environment(self._environ) if not self._profile else None
        if found is None:
            found = from_profile(self._profile or self._environ.get("AWS_PROFILE", "default"), self._environ)
        if found is not None:
            return found, True
        return await asyncio.to_thread(self._ask_botocore), False

    def _ask_botocore(self) -> Credentials:
        advice = "set access_key and secret_key, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile; for roles install headrace[aws]"
        try:
            import botocore.session  # pyright: ignore[reportMissingTypeStubs]  # slow, and most installations do without
        except ImportError as error:
            raise SinkError("no AWS credentials were found, and botocore isn't installed", advice=advice) from error
        if self._session is None:
            self._session = botocore.session.Session(profile=self._profile or None)
        found: Any = self._session.get_credentials()
        if found is None:
            raise SinkError("no AWS credentials were found", advice=advice)
        frozen: Any = found.get_frozen_credentials()
        return Credentials(str(frozen.access_key), str(frozen.secret_key), str(frozen.token or ""))


def from_environment(environ: Mapping[str, str]) -> Credentials | None:
    """AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN."""
    access, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    return Credentials(access, secret, environ.get("AWS_SESSION_TOKEN", "")) if access and secret else None


def from_profile(profile: str, environ: Mapping[str, str]) -> Credentials | None:
    """Keys that stand in ~/.aws/credentials or ~/.aws/config, or the files that the environment names; None when they don't."""
    home = Path(environ.get("HOME", "~")).expanduser() / ".aws"
    places = [
        (Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"), profile),
        (
            Path(environ.get("AWS_CONFIG_FILE") or home / "config"),
            profile if profile == "default" else f"profile {profile}",
        ),
    ]
    for path, section in places:
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError) as error:
            raise SinkError(
                f"the AWS file {path} can't be read ({type(error).__name__})", advice="correct the file"
            ) from error
        if parser.has_section(section):
            keys = dict(parser.items(section))
            if keys.get("aws_access_key_id") and keys.get("aws_secret_access_key"):
                return Credentials(
                    keys["aws_access_key_id"], keys["aws_secret_access_key"], keys.get("aws_session_token", "")
                )
    return None


__all__ = ["CredentialSource", "from_environment", "from_profile"]
