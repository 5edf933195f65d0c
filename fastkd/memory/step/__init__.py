"""A training step's memory: measured, and predicted for a device that is not there."""
