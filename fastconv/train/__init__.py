"""Training the lecture's classifier on handwritten digits: the library behind ``fastconv train``.

conv 32 3×3 → ReLU → max pool 2 → conv 64 3×3 → ReLU → max pool 2 → flatten → dense 1024 → ReLU → dense 10 → softmax

Images of 28×28 and larger are convolved without padding, smaller ones (the embedded 8×8 digits) with padding 1.

**Interrupting.** Every order is drawn from ``(seed, epoch)``, so the state of a run is its weights, the optimiser's
state, the generator's and a position (epoch, batch). Ctrl-C lets the current batch finish and saves that; a run that
was interrupted and resumed ends with the same bits as one that was not.
"""

from .loop import Observer, TrainInterrupted, resume, train
from .results import KernelUse, TrainResult, kernels_used, record, write
from .run import EpochResult, Progress, Run, TrainConfig, build_model, load_samples

__all__ = [
    "EpochResult",
    "KernelUse",
    "Observer",
    "Progress",
    "Run",
    "TrainConfig",
    "TrainInterrupted",
    "TrainResult",
    "build_model",
    "kernels_used",
    "load_samples",
    "record",
    "resume",
    "train",
    "write",
]
