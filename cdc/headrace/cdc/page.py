"""A page of our own: one HTML file with its style and script inside, and a policy that lets nothing else in.

``/* page.css */`` inside its style stands for the style that all pages share.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from aiohttp import web

_SHARED = Path(__file__).with_name("page.css")
_MARK = b"/* page.css */"


class Page:
    """Read once; answers with its Content-Security-Policy: its own inline style and script by hash, nothing else."""

    def __init__(self, path: Path) -> None:
        self._body = path.read_bytes().replace(_MARK, _SHARED.read_bytes())
        self._policy = (
            f"default-src 'none'; script-src {self._hashes(b'script')}; style-src {self._hashes(b'style')}; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    async def answer(self, request: web.Request) -> web.Response:
        """The handler of its route."""
        return web.Response(
            body=self._body,
            content_type="text/html",
            charset="utf-8",
            headers={"Content-Security-Policy": self._policy},
        )

    def _hashes(self, tag: bytes) -> str:
        found = re.findall(rb"<%s>(.*?)</%s>" % (tag, tag), self._body, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found)


__all__ = ["Page"]
