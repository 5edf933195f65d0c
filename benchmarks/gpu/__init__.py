"""One call on a GPU machine: correctness of the kernels, and what the losses cost."""
