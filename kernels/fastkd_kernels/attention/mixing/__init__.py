"""Mixes maps through a weight, and measures them."""
