"""Which models are there: cards, and the registry that finds them."""
