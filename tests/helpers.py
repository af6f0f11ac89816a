"""Small models of the real classes, shaped like Stable Diffusion 1.x and SDXL."""

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from dash_vision import inject


def trained(model, config, launch=True, scale=0.3, name="default"):
    """An adapter with random A, B and dsigma, launched: what training leaves, without the training."""
    adapter = inject(model, config, name)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in adapter.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * scale)
    if launch and config.dash_k:
        adapter.launch()
        with torch.no_grad():
            for _, w in adapter.weights():
                w.dsigma.mul_(3)
    return adapter


def sd_unet(seed=0):
    """SD-1.x-shaped: convolutional projections into the transformers, one text encoder."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()


def sdxl_unet(seed=0):
    """SDXL-shaped: linear projections, several transformer blocks, text-and-time conditioning."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=40,
        norm_num_groups=8,
    ).eval()


def unet_inputs(unet):
    generator = torch.Generator().manual_seed(2)
    inputs = {
        "sample": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor([3, 700]),
        "encoder_hidden_states": torch.randn(2, 6, unet.config.cross_attention_dim, generator=generator),
    }
    if unet.config.addition_embed_type == "text_time":
        added = {
            "text_embeds": torch.randn(2, 32, generator=generator),
            "time_ids": torch.rand(2, 6, generator=generator),
        }
        inputs["added_cond_kwargs"] = added
    return inputs


def text_encoder():
    torch.manual_seed(4)
    config = CLIPTextConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return CLIPTextModel(config).eval()


def stock_pipeline(unet, encoder=None):
    """A diffusers pipeline around `unet`, enough of one for load_lora_weights."""
    parts = {
        "vae": None,
        "text_encoder": encoder,
        "tokenizer": None,
        "unet": unet,
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
    }
    if unet.config.addition_embed_type == "text_time":
        return StableDiffusionXLPipeline(**parts, text_encoder_2=None, tokenizer_2=None)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


# -- whole pipelines, as folders


def save_base(folder, xl=False, prediction_type="epsilon", seed=0):
    """A tiny Stable Diffusion (or SDXL) pipeline of the real classes with random weights, saved to `folder`.

    Pictures of 16 x 16 pixels, latents of 8 x 8.
    """
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModelWithProjection

    from dash_vision.miniature.world.vocabulary import write_tokenizer

    torch.manual_seed(seed)
    unet = sdxl_unet(seed) if xl else sd_unet(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=16,
        mid_block_add_attention=False,
    )
    tokenizer = write_tokenizer(folder / "words", 12)
    parts = {"vae": vae, "unet": unet, "tokenizer": tokenizer}
    parts["scheduler"] = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        clip_sample=False,
        prediction_type=prediction_type,
    )
    if xl:
        # Widths 8 and 32 join to the UNet's 40; the second one's projection is its pooled 32.
        parts["text_encoder"] = CLIPTextModel(text_config(tokenizer, 8))
        parts["text_encoder_2"] = CLIPTextModelWithProjection(text_config(tokenizer, 32))
        parts["tokenizer_2"] = tokenizer
        pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        parts["text_encoder"] = CLIPTextModel(text_config(tokenizer, 24))
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.save_pretrained(folder)
    return folder


def text_config(tokenizer, width):
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def save_pictures(folder, count=5, size=20):
    """`count` pictures of coloured noise."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(3)
    for i in range(count):
        pixels = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return folder


# -- the checkpoint layout of the original Stable Diffusion code


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
