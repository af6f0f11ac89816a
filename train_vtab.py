"""Fine-tune a vision transformer on VTAB-1k: python train_vtab.py --task cifar100

Chooses the epoch on val200 after training on train800, trains again on train800val200, tests once.
"""

import sys

from dash_vision.classification.command import main

if __name__ == "__main__":
    sys.exit(main())
