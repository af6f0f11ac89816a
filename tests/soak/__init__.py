"""Kill it, starve it, spread it over processes: does a run lose anything?

python -m tests.soak [--minutes N] [--seed S] [--parts PART ...] [--short]

Real runs of both trainers on tiny models, in processes of their own. Prints, per part, how often it was tried,
survived and lost; the exit status is 1 when anything was lost. The kills go on until the minutes are over (but at least
50), everything else is done once. --short does a few of each: .ci/run does all parts so, the test suite two of them.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # runs that are compared bit for bit have to use equally many

import torch.distributed.fsdp  # before processes are forked: each of them would import it by itself, for seconds
import torch.distributed.tensor  # noqa: F401
