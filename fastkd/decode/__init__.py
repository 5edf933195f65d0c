"""Decoding: beam search, translation of text, and its scores."""
