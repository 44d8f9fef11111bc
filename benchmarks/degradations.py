"""Changes to any CT series, both faults and differences that must not matter, each with its right outcome.

Every change takes the images of a series, lowest first, and returns the images to write. It never alters the source.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.utils import compress
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from benchmarks.bodies import abdomen_hu, head_hu
from inference.volume.ct_volume import CTVolume

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"

ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "1.2.840.10008.1.2.4.70": lambda words: imagecodecs.ljpeg_encode(words, bitspersample=16),
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.90": lambda words: imagecodecs.jpeg2k_encode(words, codecformat="j2k", reversible=True),
    "1.2.840.10008.1.2.4.201": lambda words: imagecodecs.htj2k_encode(words, reversible=True),
}


@dataclass(frozen=True)
class Image:
    """One image to be written. stored: words as stored, integers (Y, X) or (frames, Y, X). name: of its file."""

    header: Dataset
    stored: np.ndarray
    name: str
    syntax: str = ExplicitVRLittleEndian
    cut: float = 1.0

    def with_values(self, **values: object) -> "Image":
        """A copy with header elements set by keyword; None removes one."""
        header = copy.deepcopy(self.header)
        for keyword, value in values.items():
            if value is None:
                header.pop(keyword, None)
            else:
                setattr(header, keyword, value)
        return replace(self, header=header)

    @property
    def position(self) -> list[float]:
        return [float(value) for value in self.header.ImagePositionPatient]

    def at(self, z: float) -> "Image":
        return self.with_values(ImagePositionPatient=[*self.position[:2], round(z, 4)])

    def copied(self, name: str) -> "Image":
        """A copy under a UID of its own."""
        return replace(self.with_values(SOPInstanceUID=generate_uid()), name=name)


Images = list[Image]
Change = Callable[[Images], Images]


@dataclass(frozen=True)
class Variant:
    """A change and the codes that are right for it; a variant that must be analysed has no codes.

    same: every voxel of the volume must stay the same.
    """

    name: str
    change: Change
    codes: frozenset[str] = field(default_factory=frozenset)
    same: bool = True


def read_images(volume: CTVolume) -> Images:
    """The images of a loaded series, decompressed, lowest first."""
    images = []
    for index, source in enumerate(volume.slices):
        dataset = pydicom.dcmread(source.path)
        stored = dataset.pixel_array
        del dataset.PixelData
        images.append(Image(dataset, stored, f"{index:04d}.dcm"))
    return images


def write_images(images: Sequence[Image], folder: Path) -> list[Path]:
    """Write every image with its name and in its transfer syntax."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(image, folder / image.name) for image in images]


def _write(image: Image, path: Path) -> Path:
    header = copy.deepcopy(image.header)
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.file_meta.TransferSyntaxUID = UID(image.syntax)
    header.Rows, header.Columns = image.stored.shape[-2:]
    bytes_each = header.BitsAllocated // 8
    words = np.ascontiguousarray(image.stored.astype("u1" if bytes_each == 1 else "<u2"))
    header.PixelData = words.tobytes() + b"\0" * (words.nbytes % 2)
    header["PixelData"].VR = "OW"
    if image.syntax == RLELossless:
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        compress(header, RLELossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    elif image.syntax in ENCODERS:
        header.PixelData = encapsulate([ENCODERS[image.syntax](words)])
        header["PixelData"].VR = "OB"
    header.save_as(
        path, implicit_vr=image.syntax == ImplicitVRLittleEndian, little_endian=True, enforce_file_format=True
    )
    if image.cut < 1:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * image.cut)])
    return path


def each(**values: object) -> Change:
    """The same header elements on every image."""
    return lambda images: [image.with_values(**values) for image in images]


def one(**values: object) -> Change:
    """Header elements on one image in the middle."""
    middle = lambda images: len(images) // 2  # noqa: E731
    return lambda images: [
        image.with_values(**values) if index == middle(images) else image for index, image in enumerate(images)
    ]


def pixels(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """New stored values for every image."""
    return lambda images: [replace(image, stored=change(image.stored)) for image in images]


def spacing_mm(images: Images) -> float:
    """The distance from slice to slice."""
    return (images[-1].position[2] - images[0].position[2]) / (len(images) - 1)


def to_stored(image: Image, hu: np.ndarray) -> np.ndarray:
    """HU as this image stores them."""
    slope, intercept = float(image.header.RescaleSlope), float(image.header.RescaleIntercept)
    stored = np.rint((hu - intercept) / slope)
    return np.clip(stored, 0, 4095) if not image.header.PixelRepresentation else np.clip(stored, -32768, 32767)


def to_hu(image: Image) -> np.ndarray:
    return image.stored * float(image.header.RescaleSlope) + float(image.header.RescaleIntercept)


# ---- slices lost, duplicated, moved


def drop(count: int, seed: int) -> Change:
    """Drop `count` interior images at random places."""

    def change(images: Images) -> Images:
        lost = np.random.default_rng(seed).choice(np.arange(1, len(images) - 1), count, replace=False)
        return [image for index, image in enumerate(images) if index not in lost]

    return change


def drop_run(count: int, at: float) -> Change:
    """Drop `count` neighbouring slices, beginning at a share of the height."""

    def change(images: Images) -> Images:
        first = max(1, min(int(at * len(images)), len(images) - 1 - count))
        return images[:first] + images[first + count :]

    return change


def drop_half(images: Images) -> Images:
    return drop((len(images) - 2) // 2, 5)(images)


def spread_apart(images: Images) -> Images:
    """Increase the spacing by half, from the middle on."""
    middle, step = len(images) // 2, spacing_mm(images)
    return [image.at(image.position[2] + 0.5 * step * max(0, index - middle)) for index, image in enumerate(images)]


def thick(thickness_mm: float) -> Change:
    """Slices averaged to at least this thickness, like thick slices that are made after the scan."""

    def change(images: Images) -> Images:
        factor = int(np.ceil(thickness_mm / spacing_mm(images)))
        made = []
        for first in range(0, len(images) - factor + 1, factor):
            group = images[first : first + factor]
            z = float(np.mean([image.position[2] for image in group]))
            hu = np.mean([to_hu(image) for image in group], axis=0)
            header = (
                group[0]
                .at(z)
                .with_values(SliceThickness=round(spacing_mm(images) * factor, 3), SpacingBetweenSlices=None)
            )
            made.append(replace(header, stored=to_stored(group[0], hu)))
        return made

    return change


def duplicated(count: int) -> Change:
    """Exact copies with UIDs of their own, in between."""

    def change(images: Images) -> Images:
        picks = np.random.default_rng(count).choice(len(images), count, replace=False)
        return images + [images[index].copied(f"copy{index}.dcm") for index in picks]

    return change


def doubled_with_other_pixels(images: Images) -> Images:
    middle = images[len(images) // 2]
    return [*images, replace(middle.copied("other.dcm"), stored=np.roll(middle.stored, 7, axis=1))]


def repeated_elsewhere(images: Images) -> Images:
    """One slice's pixels in place of its neighbour's."""
    middle = len(images) // 2
    return [
        replace(image, stored=images[middle].stored) if index == middle + 1 else image
        for index, image in enumerate(images)
    ]


def shuffled(images: Images) -> Images:
    """File names and instance numbers in random order."""
    order = np.random.default_rng(0).permutation(len(images))
    return [
        replace(image.with_values(InstanceNumber=int(number) + 1), name=f"x{number:04d}")
        for image, number in zip(images, order, strict=True)
    ]


def numbered_backwards(images: Images) -> Images:
    return [
        replace(image.with_values(InstanceNumber=index + 1), name=f"{len(images) - index:04d}")
        for index, image in enumerate(images)
    ]


def upside_down(images: Images) -> Images:
    """The positions run the wrong way: the slice nearest the head has the position nearest the feet."""
    heights = [image.position[2] for image in images]
    return [image.at(z) for image, z in zip(images, reversed(heights), strict=True)]


def blank_one(images: Images) -> Images:
    middle = len(images) // 2
    return [
        replace(image, stored=np.zeros_like(image.stored)) if index == middle else image
        for index, image in enumerate(images)
    ]


def sheared(images: Images) -> Images:
    """Slices tilted by 4 degrees while the table moves straight."""
    cosine, sine = float(np.cos(np.radians(4))), float(np.sin(np.radians(4)))
    return each(ImageOrientationPatient=[1, 0, 0, 0, round(cosine, 6), round(sine, 6)])(images)


def jittered(images: Images) -> Images:
    """Positions with small rounding errors, as some scanners write them."""
    jitter = np.random.default_rng(3).uniform(-0.02, 0.02, len(images))
    return [image.at(image.position[2] + float(offset)) for image, offset in zip(images, jitter, strict=True)]


# ---- other images


def mixed_with(other: Images, **values: object) -> Change:
    """Every third image replaced by one of another series at the same position."""

    def change(images: Images) -> Images:
        mixed = []
        for index, image in enumerate(images):
            donor = other[min(index * len(other) // len(images), len(other) - 1)]
            if index % 3 != 1:
                mixed.append(image)
                continue
            mixed.append(
                replace(
                    donor.with_values(
                        SeriesInstanceUID=image.header.SeriesInstanceUID,
                        StudyInstanceUID=image.header.StudyInstanceUID,
                        **values,
                    ).at(image.position[2]),
                    name=image.name,
                )
            )
        return mixed

    return change


def added_to(other: Images) -> Change:
    """All images of another series with this one's UIDs, at their own positions."""

    def change(images: Images) -> Images:
        keys = ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName")
        same = {key: images[0].header.get(key) for key in keys}
        model = images[0].header.get("ManufacturerModelName")
        birth = images[0].header.get("PatientBirthDate")
        given = {**same, "ManufacturerModelName": model, "PatientBirthDate": birth}
        return images + [replace(image.with_values(**given), name=f"other{image.name}") for image in other]

    return change


def one_image(images: Images) -> Images:
    return [images[len(images) // 2]]


def localizer(images: Images) -> Images:
    """A coronal projection, as a topogram is."""
    depth = np.stack([to_hu(image).mean(axis=0) for image in reversed(images)])
    shown = images[0].with_values(
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageOrientationPatient=[1, 0, 0, 0, 0, -1]
    )
    return [replace(shown, stored=to_stored(shown, depth))]


def coronal(images: Images) -> Images:
    """A reformat with true geometry."""
    hu = np.stack([to_hu(image) for image in reversed(images)])
    pixel = [float(value) for value in images[0].header.PixelSpacing]
    x, y, _ = images[0].position
    made = []
    for index, row in enumerate(range(0, hu.shape[1], max(1, hu.shape[1] // 60))):
        header = images[0].with_values(
            ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
            ImagePositionPatient=[x, round(y + row * pixel[0], 4), images[-1].position[2]],
            PixelSpacing=[round(spacing_mm(images), 4), pixel[1]],
            SOPInstanceUID=generate_uid(),
        )
        made.append(replace(header, stored=to_stored(header, hu[:, row]), name=f"{index:04d}.dcm"))
    return made


def foreign(other: Images, where: Callable[[int, int], bool]) -> Change:
    """Pixels of another series, cropped or padded with air to this one's matrix, with this one's headers.

    where: called with an image's index and the number of images; True if the image is replaced.
    """

    def change(images: Images) -> Images:
        made = []
        for index, image in enumerate(images):
            if not where(index, len(images)):
                made.append(image)
                continue
            hu = np.full(image.stored.shape, -1000.0)
            donor = to_hu(other[index * len(other) // len(images)])
            rows, columns = (min(a, b) for a, b in zip(hu.shape, donor.shape, strict=True))
            hu[:rows, :columns] = donor[:rows, :columns]
            made.append(replace(image, stored=to_stored(image, hu)))
        return made

    return change


def positions_shuffled(images: Images) -> Images:
    order = np.random.default_rng(6).permutation(len(images))
    return [image.at(images[index].position[2]) for image, index in zip(images, order, strict=True)]


def second_scan(images: Images) -> Images:
    """Each position scanned again as acquisition 2; only the noise differs."""
    first = [image.with_values(AcquisitionNumber=1) for image in images]
    return first + _scanned_again(images, 0.0)


def second_scan_between(images: Images) -> Images:
    """A second acquisition whose slices lie between those of the first, in the same series."""
    first = [image.with_values(AcquisitionNumber=1) for image in images]
    return first + _scanned_again(images, spacing_mm(images) / 2)


def _scanned_again(images: Images, up_mm: float) -> Images:
    noise = np.random.default_rng(9)
    again = []
    for index, image in enumerate(images):
        copied = image.copied(f"again{index:04d}.dcm").at(image.position[2] + up_mm).with_values(AcquisitionNumber=2)
        stored = to_stored(image, to_hu(image) + noise.integers(-15, 16, image.stored.shape))
        again.append(replace(copied, stored=stored))
    return again


def one_side(images: Images) -> Images:
    """Three fifths of the columns: one lung and a little of the other, in a field of view that is not square."""
    return [replace(image, stored=image.stored[:, : image.stored.shape[1] * 3 // 5]) for image in images]


def screenshots(images: Images) -> Images:
    """8-bit captures of a lung window."""
    values = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    return [
        replace(image.with_values(**values), stored=np.clip((to_hu(image) + 1350) / 1500 * 255, 0, 255))
        for image in images
    ]


def eight_bits_in_sixteen(images: Images) -> Images:
    """Hounsfield units reduced to 256 grey levels."""
    return [
        replace(image, stored=to_stored(image, np.rint(np.clip(to_hu(image), -1024, 1024) / 8) * 8)) for image in images
    ]


def rescaled(slope: float, shift: float) -> Change:
    """A wrong rescale from stored values to Hounsfield units."""

    def change(images: Images) -> Images:
        return [
            image.with_values(
                RescaleSlope=slope * float(image.header.RescaleSlope),
                RescaleIntercept=shift + float(image.header.RescaleIntercept),
            )
            for image in images
        ]

    return change


def body(make: Callable[[tuple[int, int, int], tuple[float, float, float]], np.ndarray]) -> Change:
    """Another part of the body with this series' headers."""

    def change(images: Images) -> Images:
        rows, columns = images[0].stored.shape
        pixel = [float(value) for value in images[0].header.PixelSpacing]
        hu = make((len(images), rows, columns), (spacing_mm(images), pixel[0], pixel[1]))
        return [replace(image, stored=to_stored(image, plane)) for image, plane in zip(images, hu, strict=True)]

    return change


def trunk(images: Images) -> Images:
    """Abdomen and pelvis below the chest, until 600 mm are covered."""
    step = spacing_mm(images)
    more = int(np.ceil(600 / step)) - len(images)
    rows, columns = images[0].stored.shape
    pixel = [float(value) for value in images[0].header.PixelSpacing]
    hu = abdomen_hu((more, rows, columns), (step, pixel[0], pixel[1]))
    below = [
        replace(
            images[0].copied(f"below{index:04d}.dcm").at(images[0].position[2] - (index + 1) * step),
            stored=to_stored(images[0], plane),
        )
        for index, plane in enumerate(hu)
    ]
    return below + images


def cropped(images: Images) -> Images:
    """Only one lung, in a field of view of 200 mm."""
    side = int(200 / float(images[0].header.PixelSpacing[0]))
    first = images[0].stored.shape[0] // 2 - side // 2
    return [replace(image, stored=image.stored[first : first + side, :side]) for image in images]


def enhanced(images: Images) -> Images:
    """The whole series as one multi-frame instance."""

    def item(**values: object) -> Dataset:
        made = Dataset()
        for keyword, value in values.items():
            setattr(made, keyword, value)
        return made

    first = images[0].header
    shared = item(
        PixelMeasuresSequence=Items([item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)]),
        PlaneOrientationSequence=Items([item(ImageOrientationPatient=first.ImageOrientationPatient)]),
        PixelValueTransformationSequence=Items(
            [item(RescaleSlope=first.RescaleSlope, RescaleIntercept=first.RescaleIntercept, RescaleType="HU")]
        ),
        CTImageFrameTypeSequence=Items([item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])]),
    )
    order = np.random.default_rng(4).permutation(len(images))
    frames = [
        item(PlanePositionSequence=Items([item(ImagePositionPatient=images[index].header.ImagePositionPatient)]))
        for index in order
    ]
    gone = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope")
    whole = images[0].with_values(
        SOPClassUID=ENHANCED_CT,
        ImageType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        NumberOfFrames=len(images),
        SharedFunctionalGroupsSequence=Items([shared]),
        PerFrameFunctionalGroupsSequence=Items(frames),
        **dict.fromkeys((*gone, "RescaleIntercept"), None),
    )
    return [replace(whole, stored=np.stack([images[index].stored for index in order]))]


def in_syntax(syntax: str) -> Change:
    return lambda images: [replace(image, syntax=syntax) for image in images]


def truncated(images: Images) -> Images:
    middle = len(images) // 2
    return [replace(image, cut=0.7) if index == middle else image for index, image in enumerate(images)]


def head(images: Images) -> Images:
    return body(head_hu)(images)
