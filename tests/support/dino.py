"""A tiny DINOv2 with random, seeded weights."""

import torch
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model


def save_dino(folder):
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(folder)
    size = {"shortest_edge": 32}
    BitImageProcessor(size=size, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder
