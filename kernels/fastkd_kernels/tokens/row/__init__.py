"""A row of logits at a time."""
