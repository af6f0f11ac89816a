"""python -m dash_vision inspect: where its output goes."""

import os
import subprocess
import sys

from tests.support.scripts import dreambooth


def test_a_reader_that_has_seen_enough_is_no_error(bases, tmp_path):
    assert dreambooth(bases, tmp_path / "out") == 0
    words = [sys.executable, "-m", "dash_vision", "inspect", str(tmp_path / "out" / "dash_adapter.safetensors")]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        ended = subprocess.run(words, stdout=gone, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
