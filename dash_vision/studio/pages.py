"""The addresses of the page: what each shows and what each does."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ..files.errors import InputError
from ..miniature import EMBEDDED
from ..pictures.captions import shown
from . import pictures as pics
from . import showing
from .answers import acts, form_of, number_of, save_body, shows, whole_of
from .bases import choices
from .found import FoundRun, is_run, log_of
from .launching import Helpers, Trainings, shown_command, value_of, without_flags
from .places import Place, safe_name
from .safety import Guard
from .settings import CHECKED, FEW, NewRun, check_prompt, form_fields, read_form

REPORTS = "reports"
_MOST_SHOWN = 12  # pictures that a run learns from, on its page
_PREVIEW = "NAME"  # of a run that is not there yet
# A report holds a script of its own, and is a page that may do nothing here.
_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
)


@dataclass(frozen=True)
class Folders:
    """Those that were given at the start; nothing else is shown or written to."""

    runs: Path
    pictures: Path
    bases: list[Path]

    @property
    def roots(self) -> list[Path]:
        """All of them."""
        return [self.runs, self.pictures, *self.bases]


def make_app(folders: Folders, port: int, listening: bool = False, password: str | None = None) -> Guard:
    """The page behind its guard."""
    return Guard(Studio(folders).app, port, listening, password)


class Studio:
    """The page over its folders."""

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self.runs, self.pictures = Place(folders.runs, "run"), Place(folders.pictures, "folder of pictures")
        self.trainings, self.helpers = Trainings(), Helpers()
        self.templates = Environment(
            loader=PackageLoader("dash_vision.studio"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self.templates.filters["part"] = lambda name: quote(str(name), safe="")  # of an address
        routes = [
            Route("/", self.home),
            Route("/new", self.new),
            Route("/check", self.check, methods=["POST"]),
            Route("/plan", self.plan, methods=["POST"]),
            Route("/helper", self.helper),
            Route("/pictures", self.make_pictures, methods=["POST"]),
            Route("/pictures/{folder}/list", self.list_pictures),
            Route("/pictures/{folder}/thumb", self.thumb),
            Route("/pictures/{folder}/upload", self.upload, methods=["PUT"]),
            Route("/pictures/{folder}/caption", self.caption, methods=["POST"]),
            Route("/pictures/{folder}/aside", self.aside, methods=["POST"]),
            Route("/runs", self.start, methods=["POST"]),
            Route("/runs/{run}", self.show_run),
            Route("/runs/{run}/state", self.state),
            Route("/runs/{run}/sheet", self.sheet),
            Route("/runs/{run}/tile/{row}/{column:int}", self.tile),
            Route("/runs/{run}/file/{key}", self.download),
            Route("/runs/{run}/drawn/{batch}/{name}", self.drawn),
            Route("/runs/{run}/stop", self.stop, methods=["POST"]),
            Route("/runs/{run}/resume", self.resume, methods=["POST"]),
            Route("/runs/{run}/finish", self.finish, methods=["POST"]),
            Route("/runs/{run}/lora", self.lora, methods=["POST"]),
            Route("/runs/{run}/draw", self.draw, methods=["POST"]),
            Route("/runs/{run}/checkpoints", self.checkpoints, methods=["POST"]),
            Route("/compare", self.compare),
            Route("/reports", self.make_report, methods=["POST"]),
            Route("/reports/{name}", self.report),
            Mount("/static", StaticFiles(packages=[("dash_vision.studio", "static")])),
        ]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: self._missing})

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page out of a template; whatever it shows is escaped there."""
        text = self.templates.get_template(template).render(**values)
        return HTMLResponse(text, status)

    async def _missing(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        sentence = "There is no such page here." if status == 404 else "This page cannot be asked for that."
        return self.page("problem.html", status, problem=sentence)

    # -- the list

    def all_runs(self) -> list[FoundRun]:
        """Every run in the folder: those at work first, then the latest."""
        folders = [self.runs.root / name for name in self.runs.names()]
        runs = [self.trainings.look(folder) for folder in folders if is_run(folder)]
        return sorted(runs, key=lambda run: (run.state != "running", -_time(run)))

    @shows
    def home(self, request: Request) -> Response:
        runs = self.all_runs()
        if not runs:
            return RedirectResponse("/new")
        cards = [{"run": run, "told": showing.state_of(run), "samples": showing.samples_of(run)} for run in runs]
        return self.page("home.html", cards=cards, at="runs", folder=str(self.folders.runs))

    # -- a new run

    @shows
    def new(self, request: Request) -> Response:
        name = request.query_params.get("pictures", "")
        folder = self.pictures.find(name) if name else None
        folders = [self.pictures.root / other for other in self.pictures.names()]
        fields = form_fields()
        few = [f for wanted in FEW for f in fields if f.name == wanted]
        boxes = [f for f in fields if f.name in CHECKED]
        groups: dict[str, list[Any]] = {}
        for field in fields:
            if field not in few and field not in boxes:
                groups.setdefault(field.group, []).append(field)
        return self.page(
            "new.html",
            at="new",
            name=name,
            others=[n for n, count in pics.usable_count(folders).items() if count and n != name],
            contents=pics.look(folder, 64, False) if folder else None,
            busy=self._busy_with(folder),
            bases=choices(self.folders.bases),
            embedded=EMBEDDED,
            few=few,
            boxes=boxes,
            groups=groups,
        )

    def _busy_with(self, folder: Path | None) -> str:
        """The run that trains on the pictures in a folder just now; "" where none does."""
        runs = self.all_runs() if folder else []
        return next((run.name for run in runs if run.state == "running" and self._learns_from(run) == folder), "")

    def _learns_from(self, run: FoundRun) -> Path | None:
        """The folder of a run's pictures, if it is one of those that were given."""
        text = value_of(run.words, "instance_data_dir") or value_of(run.words, "instance_data")
        place = Path(run.directory) / Path(text) if text else None
        known = [self.pictures.root / name for name in self.pictures.names()]
        return next((folder for folder in known if place is not None and folder.resolve() == place.resolve()), None)

    def _folder(self, request: Request, changes: bool = False) -> Path:
        folder = self.pictures.find(request.path_params["folder"])
        if changes and (busy := self._busy_with(folder)):
            raise InputError(
                f"the run {busy} is training on these pictures, and could not be resumed after a change; wait for it"
            )
        return folder

    @acts
    def make_pictures(self, request: Request) -> Any:
        form = form_of(request)
        if form.get("example"):
            folder = self.pictures.make("cat")
            pics.draw_example(folder)
        else:
            folder = self.pictures.make(safe_name(form.get("name", "")) or "pictures")
        return {"name": folder.name, "address": f"/new?pictures={quote(folder.name, safe='')}"}

    @shows
    def list_pictures(self, request: Request) -> Response:
        folder = self._folder(request)
        side = request.query_params.get("resolution", "")
        resolution = int(side) if side.isascii() and side.isdigit() and 16 <= int(side) <= 4096 else 64
        contents = pics.look(folder, resolution, request.query_params.get("buckets") == "true")
        return self.page("pictures.html", contents=contents, name=folder.name, busy=self._busy_with(folder))

    @shows
    def thumb(self, request: Request) -> Response:
        path = pics.find(self._folder(request), request.query_params.get("name", ""))
        return Response(pics.thumbnail(str(path), path.stat().st_mtime_ns), media_type="image/jpeg")

    async def upload(self, request: Request) -> Response:
        """One file as the body of a request, its name beside it."""
        name = request.query_params.get("name", "picture")
        try:
            folder = await run_in_threadpool(self._folder, request, True)
            with tempfile.TemporaryDirectory(prefix="dash-vision-studio-") as place:
                file = Path(place) / "upload"
                await save_body(request, file, name)
                return JSONResponse({"name": await run_in_threadpool(pics.take_in, folder, name, file)})
        except InputError as error:
            return JSONResponse({"error": str(error)}, 400)
        except OSError as error:
            return JSONResponse({"error": f"cannot keep {shown(name)} ({error.strerror}); check the disk"}, 400)
        except ClientDisconnect:
            return Response(status_code=400)

    @acts
    def caption(self, request: Request) -> Any:
        form = form_of(request)
        pics.set_caption(self._folder(request, changes=True), form.get("name", ""), form.get("text", ""))

    @acts
    def aside(self, request: Request) -> Any:
        pics.put_aside(self._folder(request, changes=True), form_of(request).get("name", ""))

    def _asked(self, form: dict[str, str], output: Path) -> tuple[NewRun, Path]:
        folder = self.pictures.find(form.get("pictures", "")) if form.get("pictures") else self.pictures.root / _PREVIEW
        return read_form(form, folder, output, self.folders.roots), folder

    @acts
    def check(self, request: Request) -> Any:
        """What the form comes to: the command and the prompts."""
        form = form_of(request)
        name = safe_name(form.get("name", "")) or safe_name(form.get("kind", "")) or _PREVIEW
        asked, _ = self._asked(form, self.runs.root / name)
        return {
            "command": shown_command("dreambooth", asked.words),
            "instance": asked.config.instance_prompt,
            "class": asked.config.class_prompt or f"a photo of {' '.join(form.get('kind', '').split())}",
            "prompts": asked.prompts,
            "notes": asked.config.notes,
        }

    @acts
    def plan(self, request: Request) -> Any:
        form = {"kind": "thing", "subject": "sks", **{name: text for name, text in form_of(request).items() if text}}
        asked, _ = self._asked(form, self.runs.root / _PREVIEW)
        words = without_flags(asked.words, ["--instance_data_dir", "--output_dir"])
        here = ["--no_gpu"] if not _has_gpu() else []
        self.helpers.start("plan", "the plan", ["plan", *words, *here])
        return {"key": "plan"}

    @acts
    def start(self, request: Request) -> Any:
        form = form_of(request)
        folder = self.pictures.find(form.get("pictures", ""))
        contents = pics.look(folder, 64, False)
        if contents.problem:
            raise InputError(contents.problem)
        wanted = safe_name(form.get("name", "")) or safe_name(form.get("kind", "")) or folder.name
        self._asked(form, self.runs.root / wanted)  # whatever is wrong is said before there is a folder
        output = self.runs.make(wanted)
        asked, _ = self._asked(form, output)
        self.trainings.start(output, asked.words)
        return {"address": _address(output.name)}

    # -- a run

    def _run(self, request: Request) -> FoundRun:
        return self.trainings.look(self.runs.find(request.path_params["run"]))

    @shows
    def show_run(self, request: Request) -> Response:
        run = self._run(request)
        lora = showing.same_with_lora(run, self.all_runs())
        drawing = self.helpers.look(f"draw {run.name}")
        folder = self._learns_from(run)
        files = pics.picture_files(folder)[:_MOST_SHOWN] if folder else []
        return self.page(
            "run.html",
            at="run",
            run=run,
            told=showing.state_of(run),
            samples=showing.samples_of(run) if run.state == "finished" else None,
            lora=lora,
            lora_samples=showing.samples_of(lora) if lora else None,
            method="LoRA-Dash" if run.record and run.record.method == "dash" else "LoRA",
            downloads=showing.downloads(run) if run.state == "finished" else [],
            drawn=showing.drawn_of(run),
            summary=showing.summary(run),
            measured=showing.measured_of(run),
            command=shown_command("dreambooth", run.words) if run.words else "",
            log=log_of(run.folder),
            title=showing.title_of(run),
            drawing=drawing is not None and drawing.poll() is None,
            draw_problem=drawing.sentence if drawing is not None and drawing.poll() else "",
            inputs=[path.name for path in files],
            inputs_in=folder.name if folder else "",
        )

    async def state(self, request: Request) -> Response:
        """What changes on the page of a run at work."""
        try:
            run = await run_in_threadpool(self._run, request)
        except InputError as error:
            return JSONResponse({"error": str(error)}, 404)
        return JSONResponse(await run_in_threadpool(self._state, run))

    def _state(self, run: FoundRun) -> dict[str, Any]:
        measured = self.templates.get_template("measured.html").render(measured=showing.measured_of(run))
        return {**showing.state_of(run), "log": log_of(run.folder), "measured": measured}

    @shows
    def sheet(self, request: Request) -> Response:
        """The contact sheet of all checkpoints."""
        run = self._run(request)
        if not showing.is_inside(run.folder, showing.SHEET):
            raise InputError(f"{run.name} has no contact sheet; let its checkpoints be drawn first")
        return FileResponse(run.folder / showing.SHEET, media_type="image/png")

    @shows
    def tile(self, request: Request) -> Response:
        params, sheet = request.path_params, request.query_params.get("sheet", showing.SAMPLES)
        picture = showing.tile(self._run(request), sheet, params["row"], params["column"])
        return Response(picture, media_type="image/png")

    @shows
    def download(self, request: Request) -> Response:
        run, key = self._run(request), request.path_params["key"]
        file = next((file for file in showing.downloads(run) if file.key == key), None)
        if file is None:
            raise InputError(f"{run.name} has no such file; look at its page")
        return FileResponse(file.path, media_type="application/octet-stream", filename=file.name)

    @shows
    def drawn(self, request: Request) -> Response:
        params = request.path_params
        path = showing.drawn_file(self._run(request), params["batch"], params["name"])
        return FileResponse(path, media_type="image/png")

    @acts
    def stop(self, request: Request) -> Any:
        self.trainings.stop(self._run(request).folder)

    @acts
    def resume(self, request: Request) -> Any:
        self.trainings.resume(self._run(request).folder)

    @acts
    def finish(self, request: Request) -> Any:
        self.trainings.finish_now(self._run(request).folder)

    @acts
    def lora(self, request: Request) -> Any:
        """The same run with plain LoRA, to compare."""
        run = self._run(request)
        if run.record is None or not run.words:
            raise InputError(f"{run.name} does not say by which command it was started; start the other run by that")
        output = self.runs.make(f"{run.name}-lora")
        more = ["--dash_k", "0", "--output_dir", str(output), "--max_train_steps", str(run.record.steps)]
        gone = ["--dash_lr", "--dash_selection", "--dash_eps", "--prelaunch_steps", "--num_train_epochs"]
        words = without_flags(run.words, [*more, *gone, "--resume_from_checkpoint"])
        directory = Path(run.directory) if Path(run.directory).is_dir() else None
        self.trainings.start(output, [*words, *more], directory)
        return {"address": _address(output.name)}

    @acts
    def draw(self, request: Request) -> Any:
        run, form = self._run(request), form_of(request)
        prompt = check_prompt(" ".join(form.get("prompt", "").split()), "the prompt")
        scale = number_of(form, "scale", 1.0, -2.0, 4.0)
        count = whole_of(form, "count", 1, 1, 8)
        seed = whole_of(form, "seed", 0, 0, 2**63 - 1) if form.get("seed", "").strip() else None
        out = run.folder / showing.DRAWN / time.strftime("%Y%m%d-%H%M%S")
        words = ["generate", str(run.folder), f"--prompts={prompt}", "-o", str(out)]
        words += ["--scale", f"{scale:g}", "--num_images", str(count)]
        if seed is not None:
            words += ["--seed", str(seed)]
        if run.state != "finished":
            raise InputError(f"{run.name} has not finished; its adapter can be drawn with then")
        helper = self.helpers.start(f"draw {run.name}", "a picture", words)
        how = f"strength {scale:g}" + ("" if seed is None else f", seed {seed}")
        out.mkdir(parents=True, exist_ok=True)
        (out / "drawn.json").write_text(json.dumps({"prompt": prompt, "how": how}), encoding="utf-8")
        return {"key": f"draw {run.name}", "title": helper.title}

    @acts
    def checkpoints(self, request: Request) -> Any:
        """Compare all adapters that the run kept; with a step, put that one in the place of the last."""
        run, step = self._run(request), form_of(request).get("step", "")
        if run.state != "finished":
            raise InputError(f"{run.name} has not finished; its checkpoints can be compared then")
        more = ["--apply", str(whole_of({"step": step}, "step", 0, 1, 10**9))] if step else []
        key = f"checkpoints {run.name}"
        self.helpers.start(key, "the comparison of checkpoints", ["eval", "checkpoints", str(run.folder), *more])
        return {"key": key}

    # -- helpers

    async def helper(self, request: Request) -> Response:
        """How far a helper is."""
        helper = await run_in_threadpool(self.helpers.look, request.query_params.get("key", ""))
        if helper is None:
            return JSONResponse({"state": "none"})
        status = helper.poll()
        seconds = showing.duration(time.time() - helper.started)
        if status is None:
            return JSONResponse({"state": "working", "title": helper.title, "share": helper.share, "time": seconds})
        if status:
            return JSONResponse({"state": "failed", "error": helper.sentence})
        return JSONResponse({"state": "done", "text": helper.text})

    # -- comparing

    @shows
    def compare(self, request: Request) -> Response:
        finished = [run for run in self.all_runs() if run.state == "finished" and run.record]
        names = [run.name for run in finished]
        asked = [request.query_params.get(side, "") for side in ("a", "b")]
        pair = [next((run for run in finished if run.name == name), None) for name in asked]
        a, b = pair
        both = a is not None and b is not None and a.record is not None and b.record is not None
        values: dict[str, Any] = {"names": names, "a": a, "b": b, "unlike": None, "differences": []}
        if both and a and b and a.record and b.record:
            values["unlike"] = showing.unlike(a.record, b.record)
            values["differences"] = showing.differences(a.record, b.record)
        samples = [showing.samples_of(run) if run else None for run in pair]
        report = self.folders.runs / REPORTS / _report_name(*asked) if both else None
        done = report.name if report is not None and report.is_file() else ""
        return self.page("compare.html", at="compare", samples=samples, report=done, **values)

    @acts
    def make_report(self, request: Request) -> Any:
        form = form_of(request)
        folders = [self.runs.find(form.get(side, "")) for side in ("a", "b")]
        output = self.folders.runs / REPORTS / _report_name(*(folder.name for folder in folders))
        output.parent.mkdir(exist_ok=True)
        key = f"report {output.name}"
        self.helpers.start(key, "the report", ["eval", "report", *map(str, folders), "-o", str(output)])
        return {"key": key, "address": f"/reports/{quote(output.name, safe='')}"}

    @shows
    def report(self, request: Request) -> Response:
        name = request.path_params["name"]
        folder = self.folders.runs / REPORTS
        if name not in [path.name for path in folder.glob("*.html")] or not showing.is_inside(folder, name):
            raise InputError(f"there is no report {shown(name)}; make it again")
        return FileResponse(folder / name, media_type="text/html", headers={"content-security-policy": _REPORT_POLICY})


def _report_name(a: str, b: str) -> str:
    return f"{safe_name(a)}--{safe_name(b)}.html"


def _address(run: str) -> str:
    return f"/runs/{quote(run, safe='')}"


def _time(run: FoundRun) -> float:
    try:
        return run.told.latest or run.folder.stat().st_mtime
    except OSError:
        return 0.0


def _has_gpu() -> bool:
    """Whether this machine seems to have one, without torch."""
    return any(Path(path).exists() for path in ("/proc/driver/nvidia/version", "/dev/kfd"))
