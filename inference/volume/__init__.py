"""Turns stored instances into one CT volume in HU, or gives a named reason why not."""
