"""Measured subjects in the report."""

import json

from eval.__main__ import main


def test_the_report_shows_a_measured_subject(runs, done, tmp_path):
    (tmp_path / "again").symlink_to(done)
    assert main(["report", str(done), str(tmp_path / "again"), "-o", str(tmp_path / "r.html")]) == 0
    assert "from 1 measured subject." in (tmp_path / "r.html").read_text()
    text = (tmp_path / "r.html").read_text()
    result = json.loads((done / "subject.json").read_text())
    assert f"{result['methods']['dash']['scores']['CLIP-I']['mean']:.3f} [" in text
    assert text.count("generated picture") >= 2
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/subject.json").write_text(json.dumps({**result, "methods": {}})[:-9])
    assert main(["report", str(done), str(tmp_path / "cut"), "-o", str(tmp_path / "r.html")]) == 1
