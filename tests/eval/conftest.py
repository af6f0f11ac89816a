"""Finished runs that the tests of `eval` read; a test that changes one copies it first."""

import pytest

from eval.__main__ import main
from tests.support.bases import save_base
from tests.support.dreambooth import settings, train
from tests.support.eval import words
from tests.support.pictures import save_pictures
from tests.support.shared import shared
from tests.support.vtab import trained_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Runs dash/, lora/ and still/ (these two learned nothing) on one tiny base, other/ on another one, and cat/."""

    def make(root):
        save_base(root / "sd")
        save_base(root / "sd2", seed=5)
        save_pictures(root / "cat")
        few = {"max_train_steps": 2, "prelaunch_steps": 1, "num_inference_steps": 2}
        train(settings(root, root / "dash", learning_rate=0.1, **few))
        train(settings(root, root / "lora", learning_rate=0.0, dash_k=0, **few))
        train(settings(root, root / "still", learning_rate=0.0, **few))
        train(settings(root, root / "other", base="sd2", **few))

    with shared(tmp_path_factory, "runs", make) as root:
        yield root


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """dream/lora, dream/dash (the same noise) and vtab/ with two methods."""

    def make(root):
        save_base(root / "sd")
        save_pictures(root / "cat")
        few = {"max_train_steps": 6, "prelaunch_steps": 2, "num_inference_steps": 2}
        train(settings(root, root / "dream" / "dash", **few))
        train(settings(root, root / "dream" / "lora", dash_k=0, **few))
        for method in ("dash", "lora"):
            trained_run(root, methods=[method], output_dir=str(root / "vtab"))

    with shared(tmp_path_factory, "recorded", make) as root:
        yield root


@pytest.fixture(scope="session")
def page(recorded, tmp_path_factory):
    """The page that reports the recorded runs."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(recorded / "dream"), str(recorded / "vtab"), "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def done(runs, tmp_path_factory):
    """The folder of a measured subject."""
    out = tmp_path_factory.mktemp("done")
    assert main(words(runs, out)) == 0
    return out
