"""The scores of pictures are mean cosines of encoders."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import functional as images
from transformers import CLIPModel, CLIPProcessor

from dash_vision.bases.backbones import MINIATURE_WEIGHTS
from dash_vision.measures.encoders import ClipEncoder, DinoEncoder
from dash_vision.miniature import MINIATURE, clip_path
from tests.support.vtab import TINY


def test_scores_are_mean_cosines(runs, done):
    """Against CLIPModel itself, one picture and one prompt at a time."""
    model, processor = CLIPModel.from_pretrained(clip_path()).eval(), CLIPProcessor.from_pretrained(clip_path())

    def embedded(path):
        pixels = processor(images=Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
        return model.visual_projection(model.vision_model(pixels).pooler_output)[0]

    result = json.loads((done / "subject.json").read_text())
    real = [embedded(p) for p in sorted((runs / "cat").iterdir()) if p.suffix in (".png", ".jpg", ".jpeg", ".webp")]
    cosine = torch.nn.functional.cosine_similarity
    with torch.no_grad():
        between = [cosine(a, b, dim=0).item() for i, a in enumerate(real) for b in real[:i]]
        assert result["ceiling"]["CLIP-I"]["mean"] == pytest.approx(np.mean(between), abs=1e-5)
        for number, text in enumerate(("a cat in the snow", "a red cat")):  # without the rare word
            tokens = processor(text=[text], padding="max_length", max_length=40, return_tensors="pt")
            said = model.get_text_features(**tokens).pooler_output[0]
            pictures = [embedded(done / f"pictures/dash/{number:02d}-{n:02d}.png") for n in (0, 1)]
            scores = result["methods"]["dash"]["scores"]
            seen = [cosine(p, r, dim=0).item() for p in pictures for r in real]
            assert scores["CLIP-I"]["per_prompt"][number] == pytest.approx(np.mean(seen), abs=1e-5)
            matched = [cosine(p, said, dim=0).item() for p in pictures]
            assert scores["CLIP-T"]["per_prompt"][number] == pytest.approx(np.mean(matched), abs=1e-5)
    assert scores["CLIP-I"]["mean"] == pytest.approx(np.mean(scores["CLIP-I"]["per_prompt"]))


def test_dino_is_the_timm_model_without_its_head(tmp_path):
    torch.manual_seed(0)
    plain = timm.create_model(TINY["model"], num_classes=0).eval()
    save_file(plain.state_dict(), tmp_path / "vit.safetensors")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    found = DinoEncoder(TINY["model"], str(tmp_path / "vit.safetensors")).pictures([picture, picture.rotate(90)])
    # timm's default: resize to 32 / 0.875, cut out the middle; this model's mean and deviation are 0.5.
    larger = images.center_crop(images.resize(picture, 36, images.InterpolationMode.BICUBIC), 32)
    pixels = (images.to_tensor(larger) - 0.5) / 0.5
    with torch.no_grad():
        expected = torch.nn.functional.normalize(plain(pixels[None]).double(), dim=1)
    torch.testing.assert_close(found[:1], expected, atol=1e-6, rtol=0)
    assert found.norm(dim=1).tolist() == pytest.approx([1, 1])


def test_the_miniatures_vit_stands_in_for_dino():
    plain = timm.models.VisionTransformer(
        img_size=64, patch_size=8, embed_dim=128, depth=4, num_heads=4, num_classes=0
    ).eval()
    kept = {k: v for k, v in load_file(MINIATURE_WEIGHTS).items() if not k.startswith("head.")}
    plain.load_state_dict(kept)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    encoder = DinoEncoder(MINIATURE)
    assert encoder.name == "ViT of the miniature"
    with torch.no_grad():
        features = plain(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)
    expected = torch.nn.functional.normalize(features.double(), dim=1)
    torch.testing.assert_close(encoder.pictures([Image.fromarray(pixels)]), expected, atol=1e-5, rtol=0)


def test_long_prompts_are_cut_and_do_not_fail():
    texts = ClipEncoder(str(clip_path())).texts(["a cat " * 100, "a cat"])
    assert texts.shape[0] == 2
    assert torch.isfinite(texts).all()
