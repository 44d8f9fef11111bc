"""A study with a known result that the node sends to itself, from one end to the other."""
