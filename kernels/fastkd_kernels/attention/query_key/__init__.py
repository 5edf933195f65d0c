"""Alignment of queries and keys through a weight."""
