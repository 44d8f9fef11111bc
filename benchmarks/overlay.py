"""Draws a segmentation over its CT without the node's code: dcmqi reads the SEG, SimpleITK the CT and the geometry.

    python -m benchmarks.overlay SERIES_FOLDER SEG.dcm OUT.png

Only patient positions link the two: each segment is resampled from its own grid onto the CT's. The image shows the
axial, coronal and sagittal planes through the middle of the last segment, in the lung window.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK
from PIL import Image
from scipy.ndimage import binary_erosion

COLOURS = ((64, 200, 255), (255, 150, 0))


def read_ct(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def read_segments(seg: Path, ct: SimpleITK.Image) -> list[np.ndarray]:
    """Each segment as a mask (Z, Y, X) on the CT's grid."""
    program = Path(sys.executable).parent / "segimage2itkimage"
    with tempfile.TemporaryDirectory() as folder:
        command = [str(program), "--inputDICOM", str(seg), "--outputDirectory", folder, "-t", "nrrd"]
        subprocess.run(command, check=True, capture_output=True)
        images = [SimpleITK.ReadImage(str(path)) for path in sorted(Path(folder).glob("*.nrrd"))]
    nearest = SimpleITK.sitkNearestNeighbor
    return [SimpleITK.GetArrayFromImage(SimpleITK.Resample(i, ct, SimpleITK.Transform(), nearest)) > 0 for i in images]


def plane(hu: np.ndarray, masks: list[np.ndarray], size_mm: tuple[float, float]) -> Image.Image:
    """Grey values with the segments tinted and outlined, two pixels per millimetre. size_mm: height, width."""
    grey = np.clip((hu + 1350) / 1500, 0, 1) * 255
    shape = (round(2 * size_mm[1]), round(2 * size_mm[0]))
    rgb = np.repeat(np.asarray(Image.fromarray(grey.astype(np.uint8)).resize(shape), float)[..., None], 3, axis=2)
    for mask, colour in zip(masks, COLOURS, strict=False):
        shown = np.asarray(Image.fromarray(mask).resize(shape, Image.Resampling.NEAREST))
        rgb[shown] = 0.8 * rgb[shown] + 0.2 * np.array(colour)
        rgb[shown & ~binary_erosion(shown, iterations=2)] = colour
    return Image.fromarray(rgb.astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("series", "seg", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    ct = read_ct(arguments.series)
    hu, masks = SimpleITK.GetArrayFromImage(ct), read_segments(arguments.seg, ct)
    x_mm, y_mm, z_mm = (size * step for size, step in zip(ct.GetSize(), ct.GetSpacing(), strict=True))
    z, y, x = np.argwhere(masks[-1])[np.count_nonzero(masks[-1]) // 2]
    planes = [
        plane(hu[z], [m[z] for m in masks], (y_mm, x_mm)),
        plane(hu[::-1, y], [m[::-1, y] for m in masks], (z_mm, x_mm)),
        plane(hu[::-1, :, x], [m[::-1, :, x] for m in masks], (z_mm, y_mm)),
    ]
    page = Image.new("RGB", (sum(p.width for p in planes) + 20, max(p.height for p in planes)))
    left = 0
    for image in planes:
        page.paste(image, (left, (page.height - image.height) // 2))
        left += image.width + 10
    page.save(arguments.out)


if __name__ == "__main__":
    main()
