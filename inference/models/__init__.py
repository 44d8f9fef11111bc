"""Which models are available: their cards, and the registry that finds them."""
