"""The demonstration: the whole journey once, with a toy PACS in the same process."""
