"""The measures of the miniature's report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from dash_vision import miniature
from dash_vision.miniature.train import report
from dash_vision.miniature.train.report import nearest, retrieval, slopes

# --------------------------------------------------------------------------------------------------- the measures


def test_retrieval_counts_right_choices_in_both_directions() -> None:
    features = torch.eye(4)
    assert retrieval(features, features, ways=4) == (1.0, 1.0)
    swapped = features[[1, 0, 2, 3]]
    assert retrieval(features, swapped, ways=4) == (0.5, 0.5)


def test_slopes_are_mean_differences_of_neighbours() -> None:
    ramp = torch.arange(64.0).expand(1, 3, 64, 64)  # 1 to the right, 0 downwards
    assert slopes(ramp) == 0.5
    blurred = torch.nn.functional.avg_pool2d(torch.rand(2, 3, 64, 64), 3, 1, 1)
    assert slopes(blurred) < 0.5 * slopes(torch.rand(2, 3, 64, 64))


def test_nearest_is_zero_for_a_copy_and_the_plain_distance_otherwise() -> None:
    training = np.zeros((3, 64, 64, 3), np.uint8)
    training[1] = 100
    copy = torch.full((1, 3, 64, 64), 100 / 127.5 - 1)
    lighter = torch.full((1, 3, 64, 64), 130 / 127.5 - 1)
    assert nearest(torch.cat([copy, lighter]), training).tolist() == pytest.approx([0, 30], abs=0.1)


# ------------------------------------------------------------------------------------------------- what it keeps


def test_figures_are_measured_again_where_only_the_vae_has_changed(tmp_path: Path, monkeypatch) -> None:
    """The pictures come of the decoder too."""
    work, docs = tmp_path / "work", tmp_path / "docs"
    weights = tmp_path / "weights"
    for folder in (work, docs, weights):
        folder.mkdir()
    shutil.copytree(miniature.WEIGHTS / "pipeline", weights / "pipeline")
    measured = []

    def generate(*arguments, **options):
        measured.append(arguments)
        raise InterruptedError

    def measure() -> dict[str, str]:
        return report._measure_base(miniature.MINIATURE, weights, work, docs, None, 2)

    monkeypatch.setattr(
        report, "_measure_loading", lambda figures, folder, guidance: StableDiffusionPipeline.from_pretrained(folder)
    )
    monkeypatch.setattr(report, "generate", generate)
    with pytest.raises(InterruptedError):
        measure()
    kept = {"identity": report._identity(miniature.load_pipeline(), miniature.MINIATURE, 2), "figures": {"a": "b"}}
    (work / "report-miniature.json").write_text(json.dumps(kept))
    (docs / report.SHEETS[miniature.MINIATURE]).touch()
    assert measure() == {"a": "b"}
    assert len(measured) == 1
    vae = AutoencoderKL.from_pretrained(weights / "pipeline" / "vae")
    vae.decoder.conv_out.bias.data += 0.01
    vae.save_pretrained(weights / "pipeline" / "vae")
    with pytest.raises(InterruptedError):
        measure()
