"""How many threads compute and how they wait, decided before torch is there."""

import os
import subprocess
import sys

import pytest

from dash_vision.runs import cores
from tests.support.paths import ROOT

LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("environment", "small", "threads"),
    [
        ({}, False, None),
        ({}, True, "1"),
        ({"OMP_NUM_THREADS": "1"}, False, None),
        ({"OMP_NUM_THREADS": "3"}, True, None),
        (LAUNCHED, False, "8"),
        (LAUNCHED, True, "1"),
        ({**LAUNCHED, "LOCAL_WORLD_SIZE": "4"}, False, "2"),
        ({**LAUNCHED, "LOCAL_WORLD_SIZE": "16"}, False, "1"),
        ({**LAUNCHED, "OMP_NUM_THREADS": "2"}, False, None),
    ],
)
def test_threads_are_shared_out_where_nobody_has_set_them(environment, small, threads, monkeypatch):
    monkeypatch.setattr(cores, "is_in_environment_of", lambda process, variable: False)
    assert cores.choice(environment, 8, small).get("OMP_NUM_THREADS") == threads


def test_one_thread_that_the_user_gave_to_a_launcher_is_kept(monkeypatch):
    monkeypatch.setattr(cores, "is_in_environment_of", lambda process, variable: process == os.getppid())
    assert "OMP_NUM_THREADS" not in cores.choice(LAUNCHED, 8)


def test_threads_wait_passively_unless_told_otherwise():
    assert cores.choice({}, 8)["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in cores.choice({"OMP_WAIT_POLICY": "ACTIVE"}, 8)


def test_a_torch_that_is_imported_is_left_alone(monkeypatch):
    import torch

    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    before = torch.get_num_threads()
    cores.choose_threads(small=True)
    assert torch.get_num_threads() == before
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="the system does not tell of other processes")
def test_the_environment_of_another_process_is_read_where_the_system_tells_it():
    code = "import os\nfrom dash_vision.runs.cores import is_in_environment_of as f\np = os.getppid()\n"
    code += "print(f(p, 'PATH'), f(p, 'NO_SUCH_VARIABLE'), f(2**30, 'PATH'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False", "False"]


def test_torch_takes_what_was_chosen():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    code = "from dash_vision.runs.cores import choose_threads\nchoose_threads(small=True)\n"
    code += "import torch\nprint(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "1", done.stderr
