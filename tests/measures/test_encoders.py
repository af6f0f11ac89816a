"""Encoders in folders, of the classes that the hub's ones have."""

import numpy as np
import torch
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from dash_vision.measures.encoders import find_encoders
from dash_vision.miniature import clip_path

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def save_dinov2(folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    model = Dinov2Model(Dinov2Config(**sizes)).eval()
    model.save_pretrained(folder)
    whole = {"do_resize": False, "do_center_crop": False}
    BitImageProcessor(**whole, image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return model


def test_dinov2_compares_pictures_by_its_class_token(tmp_path):
    model = save_dinov2(tmp_path / "dinov2")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), np.uint8)
    found, problems = find_encoders([str(tmp_path / "dinov2"), str(clip_path())], embedded=False)
    assert not problems
    features = found.likeness.pictures([Image.fromarray(one) for one in pixels])
    inputs = torch.tensor((pixels / 255 - MEAN) / STD, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        token = model(pixel_values=inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(features, (token / token.norm(dim=1, keepdim=True)).double())
    assert found.names == {
        **dict.fromkeys(("likeness", "drift", "leak"), str(tmp_path / "dinov2")),
        "adherence": f"CLIP {clip_path()}",
    }


def test_clip_alone_compares_pictures_too():
    found, problems = find_encoders([str(clip_path())], embedded=False)
    assert not problems
    assert found.likeness is found.text
