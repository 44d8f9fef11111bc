"""Is this machine set up so that the node works: what was found, and what to do."""
