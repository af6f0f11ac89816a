"""How far a sweep says it is: one count over all that it does."""

from types import SimpleNamespace

import pytest

from dash_vision.classification import display as display_module
from dash_vision.classification.display import Display, Work
from dash_vision.classification.run import execute
from dash_vision.classification.sweep import sweep, write_summary
from dash_vision.files.errors import Stopped
from dash_vision.runs.signals import StopRequest
from tests.support.vtab import COUNTS, StopAt, cpu, one_run, write_task

SEARCH = {"search": ["rank=1,2"], "prelaunch_steps": 5}
SIZES = {**COUNTS, "train800val200": COUNTS["train800"] + COUNTS["val200"]}  # 24, 12 and 36 images in batches of 8
SELECTION, RETRAINING = 4 * 3, 4 * 5  # steps of four epochs


class Recorded(Display):
    """Keeps (steps behind it, steps of all) of everything that it draws."""

    def __init__(self, *arguments, **options):
        self.drawn = []
        super().__init__(*arguments, **options)

    def _draw(self):
        super()._draw()
        self.drawn.append((self.done, self.total))


def test_the_work_of_a_run_is_every_candidates_and_the_retrainings_steps(tmp_path):
    assert Work.of(one_run(tmp_path, **SEARCH), SIZES) == Work(2, SELECTION, RETRAINING)
    assert Work.of(one_run(tmp_path, **SEARCH), SIZES).total == 44
    assert Work.of(one_run(tmp_path, **SEARCH, val_only=True), SIZES).total == 24
    assert Work.of(one_run(tmp_path, methods=["linear"], **SEARCH), SIZES).candidates == 1


def shown(tmp_path, run, **options):
    display = Recorded([Work.of(run, SIZES)], quiet=True)
    display.begin(run)
    record = execute(run, cpu(), options.get("stop"), display)
    display.end("done")
    return display, record


def test_the_count_goes_through_selection_and_retraining_without_a_break(tmp_path):
    write_task(tmp_path / "data")
    display, record = shown(tmp_path, one_run(tmp_path, **SEARCH))
    done = [done for done, _ in display.drawn]
    end = 2 * SELECTION + record.selected_epoch * 5
    assert done == sorted(done)
    assert set(done) == set(range(end + 1))
    assert {total for done, total in display.drawn if done < 2 * SELECTION} == {44}
    assert display.drawn[-1] == (end, end)
    assert display.own == end


def test_what_was_done_before_a_stop_counts_and_not_its_time(tmp_path):
    write_task(tmp_path / "data")
    run = one_run(tmp_path, **SEARCH, selection="last")
    with pytest.raises(Stopped):
        execute(run, cpu(), StopAt(SELECTION + 5))
    display, _ = shown(tmp_path, run)
    assert display.drawn[0] == (SELECTION + 5, 44)
    assert display.drawn[-1] == (44, 44)
    assert display.own == 44 - SELECTION - 5


def test_the_estimate_is_the_steps_that_are_left_times_the_seconds_of_a_step(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(display_module.time, "perf_counter", lambda: clock.now)
    display = Recorded([Work(1, 12, 20), Work(1, 12, 20)], quiet=True)
    run, plan = one_run(tmp_path), SimpleNamespace(steps_per_epoch=5)
    job = SimpleNamespace(stage=0, step=4, phase="select", until=4, plan=plan)  # four steps were made before a stop
    display.begin(run)
    assert display.remaining is None
    for _ in range(8):
        display.step(job)
        job.step, clock.now = job.step + 1, clock.now + 3
    assert display.remaining == pytest.approx(3 * (64 - 12))
    clock.now += 50  # scoring between two trainings is no step
    retraining = SimpleNamespace(stage=1, step=0, phase="retrain", until=2, plan=plan)
    display.step(retraining)
    assert display.total == 12 + 2 * 5 + 32
    assert display.remaining == pytest.approx(3 * (12 + 10 + 32 - 12), rel=0.1)
    display.end("failed")
    assert (display.done, display.total) == (12, 12 + 32)
    display.begin(run)
    display.end("left to another process")
    assert (display.done, display.total) == (12, 12)


def test_a_sweep_names_its_folder_at_the_start_and_at_the_end(tmp_path, capsys):
    write_task(tmp_path / "data")
    run = one_run(tmp_path, methods=["linear"])
    sweep([run], cpu(), StopRequest())
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"1 run to do, results in {tmp_path / 'runs'}"
    assert said[1].startswith("[1/1] cifar linear seed 0: test ")
    sweep([run], cpu(), StopRequest())
    assert "1 of 1 runs are done already; 0 runs to do" in capsys.readouterr().out
    assert write_summary(tmp_path / "runs")[-1] == f"results: {tmp_path / 'runs'}, with the table in summary.json"
