"""Lets every test call Triton kernels: without a GPU they run under Triton's interpreter."""

import os

import torch

# Read when a kernel is defined, so it has to be set before the first test module is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
