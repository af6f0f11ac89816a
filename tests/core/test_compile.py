"""torch.compile: one graph lasts through the launch."""

import pytest
import timm
import torch
from diffusers import UNet2DConditionModel
from torch._dynamo.testing import CompileCounter

from dash_vision import DashConfig, inject
from tests.support.models import unet_inputs


@pytest.mark.parametrize("network", ["unet", "vit"])
def test_a_compiled_model_has_no_graph_break_and_the_launch_recompiles_nothing(network):
    torch._dynamo.reset()
    if network == "unet":
        model = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32,),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=24,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        inputs = unet_inputs(model)
    else:
        model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=4)
        inputs = {"x": torch.randn(2, 3, 32, 32)}
    adapter = inject(
        model, DashConfig(rank=2, dash_k=3, target={"unet": "unet-attention", "vit": "vit-blocks"}[network])
    )
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    graphs = CompileCounter()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)  # fullgraph: a graph break is an error
    compiled_graphs = []
    for step in range(4):
        out = compiled(**inputs)
        (out.sample if network == "unet" else out).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            adapter.prepare()
        if step == 1:
            adapter.launch()
        compiled_graphs.append(graphs.frame_count)
    assert compiled_graphs == [1, 1, 1, 1]
    assert all(w.dsigma.abs().min() > 0 for _, w in adapter.weights())  # the graph has the dash in it
    plain = model(**inputs)
    difference = compiled(**inputs)[0] - plain[0]
    assert difference.abs().max() < 1e-5
