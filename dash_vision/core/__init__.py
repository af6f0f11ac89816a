"""The method: torch and safetensors, nothing else."""
