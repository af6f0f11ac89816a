"""Settings of every test, and what several folders of tests share.

No network in tests: every hub client is told so before anything imports it. One thread, too.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Tiny models gain nothing from threads, and runs that are compared bit for bit have to use equally many.
os.environ["OMP_NUM_THREADS"] = "1"

# torch and what needs it are imported where they are used: the process that only hands tests out to others loads this
# file first, and they would wait for it.
import gc
import json
import logging
import signal
from contextlib import ExitStack
from functools import cache

import pytest

gc.disable()  # while the tests' modules are imported: a collection looks through all that there is, in vain


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots", metavar="DIR", help="where tests/studio makes the pictures of docs/studio.md anew"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from tests.support import gpu

    for item in items:
        if item.get_closest_marker("gpu") and not gpu.there():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))
        if item.get_closest_marker("hub"):
            item.add_marker(pytest.mark.skip(reason="needs the model hub, and tests run without network"))


@pytest.fixture(scope="session", autouse=True)
def imported_objects_are_not_collected() -> None:
    """What the imports made stays to the end: a collection that looks through it takes half a second."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def processes_have_a_folder(tmp_path_factory) -> None:
    from tests.support import processes, shared

    processes.keep_in(shared.common_folder(tmp_path_factory) / "processes")


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk():
    """Files are there for the tests of a machine that does not lose its power; a sync takes tens of milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def closed_streams_are_no_output():
    """The handler of a library may hold a stream that pytest closed with an earlier test; what logging says of that is
    not the program's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "raiseExceptions", False)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    import torch

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
    from tests.support.bases import save_base
    from tests.support.pictures import save_pictures
    from tests.support.shared import shared
    from tests.support.vtab import write_task

    def make(root):
        save_base(root / "sd")
        save_base(root / "sd-v", prediction_type="v_prediction")
        save_base(root / "sdxl", xl=True)
        save_pictures(root / "cat")
        write_task(root / "data")

    with shared(tmp_path_factory, "bases", make) as root:
        yield root


@pytest.fixture(scope="session")
def measured(bases, tmp_path_factory):
    """The output folder of a run on the base sd that was measured every two of its eight steps on two held-out
    pictures; to be read only."""
    from tests.support.dreambooth import measured_settings, train
    from tests.support.shared import shared

    with shared(tmp_path_factory, "measured", lambda root: train(measured_settings(bases, root / "out"))) as root:
        yield root / "out"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folders of tiny pipelines by their name in tests.support.tiny.PIPELINES; to be read only."""
    from tests.support.shared import shared
    from tests.support.tiny import PIPELINES

    with ExitStack() as stack:

        @cache
        def folder(name):
            return stack.enter_context(shared(tmp_path_factory, f"tiny-{name}", PIPELINES[name]))

        yield folder


@pytest.fixture
def data(tmp_path):
    """A folder with the task cifar in data/, for the test alone."""
    from tests.support.vtab import write_task

    write_task(tmp_path / "data")
    return tmp_path


@pytest.fixture
def saved(tmp_path):
    """A trained adapter, its native file, an input and the model's output."""
    import torch

    from tests.support.adapters import CONFIG, net
    from tests.support.models import trained

    model = net()
    adapter = trained(model, CONFIG)
    path = tmp_path / "dash_adapter.safetensors"
    adapter.save(path)
    x = torch.randn(5, 8)
    return adapter, path, x, model(x).detach()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Finished VTAB runs by method: (folder with the data, run, what execute() returned); to be read only."""
    from tests.support.shared import shared_run
    from tests.support.vtab import PEFT_CONFIGS

    with ExitStack() as stack:

        @cache
        def of(method):
            def settings(root):
                common = {"selection": "last", "learning_rate": 3e-3}
                if method not in PEFT_CONFIGS:
                    return {**common, "methods": [method]}
                file = root / f"{method}.json"
                if not file.exists():
                    file.write_text(json.dumps(PEFT_CONFIGS[method]))
                return {**common, "methods": [], "peft_config": [str(file)]}

            return stack.enter_context(shared_run(tmp_path_factory, f"finished-{method}", settings))

        yield of
