"""Settings of every test, and what several folders of tests share.

No network in tests: every hub client is told so before anything imports it. One thread, too.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Tiny models gain nothing from threads, and runs that are compared bit for bit have to use equally many.
os.environ["OMP_NUM_THREADS"] = "1"

import json
import signal

import pytest
import torch

from tests.support.adapters import CONFIG, net
from tests.support.bases import save_base
from tests.support.models import trained
from tests.support.pictures import save_pictures
from tests.support.shared import shared
from tests.support.vtab import PEFT_CONFIGS, trained_run, write_task


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))
        if item.get_closest_marker("hub"):
            item.add_marker(pytest.mark.skip(reason="needs the model hub, and tests run without network"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def handlers():
    """The scripts set handlers of signals, as the process's own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Bases sd, sd-v (v-prediction) and sdxl, five pictures in cat/, and the task cifar in data/; to be read only."""

    def make(root):
        save_base(root / "sd")
        save_base(root / "sd-v", prediction_type="v_prediction")
        save_base(root / "sdxl", xl=True)
        save_pictures(root / "cat")
        write_task(root / "data")

    with shared(tmp_path_factory, "bases", make) as root:
        yield root


@pytest.fixture
def data(tmp_path):
    """A folder with the task cifar in data/, for the test alone."""
    write_task(tmp_path / "data")
    return tmp_path


@pytest.fixture
def saved(tmp_path):
    """A trained adapter, its native file, an input and the model's output."""
    model = net()
    adapter = trained(model, CONFIG)
    path = tmp_path / "dash_adapter.safetensors"
    adapter.save(path)
    x = torch.randn(5, 8)
    return adapter, path, x, model(x).detach()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Finished runs by method: (folder, run, result)."""
    made = {}

    def run(method):
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            settings = {"methods": [method]}
            if method in PEFT_CONFIGS:
                (folder / f"{method}.json").write_text(json.dumps(PEFT_CONFIGS[method]))
                settings = {"methods": [], "peft_config": [str(folder / f"{method}.json")]}
            made[method] = (folder, *trained_run(folder, selection="last", learning_rate=3e-3, **settings))
        return made[method]

    return run
