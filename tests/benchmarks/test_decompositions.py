"""The memory of a decomposition is measured in a process of its own."""

import pytest

from benchmarks.decompositions import main
from dash_vision.core.directions import memory_of


def test_a_decomposition_takes_no_more_than_is_said(capsys):
    assert main(["1024x1536"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| 1024 x 1536"))
    file, decomposing, seconds, choosing = (float(cell) for cell in line.strip("| ").split("|")[1:])
    assert file == pytest.approx(3, abs=0.01)
    # At least the Gram matrix and its eigenvectors; at most what is promised, the file's pages and torch's own start.
    assert 2 * 8 * 1024**2 / 2**20 < decomposing < memory_of(1024, 1536) / 2**20 + file + 100
    assert seconds > 0
    assert choosing < decomposing


def test_a_size_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["1024"])
    assert "a size such as 12288x3072" in capsys.readouterr().err
