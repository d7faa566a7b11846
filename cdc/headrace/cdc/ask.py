"""Asking the running process from a command: its HTTP server, by the same configuration."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from typing import Any, cast

import msgspec

from headrace.cdc.config import Config
from headrace.cdc.errors import ServerError
from headrace.cdc.listen import ListenAddress, reachable_url

_TIMEOUT_S = 5.0


def ask(
    config: Config, path: str, body: bytes | None = None, *, timeout_s: float = _TIMEOUT_S
) -> dict[str, Any] | None:
    """The running process's JSON answer; None when nothing listens at server.listen. Raises ServerError.

    body: sent by POST; None: GET.
    """
    address = ListenAddress.parse(config.server.listen)
    if address.port == 0:
        return None  # a free port that only the process itself knows
    request = urllib.request.Request(f"{reachable_url(address)}{path}", data=body)  # noqa: S310 - the scheme is ours
    token = next(iter(config.server.tokens.values()), None)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    # No proxy of the environment stands between this machine and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            document = msgspec.json.decode(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 401:
                raise ServerError(
                    f"the server at {address} doesn't know the first token of server.tokens",
                    advice="give this command the same configuration and environment as the running process",
                ) from error
            raise not_ours(address) from error
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
        raise not_ours(address) from error
    if not isinstance(document, dict):
        raise not_ours(address)
    return cast(dict[str, Any], document)


def not_ours(address: ListenAddress) -> ServerError:
    """What answers isn't a headrace."""
    return ServerError(
        f"what answers at {address} is no headrace", advice="check server.listen, and what else listens on that port"
    )
