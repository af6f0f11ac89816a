"""How like the subject pictures are, how far a model has moved from its base, and which of its checkpoints is best."""
