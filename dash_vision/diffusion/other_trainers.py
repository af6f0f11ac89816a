"""Flags of diffusers' DreamBooth scripts, of kohya's sd-scripts and of others, none of them here: what answers each.

Those that bear the same name here are settings in config.py and are not in this table.
"""

from __future__ import annotations

from ..runs.words import Foreign


def _here(flag: str, more: str = "") -> Foreign:
    """It is called otherwise here."""
    return Foreign(f"it is {flag} here{more}")


def _not_needed(why: str) -> Foreign:
    return Foreign(why, unneeded=True)


def _unless(same: str, answer: str) -> Foreign:
    """It is taken with the value (several are separated by |) that asks for what is done here anyway."""
    return Foreign(answer, same=tuple(same.split("|")))


_ENCODED_ONCE = "pictures and prompts are encoded once, before the training"
_FILES = (
    "safetensors in float32, for diffusers and in kohya's format, are always written; dash-vision export --dtype fp16"
)
_FSDP = "the base is split over processes by FSDP: accelerate launch --config_file docs/fsdp.yaml"
_BUCKETS = "sizes of buckets are made from --resolution; --aspect_ratio_buckets turns them on"
_CAPTIONS = "captions are used as they are in their files; write there what is to be read"
_DORA = (
    "there is no DoRA for diffusion models here; the dash is what this trainer adds to LoRA (--dash_k), and for vision "
    "transformers train_vtab.py trains DoRA with --peft_config"
)
_FULL = "adapters always train in float32; --mixed_precision fp16 or bf16 halves the frozen base"
_EVERY = "counted in optimizer steps here: --save_lora_every for adapters, --checkpointing_steps for checkpoints"
_LOSS = "the loss is the mean squared error; --snr_gamma weighs it"
_QUANTIZED = "--quantize nf4, int8 or fp8 quantizes the base here"
_EDIT = "pictures are not edited here: a base learns from prompts and pictures alone"
_PRODIGY = "Prodigy runs with bias correction, safeguarded warm-up and decoupled weight decay here; leave it out"
_RUN = "a run goes on from its latest checkpoint by itself; --resume_from_checkpoint names another"
_SAMPLE_EVERY = "--validation_epochs or --validation_steps, with --validation_prompt"
_DECAY_TEXT = "--adam_weight_decay counts for the text encoder too"

# -- diffusers: examples/dreambooth/train_dreambooth_lora*.py

_DIFFUSERS = {
    "adam_weight_decay_text_encoder": Foreign(_DECAY_TEXT),
    "bnb_quantization_config_path": Foreign(_QUANTIZED),
    "cache_latents": _not_needed(f"{_ENCODED_ONCE}; --latent_cache_dir keeps them for later runs"),
    "caption_dropout": _unless("0|0.0", f"no caption is dropped here; {_CAPTIONS}"),
    "class_labels_conditioning": Foreign("bases with class labels are not trained here"),
    "complex_human_instruction": Foreign("prompts reach the text encoder as its pipeline hands them over"),
    "cond_image_column": Foreign(_EDIT),
    "dataloader_num_workers": _not_needed(_ENCODED_ONCE),
    "disable_training_autocast": _here("--mixed_precision no"),
    "do_edm_style_training": Foreign(
        "a base is trained by the noise process that it was made with, and bases made with EDM are not trained here; "
        "--snr_gamma is the weighting that is done here"
    ),
    "do_fp8_training": Foreign(_QUANTIZED),
    "enable_npu_flash_attention": _not_needed("PyTorch chooses the fastest attention of the device"),
    "enable_vae_tiling": _not_needed("the VAE works in tiles where memory does not suffice"),
    "enable_xformers_memory_efficient_attention": _not_needed("PyTorch's own attention saves the same memory"),
    "final_validation_prompt": _here("one of --validation_prompt", ", which are drawn at the end too"),
    "fsdp_text_encoder": Foreign(_FSDP),
    "image_interpolation_mode": _unless("lanczos", "pictures are always resized by Lanczos; leave it out"),
    "local_rank": _not_needed("accelerate launch says it in the environment"),
    "lora_blocks": _here("--lora_target", ", which takes a regular expression of module names"),
    "lora_layers": _here("--lora_target", ", with spaces between the names instead of commas"),
    "offset_noise": _here("--noise_offset 0.1"),
    "output_kohya_format": _not_needed("the run always writes kohya's format too, into OUTPUT_DIR/kohya"),
    "pre_compute_text_embeddings": _not_needed(_ENCODED_ONCE),
    "precondition_outputs": Foreign("outputs are not preconditioned here, since bases made with EDM are not trained"),
    "pretrained_text_encoder_4_name_or_path": Foreign("the text encoders are those of the base"),
    "pretrained_tokenizer_4_name_or_path": Foreign("the tokenizers are those of the base"),
    "prior_generation_precision": _not_needed("class pictures are drawn in the run's --mixed_precision"),
    "prodigy_beta3": _unless("none", _PRODIGY),
    "prodigy_decouple": _unless("true", _PRODIGY),
    "prodigy_safeguard_warmup": _unless("true", _PRODIGY),
    "prodigy_use_bias_correction": _unless("true", _PRODIGY),
    "prompt_enhancer_head_id": Foreign("prompts are used as they are given"),
    "remote_text_encoder": Foreign("text encoders run on this machine; they are on the GPU only before the training"),
    "set_grads_to_none": _not_needed("gradients are always set to none"),
    "skip_final_inference": Foreign("samples.png is the result's proof; --num_inference_steps 1 makes it quick"),
    "skip_save_text_encoder": _not_needed("only adapters are written"),
    "system_prompt": Foreign("prompts reach the text encoder as its pipeline hands them over"),
    "text_encoder_out_layers": Foreign("the layers that a base's pipeline reads are read"),
    "text_encoder_use_attention_mask": Foreign("the base's pipeline decides about attention masks; leave it out"),
    "tokenizer_max_length": _here("--max_token_length"),
    "tokenizer_name": Foreign("the tokenizer is the base's own"),
    "upcast_before_saving": _not_needed("adapters train and are written in float32"),
    "upsample_prompt": Foreign("prompts are used as they are given"),
    "use_aspect_ratio_buckets": _here("--aspect_ratio_buckets"),
    "use_dora": Foreign(_DORA),
    "use_ema": Foreign("no average of the weights is kept; a lower --learning_rate or more steps do its work"),
    "ema_decay": Foreign("no average of the weights is kept"),
    "vae_encode_mode": _unless("sample", "latents are drawn from the VAE's distribution; leave it out"),
    "validation_guidance_scale": _here("--guidance_scale"),
    "validation_image": Foreign(_EDIT),
    "validation_images": Foreign(_EDIT),
    "validation_model_path": Foreign("samples are drawn on the base that is trained; dash-vision generate --base"),
    "validation_num_inference_steps": _here("--num_inference_steps"),
    "validation_scheduler": Foreign("samples are drawn by the sampler that the base's files name"),
}

# -- kohya's sd-scripts: train_network.py and its relatives

_KOHYA = {
    "adaptive_noise_scale": Foreign("only --noise_offset is done here"),
    "ae": _here("--pretrained_vae_model_name_or_path"),
    "alpha_mask": Foreign("every pixel counts alike; transparent parts are put on white"),
    "apply_t5_attn_mask": Foreign("the base's pipeline decides about attention masks; leave it out"),
    "async_upload": Foreign("--push_to_hub pushes at the end"),
    "base_weights": Foreign("merge other LoRAs into the base first, and give that"),
    "base_weights_multiplier": Foreign("merge other LoRAs into the base first, and give that"),
    "blocks_to_swap": _here("--offload group", ", which moves all blocks"),
    "bucket_no_upscale": Foreign(_BUCKETS),
    "bucket_reso_steps": Foreign(_BUCKETS),
    "cache_info": _not_needed(_ENCODED_ONCE),
    "cache_latents_to_disk": _here("--latent_cache_dir DIR"),
    "cache_text_encoder_outputs": _not_needed(_ENCODED_ONCE),
    "cache_text_encoder_outputs_to_disk": _not_needed(_ENCODED_ONCE),
    "caption_dropout_every_n_epochs": _unless("0", f"no caption is dropped here; {_CAPTIONS}"),
    "caption_dropout_rate": _unless("0|0.0", f"no caption is dropped here; {_CAPTIONS}"),
    "caption_extension": _unless(".txt|.caption", "captions are read from NAME.txt and NAME.caption"),
    "caption_extention": _unless(".txt|.caption", "captions are read from NAME.txt and NAME.caption"),
    "caption_prefix": Foreign(_CAPTIONS),
    "caption_separator": Foreign(_CAPTIONS),
    "caption_suffix": Foreign(_CAPTIONS),
    "caption_tag_dropout_rate": _unless("0|0.0", f"no tag is dropped here; {_CAPTIONS}"),
    "clip_l": Foreign("the text encoders are those of the base"),
    "color_aug": Foreign("colours are not changed; --random_flip and random crops are what is done"),
    "conditioning_data_dir": Foreign(_EDIT),
    "config_file": _here("--config", ", a YAML or JSON file of the settings that --help lists"),
    "controlnet_model_name_or_path": Foreign("no ControlNet is trained here"),
    "cpu_offload_checkpointing": _here("--gradient_checkpointing"),
    "dataset_class": Foreign("pictures come from --instance_data_dir or --dataset_name"),
    "dataset_config": Foreign("pictures come from --instance_data_dir, which reads kohya's folders such as 10_sks dog"),
    "dataset_repeats": _here("--repeats"),
    "ddp_gradient_as_bucket_view": _not_needed("an adapter's gradients are small"),
    "ddp_static_graph": _not_needed("an adapter's gradients are small"),
    "ddp_timeout": _not_needed("processes wait two hours for one another"),
    "debiased_estimation_loss": Foreign(_LOSS),
    "debug_dataset": Foreign("the run says what it reads before it loads the base"),
    "deepspeed": Foreign(_FSDP),
    "dim_from_weights": _here("--rank"),
    "disable_mmap_load_safetensors": _not_needed("leave it to the libraries"),
    "discrete_flow_shift": Foreign("a base's own shift of the times is used"),
    "dynamo_backend": _here("--compile"),
    "enable_bucket": _here("--aspect_ratio_buckets"),
    "enable_wildcard": Foreign(_CAPTIONS),
    "face_crop_aug_range": Foreign("crops are random, or central with --center_crop"),
    "flip_aug": _here("--random_flip"),
    "fp16_master_weights_and_gradients": Foreign(_FULL),
    "fp8_base": Foreign(_QUANTIZED),
    "fp8_base_unet": Foreign(_QUANTIZED),
    "full_bf16": Foreign(_FULL),
    "full_fp16": Foreign(_FULL),
    "fused_backward_pass": Foreign("an adapter's gradients are small; leave it out"),
    "highvram": _not_needed("leave it to PyTorch"),
    "huber_c": Foreign(_LOSS),
    "huber_scale": Foreign(_LOSS),
    "huber_schedule": Foreign(_LOSS),
    "huggingface_path_in_repo": Foreign("--push_to_hub pushes the run's folder to the top of --hub_model_id"),
    "huggingface_repo_id": _here("--hub_model_id", ", with --push_to_hub"),
    "huggingface_repo_type": _unless("model", "--push_to_hub makes a model repository"),
    "huggingface_repo_visibility": Foreign("make the repository on the hub first to have it private"),
    "huggingface_token": _here("--hub_token", "; better is hf auth login, which keeps it off the command line"),
    "in_json": Foreign("captions are read from files beside the pictures, metadata.jsonl or metadata.csv"),
    "initial_epoch": Foreign(_RUN),
    "initial_step": Foreign(_RUN),
    "ip_noise_gamma": Foreign("inputs are not perturbed; only --noise_offset is done here"),
    "ip_noise_gamma_random_strength": Foreign("inputs are not perturbed; only --noise_offset is done here"),
    "keep_tokens": _unless("0", _CAPTIONS),
    "keep_tokens_separator": Foreign(_CAPTIONS),
    "log_config": _not_needed("run.json holds every setting"),
    "log_prefix": Foreign("logs go to --logging_dir in the output folder"),
    "log_tracker_config": Foreign("trackers are set up by their own environment variables"),
    "log_tracker_name": Foreign("trackers see the run as dash-vision"),
    "log_with": _here("--report_to"),
    "loss_type": _unless("l2", _LOSS),
    "lowram": _not_needed("leave it to PyTorch"),
    "lr_decay_steps": Foreign("the rate falls over all of --max_train_steps"),
    "lr_scheduler_args": Foreign("--lr_scheduler with --lr_num_cycles and --lr_power is what there is"),
    "lr_scheduler_min_lr_ratio": Foreign("the rate falls to 0; --lr_scheduler polynomial ends at a small rest"),
    "lr_scheduler_num_cycles": _here("--lr_num_cycles"),
    "lr_scheduler_power": _here("--lr_power"),
    "lr_scheduler_timescale": Foreign("--lr_scheduler has no such course"),
    "lr_scheduler_type": _here("--lr_scheduler"),
    "masked_loss": Foreign("every pixel counts alike"),
    "max_bucket_reso": Foreign(_BUCKETS),
    "max_data_loader_n_workers": _not_needed(_ENCODED_ONCE),
    "max_timestep": Foreign("all times of the noise process are trained"),
    "max_train_epochs": _here("--num_train_epochs"),
    "max_validation_steps": Foreign(f"there is no loss on other pictures; samples show the course: {_SAMPLE_EVERY}"),
    "mem_eff_attn": _not_needed("PyTorch's own attention saves the same memory"),
    "metadata_author": Foreign("edit the model card in the output folder"),
    "metadata_description": Foreign("edit the model card in the output folder"),
    "metadata_license": Foreign("edit the model card in the output folder"),
    "metadata_tags": Foreign("edit the model card in the output folder"),
    "metadata_title": Foreign("files are called by the output folder's name"),
    "metadata_trigger_phrase": _not_needed("the instance prompt's subject is written as the trigger"),
    "min_bucket_reso": Foreign(_BUCKETS),
    "min_snr_gamma": _here("--snr_gamma"),
    "min_timestep": _unless("0", "all times of the noise process are trained"),
    "model_prediction_type": Foreign("what a base predicts is read from its files; --prediction_type for single files"),
    "model_type": Foreign("the family of a base is read from its files"),
    "multires_noise_discount": Foreign("only --noise_offset is done here"),
    "multires_noise_iterations": Foreign("only --noise_offset is done here"),
    "network_alpha": _here("--lora_alpha"),
    "network_args": Foreign("--lora_target names the layers, --dash_k the directions"),
    "network_dim": _here("--rank"),
    "network_dropout": _here("--lora_dropout"),
    "network_module": _unless("networks.lora|networks.lora_flux", "LoRA with a dash is what is trained here"),
    "network_train_text_encoder_only": Foreign("the denoiser is always trained; --train_text_encoder adds the encoder"),
    "network_train_unet_only": _not_needed("text encoders are trained with --train_text_encoder only"),
    "network_weights": Foreign(_RUN),
    "no_half_vae": _not_needed("the VAE always works in float32"),
    "no_metadata": Foreign("files say what they are, since programs read it; edit them afterwards"),
    "noise_offset_random_strength": Foreign("--noise_offset has one strength"),
    "offload_optimizer_device": Foreign(_FSDP),
    "offload_optimizer_nvme_path": Foreign(_FSDP),
    "offload_param_device": Foreign(_FSDP),
    "offload_param_nvme_path": Foreign(_FSDP),
    "optimizer_args": Foreign("--adam_beta1, --adam_beta2, --adam_weight_decay and --adam_epsilon are what there is"),
    "optimizer_schedulefree_wrapper": Foreign("--optimizer takes adamw and prodigy"),
    "optimizer_type": _here("--optimizer", " (AdamW8bit: --use_8bit_adam)"),
    "output_config": _not_needed("run.json holds every setting, and --config takes it"),
    "output_name": Foreign("files are called by the name of --output_dir"),
    "perlin_noise": Foreign("only --noise_offset is done here"),
    "persistent_data_loader_workers": _not_needed(_ENCODED_ONCE),
    "random_crop": _not_needed("crops are random unless --center_crop is given"),
    "reg_data_dir": _here("--class_data_dir", ", with --with_prior_preservation"),
    "resize_interpolation": _unless("lanczos", "pictures are always resized by Lanczos; leave it out"),
    "resume": _here("--resume_from_checkpoint"),
    "resume_from_huggingface": Foreign("fetch the checkpoint first"),
    "sample_at_first": Foreign("samples.png shows the base beside the result"),
    "sample_every_n_epochs": _here("--validation_epochs"),
    "sample_every_n_steps": _here("--validation_steps"),
    "sample_prompts": _here("--validation_prompt", ", which takes a text file of prompts too"),
    "sample_sampler": Foreign("samples are drawn by the sampler that the base's files name"),
    "save_every_n_epochs": Foreign(_EVERY),
    "save_every_n_steps": _here("--save_lora_every"),
    "save_last_n_epochs": Foreign("--checkpoints_total_limit counts checkpoints"),
    "save_last_n_epochs_state": _here("--checkpoints_total_limit"),
    "save_last_n_steps": Foreign("--checkpoints_total_limit counts checkpoints"),
    "save_last_n_steps_state": _here("--checkpoints_total_limit"),
    "save_model_as": _unless("safetensors", _FILES),
    "save_n_epoch_ratio": Foreign(_EVERY),
    "save_precision": _unless("float|none", _FILES),
    "save_state": _not_needed("checkpoints are written every --checkpointing_steps"),
    "save_state_on_train_end": _not_needed("the last step leaves a checkpoint unless --checkpointing_steps is 0"),
    "save_state_to_huggingface": Foreign("--push_to_hub pushes what the run leaves, without its checkpoints"),
    "scale_v_pred_loss_like_noise_pred": Foreign(_LOSS),
    "scale_weight_norms": Foreign("an update's norm is not held down; --adam_weight_decay does a part of it"),
    "schedulefree_wrapper_args": Foreign("--optimizer takes adamw and prodigy"),
    "sdpa": _not_needed("PyTorch's own attention is used"),
    "secondary_separator": Foreign(_CAPTIONS),
    "shuffle_caption": Foreign(_CAPTIONS),
    "sigmoid_scale": Foreign("times of the noise process are drawn with all alike here; leave it out"),
    "skip_cache_check": _not_needed(_ENCODED_ONCE),
    "skip_until_initial_step": Foreign(_RUN),
    "split_mode": Foreign(_FSDP),
    "t5xxl": Foreign("the text encoders are those of the base"),
    "t5xxl_max_token_length": Foreign("the base's pipeline decides how many tokens are read"),
    "text_encoder_batch_size": _not_needed(_ENCODED_ONCE),
    "token_warmup_min": Foreign(_CAPTIONS),
    "token_warmup_step": Foreign(_CAPTIONS),
    "tokenizer_cache_dir": _here("--cache_dir"),
    "torch_compile": _here("--compile"),
    "train_data_dir": _here("--instance_data_dir"),
    "training_comment": Foreign("edit the model card in the output folder"),
    "unet_lr": _here("--learning_rate"),
    "use_lion_optimizer": Foreign("--optimizer takes adamw and prodigy"),
    "use_safetensors": _not_needed("weights are read from safetensors only"),
    "v2": _not_needed("the family of a base is read from its files"),
    "v_parameterization": _here("--prediction_type v_prediction", ", needed only where the base's files do not say it"),
    "v_pred_like_loss": Foreign(_LOSS),
    "vae": _here("--pretrained_vae_model_name_or_path"),
    "vae_batch_size": _not_needed("pictures are encoded one by one"),
    "validate_every_n_epochs": _here("--validation_epochs"),
    "validate_every_n_steps": _here("--validation_steps"),
    "validation_seed": Foreign("samples are drawn from the run's --seed"),
    "validation_split": Foreign(f"there is no loss on other pictures; samples show the course: {_SAMPLE_EVERY}"),
    "wandb_api_key": Foreign("log in with wandb login, which keeps the key off the command line"),
    "wandb_run_name": Foreign("set WANDB_NAME"),
    "weighted_captions": Foreign(_CAPTIONS),
    "xformers": _not_needed("PyTorch's own attention saves the same memory"),
    "zero3_init_flag": Foreign(_FSDP),
    "zero3_save_16bit_model": Foreign(_FSDP),
    "zero_stage": Foreign(_FSDP),
}

# -- what people call things elsewhere

_ELSEWHERE = {
    "batch_size": _here("--train_batch_size"),
    "bs": _here("--train_batch_size"),
    "epochs": _here("--num_train_epochs"),
    "lora_rank": _here("--rank"),
    "lr": _here("--learning_rate"),
    "model": _here("--pretrained_model_name_or_path"),
    "prompt": _here("--instance_prompt"),
    "steps": _here("--max_train_steps"),
}

# -- ai-toolkit's names of differential output preservation

_AI_TOOLKIT = {
    "diff_output_preservation": _here("--preserve_class"),
    "diff_output_preservation_class": _here("--class_prompt", ", the whole prompt and not the class alone"),
    "diff_output_preservation_multiplier": _here("--preserve_class_weight"),
}

FOREIGN = _DIFFUSERS | _KOHYA | _ELSEWHERE | _AI_TOOLKIT
