"""The checkpoint layout of the original Stable Diffusion code."""

import torch
from diffusers import StableDiffusionXLPipeline


def save_single_file(pipeline, path):
    """A Stable Diffusion 1.x or SDXL pipeline as one file with the original code's names, as downloads have them."""
    from safetensors.torch import save_file

    tensors = {}
    for prefix, network, rename in (
        ("model.diffusion_model.", pipeline.unet, _ldm_unet_names(pipeline.unet)),
        ("first_stage_model.", pipeline.vae, _ldm_vae_names(pipeline.vae)),
    ):
        for key, tensor in network.state_dict().items():
            old = next(name for name in sorted(rename, key=len, reverse=True) if key.startswith(name + "."))
            tensors[prefix + rename[old] + key[len(old) :]] = tensor.clone()
    xl = isinstance(pipeline, StableDiffusionXLPipeline)
    prefix = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
    for key, tensor in pipeline.text_encoder.state_dict().items():
        tensors[prefix + (key if key.startswith("text_model.") else f"text_model.{key}")] = tensor.clone()
    if xl:
        tensors |= {
            f"conditioner.embedders.1.model.{key}": tensor
            for key, tensor in _open_clip_tensors(pipeline.text_encoder_2).items()
        }
    save_file(tensors, path)
    return path


def _open_clip_tensors(encoder):
    """A CLIPTextModelWithProjection's tensors by OpenCLIP's names: query, key and value stacked."""
    state = {key.removeprefix("text_model."): tensor.clone() for key, tensor in encoder.state_dict().items()}
    found = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
    }
    parts = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "attn.out_proj": "self_attn.out_proj",
    }
    for i in range(encoder.config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            found |= {f"{theirs}{new}.{kind}": state[f"{ours}{old}.{kind}"] for new, old in parts.items()}
            stacked = [state[f"{ours}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            found[f"{theirs}attn.in_proj_{kind}"] = torch.cat(stacked)
    return found


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _ldm_unet_names(unet):
    """diffusers' module name -> the original's, for every module that owns parameters."""
    names = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.attentions.0": "middle_block.1",
        "add_embedding.linear_1": "label_emb.0.0",  # SDXL's only
        "add_embedding.linear_2": "label_emb.0.2",
    }

    def resnet(ours, theirs):
        names.update({f"{ours}.{a}": f"{theirs}.{b}" for a, b in _RESNET.items()})

    resnet("mid_block.resnets.0", "middle_block.0")
    resnet("mid_block.resnets.1", "middle_block.2")
    n = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            resnet(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{n}.0")
            names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{n}.1"
            n += 1
        if block.downsamplers:
            names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{n}.0.op"
            n += 1
    n = 0
    for i, block in enumerate(unet.up_blocks):
        attention = hasattr(block, "attentions")
        for j in range(len(block.resnets)):
            resnet(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{n}.0")
            names[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{n}.1"
            n += 1
        if block.upsamplers:
            names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{n - 1}.{2 if attention else 1}.conv"
    return names


def _ldm_vae_names(vae):
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        for ours, theirs in (("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")):
            names[f"{side}.{ours}"] = f"{side}.{theirs}"
        for j in (0, 1):
            names[f"{side}.mid_block.resnets.{j}"] = f"{side}.mid.block_{j + 1}"
    for i, block in enumerate(vae.encoder.down_blocks):
        for j in range(len(block.resnets)):
            names[f"encoder.down_blocks.{i}.resnets.{j}"] = f"encoder.down.{i}.block.{j}"
        names[f"encoder.down_blocks.{i}.downsamplers.0"] = f"encoder.down.{i}.downsample"
    last = len(vae.decoder.up_blocks) - 1
    for i, block in enumerate(vae.decoder.up_blocks):
        for j in range(len(block.resnets)):
            names[f"decoder.up_blocks.{i}.resnets.{j}"] = f"decoder.up.{last - i}.block.{j}"
        names[f"decoder.up_blocks.{i}.upsamplers.0"] = f"decoder.up.{last - i}.upsample"
    return names
