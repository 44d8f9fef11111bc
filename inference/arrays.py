"""The arrays that travel through the package, by name."""

import numpy as np
import numpy.typing as npt

Grey = npt.NDArray[np.uint8]
"""8-bit grey slices, (Z, Y, X) or (Y, X)."""
Mask = npt.NDArray[np.bool_]
"""True inside."""
Box = tuple[slice, slice, slice]
"""A part of a volume: slices along z, y and x."""
