"""What every run needs, once: settings, processes, random numbers, the training loop, the record of a run."""
