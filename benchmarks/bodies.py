"""Parts of the body other than the chest, in Hounsfield units, such as a head and an abdomen with lung bases."""

import numpy as np
from scipy import ndimage

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]


def _grid(shape: Shape, spacing: Spacing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Millimetres: z from the top down, y and x from the image's centre."""
    z, y, x = (np.arange(size, dtype=np.float32) * step for size, step in zip(shape, spacing, strict=True))
    return (z[-1] - z)[:, None, None], (y - y.mean())[None, :, None], (x - x.mean())[None, None, :]


def _scanned(hu: np.ndarray, spacing: Spacing, seed: int = 0) -> np.ndarray:
    """Blurred in plane and noisy, as from a scanner."""
    blurred = np.stack([ndimage.gaussian_filter(plane, 0.7 / spacing[1]) for plane in hu])
    return blurred + np.random.default_rng(seed).normal(0, 15, hu.shape).astype(np.float32)


def _ellipsoid(grid: tuple[np.ndarray, ...], centre: tuple[float, ...], axes: tuple[float, ...]) -> np.ndarray:
    return sum(((g - c) / a) ** 2 for g, c, a in zip(grid, centre, axes, strict=True)) < 1


def head_hu(shape: Shape, spacing: Spacing) -> np.ndarray:
    """A head and neck: skull, brain, sinuses and pharynx."""
    grid = _grid(shape, spacing)
    z, y, x = grid
    hu = np.full(shape, -1000, np.float32)
    width = np.where(z < 190, 1.0, 0.7) * np.sqrt(np.clip(1 - ((z - 95) / 97) ** 2, 0, 1) + 0.35 * (z > 150))
    radius = np.sqrt((x / 75) ** 2 + (y / 95) ** 2) / np.maximum(width, 0.02)
    hu[radius < 1] = 45
    hu[(radius < 0.95) & (z < 160)] = 900
    hu[(radius < 0.87) & (z < 160)] = 35
    hu[_ellipsoid(grid, (120, -62, 22), (14, 12, 14)) | _ellipsoid(grid, (120, -62, -22), (14, 12, 14))] = -990
    hu[((y + 20) ** 2 + x**2 < 9**2) & (z > 140)] = -995
    return _scanned(hu, spacing)


def abdomen_hu(shape: Shape, spacing: Spacing) -> np.ndarray:
    """An abdomen: fat, muscle, liver, spine, bowel with gas."""
    grid = _grid(shape, spacing)
    _, y, x = grid
    hu = np.full(shape, -1000, np.float32)
    flat = np.broadcast_to
    hu[flat((x / 165) ** 2 + (y / 115) ** 2 < 1, shape)] = -100
    hu[flat((x / 140) ** 2 + (y / 92) ** 2 < 1, shape)] = 45
    hu[flat(x**2 + (y - 65) ** 2 < 20**2, shape)] = 250
    hu[_ellipsoid(grid, (60, -10, -60), (80, 60, 65))] = 65
    rng = np.random.default_rng(7)
    for _ in range(14):
        centre = (rng.uniform(40, 400), rng.uniform(-70, 0), rng.uniform(-90, 90))
        hu[_ellipsoid(grid, centre, tuple(rng.uniform(8, 24, 3)))] = -980
    return _scanned(hu, spacing)


def lung_bases_hu(shape: Shape, spacing: Spacing) -> np.ndarray:
    """An abdomen whose uppermost 60 mm show the bases of the lungs."""
    grid = _grid(shape, spacing)
    hu = abdomen_hu(shape, spacing)
    for side in (-1, 1):
        base = _ellipsoid(grid, (-20, 15, side * 75), (85, 65, 50))
        hu[base] = np.random.default_rng(8).normal(-850, 40, int(base.sum()))
    return hu


def legs_hu(shape: Shape, spacing: Spacing) -> np.ndarray:
    """Two thighs: skin, fat, muscle and bone."""
    _, y, x = _grid(shape, spacing)
    hu = np.full(shape, -1000, np.float32)
    for centre in (-85, 85):
        radius = np.broadcast_to(np.hypot(y, x - centre), shape)
        for within, value in ((75, -100), (62, 50), (15, 900), (8, 150)):
            hu[radius < within] = value
    return _scanned(hu, spacing)


def neck_hu(shape: Shape, spacing: Spacing) -> np.ndarray:
    """A neck over shoulders whose lowest 45 mm show the tips of the lungs."""
    grid = _grid(shape, spacing)
    z, y, x = grid
    height = float(z.max())
    width = np.where(z > height - 90, 170.0, 62.0)
    hu = np.full(shape, -1000, np.float32)
    hu[(x / width) ** 2 + (y / (0.55 * width + 30)) ** 2 < 1] = 45
    hu[np.broadcast_to(x**2 + (y - 30) ** 2 < 15**2, shape)] = 300
    hu[np.broadcast_to(x**2 + (y + 15) ** 2 < 9**2, shape)] = -990
    for side in (-1, 1):
        tip = _ellipsoid(grid, (height + 10, 5, side * 60), (55, 40, 38))
        hu[tip] = np.random.default_rng(8).normal(-850, 40, int(tip.sum()))
    return _scanned(hu, spacing)
