"""Teach a Stable Diffusion model your subject from a few pictures, with LoRA-Dash (arXiv 2409.01035).

accelerate launch train_dreambooth.py --instance_data cat/ --dash_k 8
"""

import sys

from dash_vision.diffusion.command import main

if __name__ == "__main__":
    sys.exit(main())
