"""The device of the tests that are marked gpu: $DASH_VISION_GPU_TESTS=cpu tries them where there is no GPU."""

import os
from contextlib import contextmanager

DEVICE = os.environ.get("DASH_VISION_GPU_TESTS", "cuda")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; without it sums are of no order


def there():
    """Whether such a test can run."""
    import torch

    return DEVICE == "cpu" or torch.cuda.is_available()


@contextmanager
def exact():
    """Products of float32 with all 23 bits instead of the ten of TF32, and sums always in one order."""
    import torch

    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def peak(work):
    """Bytes of the GPU that `work()` holds at once at most, beyond those held before; 0 in a try on the CPU."""
    import torch

    if DEVICE == "cpu":
        work()
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
