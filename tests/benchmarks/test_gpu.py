"""What is measured on a GPU is not lost where a part of it fails or comes too late."""

import json
from types import SimpleNamespace

from benchmarks import gpu
from benchmarks.__main__ import main
from benchmarks.measure import Table


def test_every_part_is_written_and_the_failed_and_the_late_are_named(monkeypatch, tmp_path, capsys):
    def fails():
        raise RuntimeError("no memory for it")

    clock = iter([0, 1, 2, 59, 60, 121, 122])
    monkeypatch.setattr(gpu, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    parts = {"first": lambda: [Table("T", ("what", "s"), [["a", 1.5]])], "second": fails, "third": fails}
    monkeypatch.setattr(gpu, "_parts", lambda settings, tiny: parts)
    monkeypatch.setattr(gpu.traceback, "print_exc", lambda: None)
    assert main(["gpu", "--device", "cpu", "--minutes", "1", "--out", str(tmp_path / "out")]) == 1
    stored = json.loads((tmp_path / "out/gpu.json").read_text())["parts"]
    assert [(part["part"], part["seconds"]) for part in stored] == [("first", 1), ("second", 1), ("third", 1)]
    assert stored[0]["tables"][0]["rows"] == [["a", 1.5]]
    assert stored[1]["failed"] == "RuntimeError: no memory for it"
    assert stored[2]["left_out"] == "not begun within 1 minutes"
    written = (tmp_path / "out/gpu.md").read_text()
    assert "## first (1 s)\n\nT\n\n| what | s |\n" in written
    assert "## second (1 s)\n\nRuntimeError: no memory for it\n" in written
    assert "second: 1 s, RuntimeError" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_one_sentence(capsys):
    assert main(["gpu", "--device", "cpu", "--out", "/dev/null/x"]) == 2
    assert "give another --out" in capsys.readouterr().err
