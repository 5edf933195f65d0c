"""Whole training steps, beside a bare loop, and training that is killed again and again."""
