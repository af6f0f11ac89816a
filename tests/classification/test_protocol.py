"""Who may see which images when: the best test epoch cannot be reported."""

import dataclasses
import json

import pytest
import torch

from dash_vision.classification import protocol
from dash_vision.classification.cache import TensorImages
from dash_vision.classification.protocol import EpochScore, ProtocolError, SealedTest, Selection, choose, select
from dash_vision.classification.run import execute
from tests.support.vtab import Watching, cpu, one_run, trained_run, write_task


def curve(*scores):
    return [EpochScore(i + 1, 1.0, accuracy, loss) for i, (accuracy, loss) in enumerate(scores)]


def test_the_best_validation_accuracy_is_chosen_and_ties_go_to_the_lower_loss():
    assert choose("best_val", [curve((50, 1), (60, 1), (55, 1))]) == (0, 2)
    assert choose("best_val", [curve((60, 0.9), (60, 0.5), (60, 0.7))]) == (0, 2)
    assert choose("best_val", [curve((60, 0.9)), curve((50, 1), (61, 2))]) == (1, 2)
    assert choose("best_val", [curve((60, 0.5)), curve((60, 0.5))]) == (0, 1)


def test_the_last_epoch_rule_looks_at_last_epochs_only():
    assert choose("last", [curve((90, 1), (50, 1)), curve((10, 1), (51, 1))]) == (1, 2)


def test_nothing_can_be_chosen_without_validation_scores():
    for curves in ([], [[]], [[EpochScore(1, 0.5)]]):
        with pytest.raises(ProtocolError):
            choose("best_val", curves)


def test_a_selection_cannot_be_made_up():
    curves = (tuple(curve((50, 1), (60, 1))),)
    assert select("best_val", curves).epoch == 2
    with pytest.raises(ProtocolError, match="has to follow from its validation curves"):
        Selection("best_val", 0, 1, curves)
    values = select("best_val", curves).to_dict()
    assert Selection.from_dict(json.loads(json.dumps(values))) == select("best_val", curves)
    with pytest.raises(ProtocolError):
        Selection.from_dict({**values, "epoch": 1})


def sealed(opened=None):
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 2, 2)

    def load():
        if opened is not None:
            opened.append(True)
        return TensorImages(images)

    return SealedTest(load, torch.arange(10) % 2)


def test_the_test_split_is_scored_once_and_only_after_the_selection():
    opened = []
    test = sealed(opened)
    selection = select("best_val", [curve((50, 1))])
    for pretence in (None, 2, {"epoch": 2}):
        with pytest.raises(ProtocolError, match="stay closed until the epoch is selected"):
            test.score(pretence, lambda x: x)
    assert not opened
    # Classes predicted as the picture's value modulo 2, wrong from picture 6 on.
    predict = lambda x: torch.where(x[:, 0, 0, 0] < 6, x[:, 0, 0, 0] % 2, 7)  # noqa: E731
    assert test.score(selection, predict) == 60.0
    with pytest.raises(ProtocolError, match="were used already"):
        test.score(selection, predict)
    assert len(opened) == 1


def test_a_failed_look_counts_as_the_look():
    test = sealed()
    selection = select("best_val", [curve((50, 1))])
    with pytest.raises(ZeroDivisionError):
        test.score(selection, lambda x: x / (1 // 0))
    with pytest.raises(ProtocolError):
        test.score(selection, lambda x: x)


def test_a_sealed_split_shows_no_images_and_no_labels():
    test = sealed()
    assert [name for name in vars(test) if not name.startswith("_SealedTest__")] == []
    assert [name for name in dir(test) if not name.startswith("_")] == ["opened", "score"]
    assert len(test) == 10


# -- whole runs


def without_test(result):
    drop = {"test_accuracy", "seconds", "finished", "data"}
    kept = {k: v for k, v in dataclasses.asdict(result).items() if k not in drop}
    if kept["launch"]:
        kept["launch"] = {k: v for k, v in kept["launch"].items() if k != "seconds"}
    return kept


def test_test_labels_and_images_change_nothing_but_the_test_accuracy(tmp_path):
    run, result = trained_run(tmp_path)
    other = tmp_path / "other"
    folder = write_task(other / "data")
    for file in (folder / "images" / "test").iterdir():
        file.write_bytes((folder / "images/train800/000000.png").read_bytes())
    lines = (folder / "test.txt").read_text().splitlines()
    (folder / "test.txt").write_text("\n".join(line.rsplit(" ", 1)[0] + " 99" for line in lines))
    run_2, result_2 = trained_run(other)
    assert without_test(result) == without_test(result_2)
    assert result.test_accuracy != result_2.test_accuracy == 0
    name = "dash_adapter.safetensors"
    assert (run.folder / name).read_bytes() == (run_2.folder / name).read_bytes()


def test_the_test_images_stay_closed_until_the_final_model_is_trained(tmp_path, monkeypatch):
    events = []
    score, train = SealedTest.score, protocol.select

    def spied_score(self, selection, predict):
        events.append(("test", selection.epoch))
        return score(self, selection, predict)

    def spied_select(rule, curves):
        events.append(("select", len(curves)))
        return train(rule, curves)

    monkeypatch.setattr(SealedTest, "score", spied_score)
    monkeypatch.setattr("dash_vision.classification.run.select", spied_select)
    write_task(tmp_path / "data")
    run = one_run(tmp_path, search=["learning_rate=1e-3,1e-2"])
    phases = []
    result = execute(run, cpu(), progress=Watching(lambda job: phases.append((job.phase, len(events)))))
    assert events == [("select", 2), ("test", result.selected_epoch)]
    assert [e for phase, e in phases if phase == "select"] == [0] * 8
    assert [e for phase, e in phases if phase == "retrain"] == [1] * result.selected_epoch


def test_the_final_model_is_trained_on_everything_to_the_selected_epoch(tmp_path):
    _, result = trained_run(tmp_path)
    curve = result.selection["curves"][0]
    best = max(curve, key=lambda s: (s["val_accuracy"], -s["val_loss"]))
    assert result.selected_epoch == best["epoch"]
    assert result.val_accuracy == best["val_accuracy"]
    assert len(result.retrain_losses) == best["epoch"]
    # 24 + 12 images in batches of 8 are 5 steps an epoch.
    assert result.optimizer_steps == 5 * best["epoch"]


def test_the_last_epoch_can_be_asked_for(tmp_path):
    _, result = trained_run(tmp_path, selection="last")
    assert result.selected_epoch == 4


def test_a_search_is_settled_on_validation_images(tmp_path):
    _, result = trained_run(tmp_path, search=["learning_rate=1e-9,1e-2"])
    assert result.selected_settings == {"learning_rate": 1e-2}
    assert result.selection["candidates"] == [{"learning_rate": 1e-9}, {"learning_rate": 1e-2}]
    assert len(result.selection["curves"]) == 2


def test_val_only_never_opens_the_test_images_and_is_no_finished_run(tmp_path):
    folder = write_task(tmp_path / "data")
    for file in (folder / "images" / "test").iterdir():
        file.unlink()
    run, result = trained_run(tmp_path, val_only=True)
    assert result.test_accuracy is None
    assert [p.name for p in run.folder.iterdir()] == ["val_result.json"]


def test_a_search_tries_only_what_makes_a_difference_to_the_method(tmp_path):
    search = {"search": ["dash_k=2,4", "rank=1,2", "learning_rate=1e-3,1e-2"]}
    assert [len(one_run(tmp_path, methods=[m], **search).candidates()) for m in ("dash", "lora", "full")] == [8, 4, 2]
    assert one_run(tmp_path, methods=["linear"], search=["dash_k=2,4"]).candidates() == [{}]
