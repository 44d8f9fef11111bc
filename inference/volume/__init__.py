"""Stored instances to one CT volume in HU, or a named reason why not."""
