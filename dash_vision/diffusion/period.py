"""How often a run is measured where the user says nothing."""

from __future__ import annotations

_SHARE = 0.1  # of the training's time that measuring may take
_FEWEST, _MOST = 2, 10  # measurements of a run
_BACKWARD = 2  # a backward pass, in forward passes
_PICTURES = 18  # drawn in a measurement, about


def usual_period(steps: int, batch: int, checkpointing: bool, sampling_steps: int, guided: bool) -> int:
    """Optimizer steps between measurements that take a tenth of the training, counted in forward passes of a picture.

    batch: pictures of an optimizer step, on one process.
    """
    training = steps * batch * (1 + _BACKWARD + checkpointing)
    measuring = _PICTURES * sampling_steps * (2 if guided else 1)
    often = int(_SHARE * training / measuring) - 1  # the base is measured too
    return max(1, -(-steps // max(_FEWEST, min(_MOST, often))))
