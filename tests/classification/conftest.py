"""Fixtures of the classification tests."""

import pytest

from tests.support.vtab import write_task


@pytest.fixture
def task_folder(tmp_path):
    """The folder of the task cifar, in data/."""
    return write_task(tmp_path / "data")
