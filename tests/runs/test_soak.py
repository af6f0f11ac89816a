"""Runs without room on the disk, and runs that lose a process, lose nothing: two parts of tests/soak, in short.

The other parts are those whose claims other tests make too: test_resume and test_sweep kill and stop runs,
test_processes spreads them. `python -m tests.soak --short`, which .ci/run runs, has them all.
"""

import re

from tests.support.processes import run


def test_nothing_is_lost():
    done = run(["-m", "tests.soak", "--short", "--parts", "disk", "worker"])
    assert done.poll() == 0, done.stdout + done.stderr
    parts = re.findall(r"^(\S.*): tried (\d+), survived (\d+), lost (\d+)", done.stdout, re.MULTILINE)
    assert len(parts) == 6  # three for each trainer
    for name, tried, survived, lost in parts:
        assert int(tried) == int(survived) > 0 == int(lost), name
