"""`dash-vision studio`: look at what was given, and serve the page until Ctrl-C."""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..files.errors import InputError
from ..runs.faults import fail, printable_streams, report
from ..runs.settings import SentenceParser
from ..runs.words import underscored

PASSWORD = "DASH_VISION_STUDIO_PASSWORD"
_SHORTEST = 8  # characters of a password
_NEEDED = ("starlette", "uvicorn", "jinja2", "psutil")
DESCRIPTION = "A page in the browser on which you train, look at results and compare runs."
EPILOG = f"""examples:
  dash-vision studio --runs my-runs
  dash-vision studio --runs my-runs --pictures photos --bases models
  {PASSWORD}=... dash-vision studio --listen 0.0.0.0

A closed page or a stopped studio stops no training: start it again, and it finds them in the folder of runs.
"""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = SentenceParser(
        prog="dash-vision studio",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="of the page (default: 7860)")
    parser.add_argument(
        "--runs", type=Path, default=Path("dash-runs"), metavar="DIR", help="folder of the runs (default: dash-runs)"
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="folder in which each folder holds the pictures of a subject (default: RUNS/pictures)",
    )
    parser.add_argument(
        "--bases", type=Path, nargs="+", default=[], metavar="DIR", help="folders with bases to choose from"
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        help=f"answer other machines too, at this address of yours; the variable {PASSWORD} has to hold a password "
        "(default: 127.0.0.1, this machine alone)",
    )
    parser.add_argument("--no_browser", action="store_true", help="do not open the page in a browser")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C. The exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with printable_streams():
        args = make_parser().parse_args(underscored(words))
        try:
            return _serve(args)
        except InputError as error:
            return fail(error, 2)
        except Exception as error:
            return fail(report(error, None, words), 1)


def _serve(args: argparse.Namespace) -> int:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the page needs {', '.join(missing)}: pip install 'dash-vision[studio]'")
    password = os.environ.get(PASSWORD) or None
    _check_address(args.listen, args.port, password)
    runs, pictures, bases = _folders(args)
    import uvicorn

    from .pages import Folders, make_app

    host = args.listen or "127.0.0.1"
    app = make_app(Folders(runs, pictures, bases), args.port, listening=args.listen is not None, password=password)
    config = uvicorn.Config(app, host=host, port=args.port, log_level="error", access_log=False, server_header=False)
    server = uvicorn.Server(config)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, args.port), family=family)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise InputError(f"cannot answer at {host}, port {args.port} ({reason}); give another --port") from None
    address = f"http://{f'[{host}]' if ':' in host else host}:{args.port}"
    print(f"the page is at {address}, runs are in {runs}; Ctrl-C ends the page and no training", flush=True)
    if not args.no_browser and args.listen is None:
        webbrowser.open(address)
    with suppress(KeyboardInterrupt):  # uvicorn has closed the server, and gives the signal on
        server.run(sockets=[listener])
    return 0


def _check_address(listen: str | None, port: int, password: str | None) -> None:
    if not 1 <= port <= 65535:
        raise InputError(f"--port is {port}; it takes a number from 1 to 65535")
    if listen is not None and password is None:
        raise InputError(f"--listen lets other machines in and needs a password; put one into the variable {PASSWORD}")
    if password is not None and len(password) < _SHORTEST:
        raise InputError(f"the password in {PASSWORD} has {len(password)} characters; give at least {_SHORTEST}")


def _folders(args: argparse.Namespace) -> tuple[Path, Path, list[Path]]:
    """The folders that the page may look into, made where they are the page's own."""
    runs = args.runs.expanduser().absolute()
    pictures = (args.pictures or runs / "pictures").expanduser().absolute()
    for flag, folder in (("--runs", runs), ("--pictures", pictures)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {flag} {folder} ({error.strerror}); give another folder") from None
    bases = [path.expanduser().absolute() for path in args.bases]
    for folder in bases:
        if not folder.is_dir():
            raise InputError(f"there is no folder --bases {folder}; check the name")
    return runs, pictures, bases
