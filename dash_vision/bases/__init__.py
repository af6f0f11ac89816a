"""The models that are fine-tuned, as trainers and eval both load them."""
