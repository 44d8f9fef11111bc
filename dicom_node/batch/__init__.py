"""Batches: where their series come from, how they reach the workers, and what became of them."""
