"""Folders that are made once in a test run, however many processes of pytest-xdist take part in it."""

import fcntl
import json
import os
import pickle
import shutil
from contextlib import contextmanager


def common_folder(tmp_path_factory):
    """The temporary folder of a test run, which all processes of pytest-xdist have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextmanager
def shared(tmp_path_factory, name, make):
    """The folder that `make(folder)` filled, in this process or in another one; to be read only.

    At the end it has to hold what it held at the beginning: a test that writes into it would change other tests.
    """
    base = common_folder(tmp_path_factory)
    folder, listing = base / f"shared-{name}", base / f"shared-{name}.json"
    with open(base / f"shared-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not listing.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            listing.write_text(json.dumps(contents(folder)))
    yield folder
    before, after = json.loads(listing.read_text()), contents(folder)
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    assert not changed, f"tests have changed {folder}, which is shared: {changed}"


@contextmanager
def shared_run(tmp_path_factory, name, settings):
    """(folder with the data, run, what execute() returned) of a VTAB run with `settings(folder)`."""
    from tests.support.vtab import one_run, trained_run

    def make(root):
        _, returned = trained_run(root, **settings(root))
        (root / "returned.pickle").write_bytes(pickle.dumps(returned))

    with shared(tmp_path_factory, name, make) as root:
        yield root, one_run(root, **settings(root)), pickle.loads((root / "returned.pickle").read_bytes())


def contents(folder):
    """Size and time of change of every file, and the folders, by their path in `folder`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        found[path.relative_to(folder).as_posix()] = [status.st_size, status.st_mtime_ns] if path.is_file() else []
    return found
