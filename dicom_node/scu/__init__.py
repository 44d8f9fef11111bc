"""Associations that the node opens: C-STORE, C-FIND, C-GET, C-ECHO."""
