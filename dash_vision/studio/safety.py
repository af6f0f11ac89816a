"""Who may ask for what: the host that a request is made out to, the site that it comes from, the password.

A page of another site can make a browser send requests to 127.0.0.1, and a name that its owner points to 127.0.0.1 can
make it read the answers. So a request has to be made out to this server by an address, and one that changes something
has to come from a page of this server.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

LOCAL = ("127.0.0.1", "localhost", "[::1]")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}
_WAIT = 1.0  # seconds after a wrong password


class Guard:
    """In front of the pages. port: the server's own. listening: whether other machines may ask. password: asked for by
    the browser's own form, with any user name; None where none is needed."""

    def __init__(self, app: App, port: int, listening: bool, password: str | None) -> None:
        self.app, self.port, self.listening, self.password = app, port, listening, password

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope["method"], headers)
        if "\0" in scope["path"]:  # what no file's name has
            refusal = PlainTextResponse("There is no such page here.", 404)
        if refusal is None and not self._knows(headers):
            if "authorization" in headers:
                await asyncio.sleep(_WAIT)
            ask = {"www-authenticate": 'Basic realm="dash-vision studio", charset="UTF-8"'}
            refusal = PlainTextResponse("Give the password of this page; the user name can be anything.", 401, ask)
        if refusal is not None:
            await refusal(scope, receive, send)
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, guarded)

    def _refusal(self, method: str, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return PlainTextResponse(
                "This page answers only under the address that it was started with, such as "
                f"http://127.0.0.1:{self.port}.",
                421,
            )
        if method not in ("GET", "HEAD") and headers.get("origin", "").lower() != f"http://{host}".lower():
            return PlainTextResponse("Only the page itself may change something.", 403)
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not _is_a_visit(method, headers):
            return PlainTextResponse("Other sites may not ask this page for anything.", 403)
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this server by an address, or by the machine's own name."""
        if self.port == 80 and not host.endswith(":80"):  # browsers leave it out
            host += ":80"
        name, _, port = host.rpartition(":")
        if port != str(self.port):
            return False
        if name.lower() in LOCAL:
            return True
        if not self.listening:
            return False
        own = socket.gethostname().lower()
        return _is_address(name.strip("[]")) or name.lower() in (own, f"{own}.local", socket.getfqdn().lower())

    def _knows(self, headers: Headers) -> bool:
        if self.password is None:
            return True
        kind, _, coded = headers.get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(coded, validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
        return kind.lower() == "basic" and secrets.compare_digest(given.encode(), self.password.encode())


def _is_a_visit(method: str, headers: Headers) -> bool:
    """A link on another site that a user follows."""
    return (
        method == "GET" and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
