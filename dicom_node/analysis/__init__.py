"""A worker's job: claim a series, analyse it, make the objects of its result; compute a result once more."""
