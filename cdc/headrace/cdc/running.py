"""Asks the running process, over its own HTTP server: for the commands that show or change what it does."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from typing import Any, cast

import msgspec

from headrace.cdc.config import Config
from headrace.cdc.errors import RequestRefused, ServerError
from headrace.cdc.listen import ListenAddress, reachable_url

_TIMEOUT_S = 5.0


def ask(config: Config, path: str, body: object = None, *, timeout_s: float = _TIMEOUT_S) -> dict[str, Any] | None:
    """Its answer, a JSON object; None when nothing listens at server.listen. body: encoded as JSON, makes it a POST.

    Raises RequestRefused with the process's own words when it can't do what was asked, and ServerError when something else answers
    there, or nothing in time.
    """
    address = ListenAddress.parse(config.server.listen)
    if address.port == 0:
        return None  # a free port that only the process itself knows
    request = urllib.request.Request(f"{reachable_url(address)}{path}")  # noqa: S310 - the scheme is ours
    if body is not None:
        request.data = msgspec.json.encode(body)
        request.add_header("Content-Type", "application/json")
    scopes = config.server.scopes
    # The first that may everything, else the first.
    names = sorted(config.server.tokens, key=lambda name: name in scopes and "admin" not in scopes[name])
    token = config.server.tokens[names[0]] if names else None
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    # No proxy of the environment stands between this machine and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            document = msgspec.json.decode(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(config, error) from error
    except (TimeoutError, urllib.error.URLError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ConnectionRefusedError):
            return None
        if isinstance(reason, TimeoutError):
            raise ServerError(
                f"the server at {address} didn't answer within {timeout_s:.0f} s",
                advice="look whether the headrace process is stuck or its machine overloaded",
            ) from error
        raise ServerError(
            f"the server at {address} can't be reached: {type(reason).__name__}", advice="check server.listen"
        ) from error
    except (msgspec.DecodeError, http.client.HTTPException, ConnectionError) as error:
        raise not_ours(config) from error
    if not isinstance(document, dict):
        raise not_ours(config)
    return cast(dict[str, Any], document)


def _refusal(config: Config, error: urllib.error.HTTPError) -> ServerError | RequestRefused:
    if error.code == 401:
        return ServerError(
            f"the server at {ListenAddress.parse(config.server.listen)} doesn't know the first token of server.tokens",
            advice="give this command the same configuration and environment as the running process",
        )
    try:
        said = msgspec.json.decode(error.read(), type=dict[str, Any])
        return RequestRefused(str(said["error"]), advice=str(said["advice"]))
    except (msgspec.DecodeError, KeyError, http.client.HTTPException, OSError):
        return not_ours(config)


def not_ours(config: Config) -> ServerError:
    """What answers isn't headrace."""
    return ServerError(
        f"what answers at {ListenAddress.parse(config.server.listen)} is no headrace",
        advice="check server.listen, and what else listens on that port",
    )
