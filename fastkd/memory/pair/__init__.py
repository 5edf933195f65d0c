"""The memory of a training step of Transformers models, in whatever trainer."""
