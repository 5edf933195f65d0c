"""How fast models translate."""
