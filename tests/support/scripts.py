"""The two training scripts on tiny inputs, called in this process."""

import train_dreambooth
import train_vtab
from tests.support.vtab import TINY


def dreambooth(bases, out, *more):
    words = ["--instance_data", bases / "cat", "--pretrained_model_name_or_path", bases / "sd", "--output_dir", out]
    words += ["--rank", 2, "--dash_k", 3, "--max_train_steps", 6, "--prelaunch_steps", 2, "--num_crop_variants", 1]
    words += ["--checkpointing_steps", 1, "--num_inference_steps", 1, "--validation_prompt", "a cat", *more]
    return train_dreambooth.main([str(word) for word in words])


def vtab(bases, out, *more):
    words = ["--task", "cifar", "--data_root", bases / "data", "--cache_dir", "none", "--output_dir", out]
    words += ["--model", TINY["model"], "--random_weights", "--epochs", 3, "--train_batch_size", 8, "--rank", 2]
    words += ["--dash_k", 3, "--prelaunch_steps", 2, "--checkpoint_every", 1, *more]
    return train_vtab.main([str(word) for word in words])
