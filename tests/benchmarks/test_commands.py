"""The benchmarks run, on tiny sizes, and say what they measured; how they measure is checked too."""

import json

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.measure import Settings, Table, interleaved, milliseconds, ratio, seconds
from tests.support.vtab import write_task

TINY = ["--width", "0.1", "--side", "8", "--depth", "1", "--batch", "1"]
COMMANDS = {
    "layer": ["--tokens", "0.02", "--shapes", "SD 1.5 to_q, 320", "ViT-B/16 proj"],
    "step": [*TINY, "--models", "vit"],
    "memory": [*TINY, "--models", "vit"],
    "launch": [*TINY, "--models", "sd15"],
    "dreambooth": ["--steps", "1"],
    "load": TINY,
    "load --sizes": [*TINY, "--sizes"],
    "scale": ["--tokens", "0.02", "--processes"],
}


@pytest.fixture
def once(monkeypatch):
    """A call a turn: what is measured here is nobody's number."""
    monkeypatch.setattr("benchmarks.measure._repeats", lambda call, settings: 1)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_prints_and_stores_its_tables(name, tmp_path, capsys, once):
    file = tmp_path / "result.json"
    words, name = COMMANDS[name], name.split()[0]
    assert main([name, "--rounds", "1", "--json", str(file), *words]) == 0
    printed, stored = capsys.readouterr().out, json.loads(file.read_text())
    assert stored["machine"]["torch"] == torch.__version__.split("+")[0]
    assert stored["benchmark"] == name
    for table in stored["tables"]:
        assert table["title"] in printed
        assert table["rows"]
        for row in table["rows"]:
            assert len(row) == len(table["columns"])
            assert f"| {row[0]} |" in printed
            assert all(value > 0 for value in row if not isinstance(value, str))


def test_in_bfloat16_every_way_trains_float32_under_autocast(monkeypatch, capsys, once):
    from benchmarks import layer, models

    settings = Settings(torch.device("cpu"), torch.bfloat16, 1)
    size = models.Size(depth=1, batch=1)
    target = models.TARGETS["vit"]["all block linears"]
    for adapted in (
        models.dashed(models.network("vit", size, settings), target, 2, 2),
        models.peft_lora(models.network("vit", size, settings), target, 2),
    ):
        assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
        assert {p.dtype for p in adapted.parameters() if not p.requires_grad} == {torch.bfloat16}
    seen = []
    monkeypatch.setattr(layer.DenseDash, "forward", lambda _, x: seen.append(torch.is_autocast_enabled("cpu")) or x * 1)
    assert main(["layer", "--rounds", "1", "--dtype", "bfloat16", *COMMANDS["layer"][:-1]]) == 0
    assert set(seen) == {True}
    assert "| SD 1.5 to_q, 320 |" in capsys.readouterr().out


def test_a_base_in_the_shape_of_stable_diffusion_is_timed_too(monkeypatch, capsys, once):
    from benchmarks import trainers

    monkeypatch.setitem(trainers.VAE, "block_out_channels", (32, 32, 32, 32))
    monkeypatch.setitem(trainers.TEXT, "num_hidden_layers", 1)
    words = ["--rounds", "1", "--steps", "1", "--shape", "sd15", "--width", "0.1", "--side", "16"]
    assert main(["dreambooth", *words]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.endswith(" |")][-2:]
    assert [row[0] for row in rows] == ["| train_dreambooth.py, LoRA-Dash", "| plain loop, PEFT LoRA"]
    assert all(float(row[1]) > 0 for row in rows)


def test_a_whole_task_is_timed_beside_a_plain_loop(tmp_path, capsys, once):
    write_task(tmp_path / "data")
    words = ["--rounds", "1", "--epochs", "4", "--task", "cifar", "--data_root", str(tmp_path / "data")]
    assert main(["vtab", *words, "--model", "vtab_tiny"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| train_vtab.py")]
    assert len(rows) == 2
    assert all(float(row[1]) > 0 for row in rows)
    assert main(["vtab", *words, "--task", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_calls_are_interleaved_in_both_orders_and_short_ones_repeated(monkeypatch):
    order, clock = [], [0.0]
    takes = {"a": 0.06, "b": 0.01, "c": 1.0}
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def call(name):
        order.append(name)
        clock[0] += takes[name]

    settings = Settings(torch.device("cpu"), torch.float32, 2)
    times = interleaved({name: lambda n=name: call(n) for name in takes}, settings)
    turn = "a" + "b" * 5 + "c"  # 0.05 s
    assert "".join(order) == "aabbc" + (turn + turn[::-1]) * 2
    assert times == {name: pytest.approx([seconds] * 2) for name, seconds in takes.items()}


def test_ratios_are_taken_round_by_round():
    # A machine that is ten times slower in one round does not move the ratio.
    times = {"own": [1.0, 10.0, 1.2], "peer": [2.0, 20.0, 2.4]}
    assert ratio(times, "own", "peer") == 0.5
    assert milliseconds(times["own"]) == 1200


def test_the_processor_clock_does_not_count_waiting():
    import time

    settings = Settings(torch.device("cpu"), torch.float32, 1, "cpu")
    assert seconds(lambda: time.sleep(0.3), settings) < 0.2
    assert seconds(lambda: time.sleep(0.3), Settings(torch.device("cpu"), torch.float32, 1)) >= 0.3


def test_a_table_is_markdown():
    assert str(Table("T", ("what", "s"), [["a", 0.123456], ["b", 1234.5]])).splitlines() == [
        "T",
        "",
        "| what | s |",
        "| --- | ---: |",
        "| a | 0.123 |",
        "| b | 1234 |",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["layer", "--rounds", "0"], "a whole number of 1 or more, got '0'"),
        (["step", "--width", "2"], "above 0 and up to 1, got '2'"),
        (["launch", "--depth", "none"], "a whole number of 1 or more, got 'none'"),
        (["layer", "--clock", "cpu", "--device", "cuda"], "cuda"),
        (["layer", "--rounds", "1", *COMMANDS["layer"], "--json", "/dev/null/x.json"], "give another --json"),
    ],
)
def test_bad_settings_are_one_sentence(words, said, capsys):
    try:
        code = main(words)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
