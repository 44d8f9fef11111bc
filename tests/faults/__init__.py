"""Tests that make things go wrong on purpose."""
