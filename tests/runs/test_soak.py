"""Runs killed, stopped, starved and spread over processes lose nothing: tests/soak.py, in short."""

import os
import re
import subprocess
import sys

from tests.support.paths import ROOT


def test_nothing_is_lost():
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--short"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = re.findall(r"^(\S.*): tried (\d+), survived (\d+), lost (\d+)", done.stdout, re.MULTILINE)
    assert len(parts) == 13  # six for each trainer, and memory
    for name, tried, survived, lost in parts:
        assert int(tried) == int(survived) > 0 == int(lost), name
