"""What holds for every test, and for the processes it starts."""

import os

# Workers of pytest share the cores; threads that wait for each other would take most of them.
# Read by PyTorch when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Without a GPU, Triton kernels run under its interpreter. Read when a kernel is defined, so it has
# to be set before the first test module is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
