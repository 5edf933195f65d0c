"""Head against head, without maps."""
