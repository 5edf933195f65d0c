"""How well students translate: one table from committed recipes, over several seeds."""
