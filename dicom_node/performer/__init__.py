"""Performs the steps of a worklist: claims them, fetches their images, and says how they ended."""
