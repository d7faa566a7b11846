"""AWS Signature Version 4 for a JSON POST without query: headers in, Authorization out.

Follows "Create a signed AWS API request" of the IAM User Guide. The key of a day is derived once and kept; the rest is two hashes and one
HMAC a request. tests/sinks/test_personalize_oracle.py holds it against botocore, byte for byte.
"""

from __future__ import annotations

import hmac
import time
from hashlib import sha256
from typing import Final

import msgspec

_TERMINATOR: Final = "aws4_request"
CONTENT_TYPE: Final = "application/json"


class Credentials(msgspec.Struct, frozen=True):
    """token: of temporary credentials, "" for none. The repr hides all but the access key's last four letters."""

    access_key: str
    secret_key: str
    token: str = ""

    def __repr__(self) -> str:
        return f"Credentials(...{self.access_key[-4:]})"


class Signer:
    """Signs requests to one host, region and service."""

    def __init__(self, host: str, region: str, service: str, *, content_type: str = CONTENT_TYPE) -> None:
        self._content_type = content_type
        self._host = host
        self._region = region
        self._service = service
        self._kept: tuple[str, str, bytes] = ("", "", b"")
        """Day, secret and the key derived from them."""

    def headers(
        self, credentials: Credentials, path: str, body: bytes, now_s: float, *, target: str = ""
    ) -> dict[str, str]:
        """All headers of the request but Host's own. path: as sent, without query. now_s: seconds since 1970 UTC. target: X-Amz-Target, "" = none."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
        day = stamp[:8]
        token = credentials.token
        signed = "content-type;host;x-amz-date;x-amz-security-token" if token else "content-type;host;x-amz-date"
        if target:
            signed += ";x-amz-target"
        canonical = (
            f"POST\n{path}\n\ncontent-type:{self._content_type}\nhost:{self._host}\nx-amz-date:{stamp}\n"
            f"{f'x-amz-security-token:{token}' + chr(10) if token else ''}{f'x-amz-target:{target}' + chr(10) if target else ''}\n{signed}\n{sha256(body).hexdigest()}"
        )
        scope = f"{day}/{self._region}/{self._service}/{_TERMINATOR}"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._key(credentials.secret_key, day), text.encode(), "sha256").hex()
        headers = {
            "Content-Type": self._content_type,
            "X-Amz-Date": stamp,
            "Authorization": f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={signed}, "
            f"Signature={signature}",
        }
        if token:
            headers["X-Amz-Security-Token"] = token
        if target:
            headers["X-Amz-Target"] = target
        return headers

    def _key(self, secret: str, day: str) -> bytes:
        if self._kept[:2] != (day, secret):
            key = f"AWS4{secret}".encode()
            for part in (day, self._region, self._service, _TERMINATOR):
                key = hmac.digest(key, part.encode(), "sha256")
            self._kept = (day, secret, key)
        return self._kept[2]


__all__ = ["CONTENT_TYPE", "Credentials", "Signer"]
