"""Attention alignment."""
