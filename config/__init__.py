"""Typed, frozen settings, their defaults, and the model cards that ship with the node."""
