"""How the page's addresses answer: with what was asked for, or with the sentence of what is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..files.errors import InputError
from ..pictures.captions import shown
from ..pictures.decode import Refused
from .pictures import LARGEST
from .settings import flag_of

Endpoint = Callable[[Any, Request], Any]
_MOST_TEXT = 256 * 1024  # bytes of a form


def acts(function: Endpoint) -> Any:
    """An address that does something with a form of JSON: its answer, or the sentence of what is wrong."""

    @wraps(function)
    async def endpoint(self: Any, request: Request) -> Response:
        try:
            form = await _read_json(request)
            request.scope["form"] = form
            return JSONResponse(await run_in_threadpool(function, self, request) or {})
        except InputError as error:
            return JSONResponse({"error": str(error), "flag": flag_of(str(error))}, 400)
        except OSError as error:
            return JSONResponse({"error": f"this cannot be done ({error.strerror or error}); check the disk"}, 400)

    return endpoint


def shows(function: Endpoint) -> Any:
    """An address that shows something: it, or a page with the sentence of what is wrong."""

    @wraps(function)
    async def endpoint(self: Any, request: Request) -> Response:
        try:
            answer: Response = await run_in_threadpool(function, self, request)
            return answer
        except (InputError, Refused, OSError) as error:
            return await run_in_threadpool(self.page, "problem.html", 404, problem=str(error))

    return endpoint


async def _read_json(request: Request) -> dict[str, str]:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST_TEXT:
            raise InputError("the form is longer than this page takes; shorten its texts")
    try:
        form = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        form = None
    if not isinstance(form, dict) or not all(isinstance(value, str) for value in form.values()):
        raise InputError("the page sent a form that cannot be read; load it again")
    return form


def form_of(request: Request) -> dict[str, str]:
    """The form that an address of `acts` was given."""
    form: dict[str, str] = request.scope["form"]
    return form


async def save_body(request: Request, file: Path, name: str) -> None:
    """Write a request's body to a file. name: of the picture in it. Raises InputError where it is too long."""
    size = 0
    with open(file, "wb") as out:
        async for part in request.stream():
            size += len(part)
            if size > LARGEST:
                raise InputError(f"{shown(name)} is larger than {LARGEST >> 20} MB; make it smaller")
            await asyncio.to_thread(out.write, part)


def number_of(form: dict[str, str], name: str, usual: float, least: float, most: float) -> float:
    """A number of a form, `usual` where the field is empty. Raises InputError."""
    return _read(float, form, name, usual, least, most)


def whole_of(form: dict[str, str], name: str, usual: int, least: int, most: int) -> int:
    """The same, of whole numbers."""
    return int(_read(int, form, name, usual, least, most))


def _read(kind: type, form: dict[str, str], name: str, usual: Any, least: Any, most: Any) -> Any:
    text = form.get(name, "").strip()
    try:
        value = kind(text) if text else usual
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"the {name} is {shown(text)}; it takes {what} from {least:g} to {most:g}")
    return value
