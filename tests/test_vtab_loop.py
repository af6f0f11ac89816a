"""The schedule, exact resumption in every phase, signals, divergence, and several processes."""

import csv
import io
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from vtab_helpers import CPU, ROOT, one_run, write_task

from dash_vision.classification.drop_path import DropPaths
from dash_vision.classification.loop import NonFiniteLoss, Plan, Trainer, mixed_seed
from dash_vision.classification.methods import prepare
from dash_vision.classification.run import CHECKPOINT, backbone_of, execute, open_data
from dash_vision.classification.runtime import INTERRUPTED, Interrupted, Runtime, make_runtime
from dash_vision.classification.sweep import line_of
from dash_vision.classification.trained import load_trained
from dash_vision.files.checkpoint import load_checkpoint, save_checkpoint
from dash_vision.files.errors import InputError
from dash_vision.files.native import read_native
from dash_vision.runs.signals import StopRequest, catching_signals
from eval.vtab import table

# -- the schedule


def test_the_rate_climbs_over_the_warm_up_and_falls_along_half_a_cosine():
    plan = Plan(images=800, batch_size=64, epochs=100, warmup_epochs=10, learning_rate=1e-3)
    assert (plan.steps_per_epoch, plan.steps) == (13, 1300)
    assert plan.rate(0) == pytest.approx(1e-3 / 130)
    assert plan.rate(129) == plan.rate(130) == pytest.approx(1e-3)
    assert plan.rate(130 + 585) == pytest.approx(0.5e-3)
    assert plan.rate(1299) == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 1169 / 1170)))


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert Plan(10, 4, 3, 0, 0.1).rate(0) == pytest.approx(0.1)
    assert Plan(10, 4, 3, 3, 0.1).rate(8) == pytest.approx(0.1)


def test_defaults_are_the_published_recipe(tmp_path):
    run = one_run(tmp_path, epochs=None, batch_size=64)
    assert (run.epochs, run.warmup_epochs, run.learning_rate, run.drop_path) == (100, 10, 1e-3, 0.1)
    assert run.settings.weight_decay == 1e-4
    embedded = one_run(tmp_path, task=["mini_location"], epochs=None, model=None, random_weights=False)
    assert (embedded.epochs, embedded.warmup_epochs, embedded.model) == (16, 1, "miniature")
    assert embedded.learning_rate == 1e-2
    assert one_run(tmp_path, methods=["full"]).learning_rate == 1e-4
    assert one_run(tmp_path, model=None).model == "vit_base_patch16_224.augreg_in21k"


def test_seeds_mixed_from_neighbouring_numbers_differ():
    parts = [(s, g, t) for s in range(4) for g in range(3) for t in range(-40, 40)]
    assert len({mixed_seed(*p) for p in parts}) == len(parts)


# -- one trainer


def trainer_of(tmp_path, runtime=CPU, val="val200", **settings):
    run = one_run(tmp_path, **settings)
    data, backbone = open_data(run), backbone_of(run)
    tuned = prepare(run, backbone, run.task.classes)
    return Trainer(run, tuned, backbone, data.split("train800"), data.split(val) if val else None, runtime, 0)


@pytest.fixture
def data(tmp_path):
    write_task(tmp_path / "data")
    return tmp_path


def test_an_epoch_shows_every_image_once_in_a_new_order(data):
    trainer = trainer_of(data, batch_size=7)
    orders = []
    for epoch in range(2):
        seen = []
        for place in range(4):
            trainer.step = epoch * 4 + place
            seen.append(trainer._batch())
        assert [len(b) for b in seen] == [7, 7, 7, 3]
        orders.append(torch.cat(seen).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24))
    assert orders[0] != orders[1]


def test_the_curve_s_training_loss_is_the_mean_over_images(data):
    trainer = trainer_of(data, learning_rate=1e-30, weight_decay=0.0, drop_path=0.0, batch_size=7, methods=["linear"])
    trainer.fit(1)
    logits = trainer.logits(trainer.train.images)
    expected = torch.nn.functional.cross_entropy(logits, trainer.train.labels).item()
    assert trainer.curve[0].train_loss == pytest.approx(expected, rel=1e-5)


def test_validation_does_not_depend_on_the_evaluation_batch(data):
    scores = []
    for size in (1, 5, 100):
        trainer = trainer_of(data, eval_batch_size=size)
        trainer.fit(1)
        scores.append((trainer.curve[0].val_accuracy, trainer.curve[0].val_loss))
    assert scores[0][0] == scores[1][0] == scores[2][0]
    assert scores[0][1] == pytest.approx(scores[1][1], rel=1e-5) == pytest.approx(scores[2][1], rel=1e-5)


def test_the_dash_is_launched_after_the_optimizer_steps_asked_for(data):
    trainer = trainer_of(data, prelaunch_steps=5)
    trainer.fit(1)
    assert not trainer.tuned.launched
    trainer.fit(2)
    assert trainer.tuned.launched
    assert trainer.launch["step"] == 5
    assert [s.launched for s in trainer.curve] == [False, True]


def test_an_epoch_chosen_before_the_launch_is_tested_without_it(data, monkeypatch):
    # Epoch 3 ends after 9 steps on train800 and after 15 in the retraining; the launch is after step 11.
    monkeypatch.setattr("dash_vision.classification.protocol.choose", lambda rule, curves: (0, 3))
    run, lora = one_run(data, prelaunch_steps=11), one_run(data, methods=["lora"])
    result, other = execute(run, CPU), execute(lora, CPU)
    assert [s["launched"] for s in result["selection"]["curves"][0]] == [False, False, False, True]
    assert result["launch"] is None
    assert result["test_accuracy"] == other["test_accuracy"]
    assert "at epoch 3, before the launch: plain LoRA;" in line_of(result)
    assert "launch" not in line_of(other)
    mine, theirs = (read_native(r.folder / "dash_adapter.safetensors")["model"] for r in (run, lora))
    assert not mine.launched
    factors = [key for key in theirs.tensors if key.endswith((".A", ".B"))]
    assert len(factors) == 2 * len(theirs.kinds)
    for key in factors:  # to rounding: the products have k columns more, all zero
        torch.testing.assert_close(mine.tensors[key], theirs.tensors[key], rtol=1e-4, atol=1e-6)
    text = table([run.folder, lora.folder], "markdown", published=False)[0]
    said = "runs whose chosen epoch lies before the launch, and whose model is plain LoRA"
    assert f"- dash: {said}: 1 of 1 on cifar" in text
    rows = csv.DictReader(io.StringIO(table([run.folder, lora.folder], "csv", published=False)[0]))
    assert [(r["method"], r["before_launch"]) for r in rows if r["column"] == "cifar"] == [("dash", "1"), ("lora", "")]


@pytest.mark.parametrize("selection", ["random", "top", "bottom"])
def test_controls_choose_the_directions_they_are_named_after(data, selection):
    trainer = trainer_of(data, dash_selection=selection)
    trainer.fit(2)
    chosen = [w.indices.tolist() for _, w in trainer.tuned.adapter.weights()]
    expected = {"top": [0, 1, 2], "bottom": [29, 30, 31]}  # every layer of the model has 32 directions
    if selection == "random":
        assert len({tuple(c) for c in chosen}) > len(chosen) // 2
    else:
        assert all(c == expected[selection] for c in chosen)


def test_a_diverging_run_stops_with_what_to_do_about_it(data):
    trainer = trainer_of(data, methods=["full"])
    with torch.no_grad():
        trainer.tuned.model.head.weight.fill_(float("inf"))
    with pytest.raises(NonFiniteLoss, match=r"became NaN or infinite, in epoch 1 .*Lower --learning_rate"):
        trainer.fit(4)


def test_a_launch_on_an_update_that_is_not_finite_is_a_divergence_too(data):
    trainer = trainer_of(data, prelaunch_steps=1)
    with torch.no_grad():
        next(w for _, w in trainer.tuned.adapter.weights()).A.fill_(float("nan"))
    with pytest.raises(NonFiniteLoss, match=r"cannot choose directions in blocks\.0\.attn\.qkv"):
        trainer.fit(1)


def test_a_dash_that_would_never_start_is_refused_before_training(data):
    with pytest.raises(
        InputError, match="--prelaunch_steps 12 leaves no step for the dash: 4 epochs of 24 images make 12"
    ):
        execute(one_run(data, prelaunch_steps=12), CPU)
    with pytest.raises(InputError, match="--prelaunch_steps 50"):
        execute(one_run(data, search=["prelaunch_steps=5,50"]), CPU)


# -- stopping and going on


class StopAt(StopRequest):
    """A signal that arrives before optimizer step number `step`, counted over the whole run."""

    def __init__(self, step):
        super().__init__()
        self.left = step

    def pending(self):
        self.left -= 1
        return self.left < 0


def outcome(result):
    timing = {"seconds", "finished", "images_per_second", "launch", "data"}
    return {k: v for k, v in result.items() if k not in timing}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """(folder with the data, run, result) of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    write_task(folder / "data")
    run = one_run(folder, selection="last", dropout=0.1)
    return folder, run, execute(run, CPU)


# 12 steps on train800 (3 an epoch, launch after 5), then up to 20 on train800val200 (5 an epoch).
@pytest.mark.parametrize("step", [0, 2, 5, 9, 12, 14, 18])
def test_a_stopped_run_goes_on_exactly(tmp_path, whole_run, step):
    folder, whole, expected = whole_run
    run = one_run(folder, output_dir=str(tmp_path / "parts"), selection="last", dropout=0.1)
    with pytest.raises(Interrupted, match="stopped in epoch"):
        execute(run, CPU, StopAt(step))
    assert [p.name for p in run.folder.iterdir()] == [CHECKPOINT]
    found = execute(run, CPU)
    assert outcome(found) == outcome(expected)
    name = "dash_adapter.safetensors"
    assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not (run.folder / CHECKPOINT).exists()


def test_kept_adapters_are_the_model_between_epochs_and_survive_a_stop(tmp_path, data, monkeypatch):
    models = {}

    def remember(path, state):
        if state["selection"] is not None and state["trainer"]:
            models[state["trainer"]["step"]] = {k: v.clone() for k, v in state["trainer"]["model"].items()}

    monkeypatch.setattr("dash_vision.classification.run.save_checkpoint", remember)
    whole = one_run(data, keep_every=1, checkpoint_every=1, selection="last")
    execute(whole, CPU)
    monkeypatch.undo()
    files = sorted((whole.folder / "adapters").iterdir())
    assert [file.stem for file in files] == ["step-000005", "step-000010", "step-000015"]
    for file, step in zip(files, sorted(models), strict=True):
        model = models[step]
        state = read_native(file)["model"]
        assert state.launched  # after step 5 of the retraining
        kept = [k for k in state.tensors if k.endswith((".A", ".B", ".dsigma"))]
        assert len(kept) == 3 * len(state.kinds)
        for key in kept:
            module, name = key.rsplit(".", 1)
            (trained,) = (v for k, v in model.items() if k.startswith(f"{module}.") and k.endswith(f".{name}"))
            assert torch.equal(state.tensors[key], trained)
        head = load_trained(file).model.get_classifier()
        assert torch.equal(head.weight, model["head.weight"])

    parts = one_run(data, output_dir=str(tmp_path / "parts"), keep_every=1, selection="last")
    with pytest.raises(Interrupted):
        execute(parts, CPU, StopAt(12 + 8))
    execute(parts, CPU)
    again = sorted((parts.folder / "adapters").iterdir())
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]
    execute(one_run(data, output_dir=str(tmp_path / "parts"), overwrite=True, selection="last"), CPU)
    assert not list((parts.folder / "adapters").iterdir())


@pytest.mark.parametrize("method", ["linear", "full", "bitfit"])
def test_other_methods_go_on_exactly_too(tmp_path, data, method):
    whole = one_run(data, output_dir=str(tmp_path / "whole"), methods=[method], selection="last")
    expected = execute(whole, CPU)
    run = one_run(data, output_dir=str(tmp_path / "parts"), methods=[method], selection="last")
    for step in (4, 10):
        with pytest.raises(Interrupted):
            execute(run, CPU, StopAt(step))
    assert outcome(execute(run, CPU)) == outcome(expected)
    assert (run.folder / "trained.safetensors").read_bytes() == (whole.folder / "trained.safetensors").read_bytes()


def test_a_search_goes_on_with_the_candidate_it_was_at(tmp_path, data):
    search = {"search": ["learning_rate=1e-3,1e-2"]}
    expected = execute(one_run(data, output_dir=str(tmp_path / "whole"), **search), CPU)
    run = one_run(data, output_dir=str(tmp_path / "parts"), **search)
    with pytest.raises(Interrupted):
        execute(run, CPU, StopAt(17))
    phases = []
    found = execute(run, CPU, progress=lambda phase, trainer: phases.append(phase))
    assert outcome(found) == outcome(expected)
    assert phases.count("select") == 3  # of 8: the first candidate's 4 and 1 of the second's were done


def test_a_val_only_run_says_when_its_chosen_candidate_launched(tmp_path, data):
    settings = {"val_only": True, "search": ["prelaunch_steps=5,7"]}
    expected = execute(one_run(data, output_dir=str(tmp_path / "whole"), **settings), CPU)
    assert expected["launch"]["step"] == expected["selected_settings"]["prelaunch_steps"]
    run = one_run(data, output_dir=str(tmp_path / "parts"), **settings)
    with pytest.raises(Interrupted):
        execute(run, CPU, StopAt(14))  # in the second candidate; each has 12 steps
    state = load_checkpoint(run.folder / CHECKPOINT)
    assert [launch["step"] for launch in state["launches"]] == [5]
    assert execute(run, CPU)["launch"]["step"] == expected["launch"]["step"]
    # A checkpoint from before launches were kept is gone on with.
    old = one_run(data, output_dir=str(tmp_path / "old"), **settings)
    old.folder.mkdir(parents=True)
    save_checkpoint(old.folder / CHECKPOINT, {k: v for k, v in state.items() if k != "launches"})
    assert outcome(execute(old, CPU)) == outcome(expected)


def test_a_checkpoint_of_other_settings_is_not_gone_on_with(data):
    run = one_run(data)
    with pytest.raises(Interrupted):
        execute(run, CPU, StopAt(4))
    with pytest.raises(InputError, match=r"other settings \(rank 2 there, 3 here\).*--overwrite"):
        execute(one_run(data, rank=3), CPU)
    assert execute(one_run(data, rank=3, overwrite=True), CPU)["arguments"]["rank"] == 3


def test_checkpoints_are_written_between_epochs(data, monkeypatch):
    saved = []
    monkeypatch.setattr(
        "dash_vision.classification.run.save_checkpoint",
        lambda path, state: saved.append((state["selection"] is not None, (state["trainer"] or {}).get("step"))),
    )
    execute(one_run(data, checkpoint_every=2, selection="last"), CPU)
    assert saved == [(False, 6), (True, None), (True, 10)]


def test_the_first_signal_is_a_request_and_the_second_an_order():
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's is to ignore it
    try:
        with catching_signals() as stop:
            assert not stop.pending()
            signal.raise_signal(signal.SIGINT)
            assert stop.pending()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_a_signal_leaves_a_checkpoint_and_its_own_exit_status(data):
    words = [
        "--task",
        "cifar",
        "--data_root",
        str(data / "data"),
        "--cache_dir",
        "none",
        "--output_dir",
        str(data / "runs"),
    ]
    words += ["--model", "test_vit", "--random_weights", "--image_size", "32", "--epochs", "5000", "--batch_size", "4"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    script = "import sys, train_vtab, dash_vision.classification.run as run\n"
    script += "fit = run.Trainer.fit\n"
    script += "run.Trainer.fit = lambda self, *a: (print('training', flush=True), fit(self, *a))[1]\n"
    script += "sys.exit(train_vtab.main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == INTERRUPTED
    assert "run the same command again to go on" in errors
    assert "Traceback" not in errors
    assert (data / "runs/cifar/dash/seed-0" / CHECKPOINT).is_file()


# -- devices and processes


def test_a_device_that_is_not_there_is_explained(monkeypatch):
    with pytest.raises(InputError, match="there is no device 'cuda:77'"):
        make_runtime("cuda:77")
    with pytest.raises(InputError, match="there is no device 'abacus'"):
        make_runtime("abacus")
    assert make_runtime("cpu", "no") == Runtime(torch.device("cpu"))
    for amx, avx512 in ((True, True), (True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        assert make_runtime("cpu").bf16 is (amx or avx512)
        assert make_runtime("cpu", "bf16").bf16


def test_bf16_autocast_trains_and_keeps_float32_weights(data):
    trainer = trainer_of(data, Runtime(torch.device("cpu"), bf16=True))
    trainer.fit(2)
    assert trainer.curve[-1].val_loss > 0
    assert {p.dtype for p in trainer.tuned.trainable().values()} == {torch.float32}


def test_stochastic_depth_is_timms_and_independent_of_the_number_of_processes():
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(7, 3, 32, 32, generator=draws)
    model = timm.create_model("vtab_tiny", num_classes=4, drop_path_rate=0.6).train()
    torch.manual_seed(5)
    expected = model(images)
    paths = DropPaths(model)
    assert len(paths.paths) == 2  # of the last block; the first one's probability is 0
    for world in (1, 2, 3, 8):
        for rank in range(world):
            torch.manual_seed(5)
            paths.draw(7, rank, world, torch.device("cpu"))
            if rank < 7:
                found = model(images[rank::world])
                torch.testing.assert_close(found, expected[rank::world], atol=1e-6, rtol=1e-5)
            else:
                assert torch.isfinite(model(images[:1])).all()
    plain = timm.create_model("vtab_tiny", num_classes=4).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(images), plain(images))


def _work(rank, world, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    trainer = trainer_of(Path(folder), Runtime(torch.device("cpu"), rank=rank, world=world), **_SHARED)
    trainer.fit(3)
    weights = {name: p.detach() for name, p in trainer.tuned.trainable().items()}
    torch.save((weights, [(s.train_loss, s.val_loss) for s in trainer.curve]), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


# Batches of 23 and 1: in the last one, one process has nothing to do.
_SHARED = {"batch_size": 23, "drop_path": 0.5, "prelaunch_steps": 3}


def test_two_processes_compute_what_one_does(data):
    alone = trainer_of(data, **_SHARED)
    alone.fit(3)
    mp.spawn(_work, (2, str(data)), nprocs=2)
    for rank in range(2):
        weights, losses = torch.load(data / f"{rank}.pt")
        for name, parameter in alone.tuned.trainable().items():
            torch.testing.assert_close(weights[name], parameter.detach(), atol=2e-5, rtol=1e-3)
        for (train, val), score in zip(losses, alone.curve, strict=True):
            assert (train, val) == pytest.approx((score.train_loss, score.val_loss), rel=1e-4)
