"""Seeded bugs."""


def apply(name: str) -> None:
    """Give this process a bug."""
