"""A synthetic chest CT with known truth, for the demonstration, for training and for tests.

A phantom resembles a chest CT closely enough to pass through every step that a patient's scan passes
through; it is not a substitute for one. Everything follows from the seed: the same arguments give the
same voxels, up to the rounding of another machine's matrix library.

Only `write_series` and `write_multiframe` need pydicom.
"""
