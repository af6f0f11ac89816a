"""LoRA-Dash in the loops of other libraries: transformers' Trainer, and anything that trains a PEFT model."""
