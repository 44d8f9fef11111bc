"""When is a series complete, what is fetched from its source, and which series of a study is the best."""
