"""Triton kernels of fastkd's losses, usable without fastkd: torch and triton are all they need."""
