"""Section 9: what the objects hold that the node makes, what it reads of others, and codes."""

from collections.abc import Sequence

from pydicom import Dataset
from pydicom.datadict import dictionary_description

from config import coding
from dicom_node.conformance import templates
from dicom_node.conformance.document import Section, section, table
from dicom_node.conformance.services import name_of
from dicom_node.conformance.specimen import NEGATIVE_REPORT, NOT_ANALYSED, Specimen, of_kind
from dicom_node.conformance.walked import attributes, private_attributes, tag_of, tag_text
from dicom_node.receiver import headers
from dicom_node.report import codes, copied
from inference.covid import output as covid
from inference.densitometry import codes as densitometry
from inference.volume.elements import TAGS
from storage.object_kinds import ObjectKind

WRITTEN = {
    ObjectKind.REPORT: "Report: the result of one series, TID 1500; its content is kept as Comprehensive SR and as "
    "Enhanced SR, too, for destinations that refuse this class",
    ObjectKind.SEGMENTATION: "Segmentation of what the model marked",
    ObjectKind.SUMMARY: "Summary image, for viewers that show no SR; a series that was not analysed may have one, too",
    ObjectKind.DISPLAY_REPORT: "Display report, for viewers that show a value only beside a region",
    ObjectKind.KEY_IMAGES: "Key objects: the slices with most of what drove the model",
    NOT_ANALYSED: "Not analysed: the reason why a series has no result, TID 2000",
}
"""What is made, by the names of the specimens."""
_SOURCES = (
    ("FIXED", "The value that is given, always"),
    ("IMAGES", "From the images, converted to UTF-8; left out or emptied if it is not valid there"),
    ("CONFIG", "From the settings"),
    ("AUTO", "Made by the node"),
)
_CODE_MODULES = (coding, codes, covid, densitometry)


def annexes(specimens: Sequence[Specimen]) -> Section:
    """The whole section."""
    made = [one for specimen in specimens for one in specimen.objects.values()]
    return section(
        "Annexes",
        section(
            "IOD Contents",
            _created(specimens),
            _usage(),
            section(
                "Attribute Mapping", "See the usage of received attributes, above: what is copied keeps its place."
            ),
            section("Coerced/Modified Fields", "None: received instances are kept as they came."),
        ),
        _private(made),
        _terms(specimens, made),
        section(
            "Grayscale Image Consistency",
            "Not applicable: the node's pages show images on ordinary screens, not for diagnosis.",
        ),
        section("Standard Extended/Specialized/Private SOP Classes", "None."),
        section("Private Transfer Syntaxes", "None."),
    )


def objects_of(specimen: Specimen) -> list[Dataset]:
    """The objects that are made of one series, and of one that was not analysed."""
    return [specimen.of(str(kind)) for kind in WRITTEN]


def _created(specimens: Sequence[Specimen]) -> Section:
    return section(
        "Created SOP Instances",
        "Type is that of the IOD; nothing where the standard's table has none. Presence is ALWAYS, VNAP or ANAP. A > "
        "stands for each sequence that an attribute is in.",
        table("Source|Meaning", _SOURCES),
        "A model's texts, codes and numbers are its own; the tables are told from the models that come with the node "
        "and "
        "from an invented one.",
        *(_created_one(str(kind), title, specimens) for kind, title in WRITTEN.items()),
    )


def _created_one(kind: str, what: str, specimens: Sequence[Specimen]) -> Section:
    objects = of_kind(kind, specimens)
    uid = str(objects[0].SOPClassUID)
    rows = [
        (one.module, one.name, one.tag, one.vr, one.type, one.presence, one.source, one.value)
        for one in attributes(objects, specimens)
    ]
    return section(
        f"{name_of(uid)} ({kind})",
        f"{what}. SOP Class UID {uid}; modality {objects[0].Modality}; series number "
        f"{objects[0].SeriesNumber} of the first model, with the default settings.",
        table("Module|Attribute|Tag|VR|Type|Presence|Source|Value", rows),
    )


def _usage() -> Section:
    indexed = (*headers.INDEXED, *headers.IDENTITY, headers.SPECIFIC_CHARACTER_SET)
    uses: dict[int, list[str]] = {}
    for what, tags in (
        ("index", indexed),
        ("analysis", map(int, TAGS.values())),
        ("objects", map(tag_of, (*copied.SIMPLE, *copied.ITEMS))),
    ):
        for tag in tags:
            uses.setdefault(tag, []).append(what)
    rows = [(tag_text(tag), dictionary_description(tag), ", ".join(uses[tag])) for tag in sorted(uses)]
    return section(
        "Usage of Attributes from Received IODs",
        "index: kept in the index, to find and to show series; analysis: read before and while a series is analysed; "
        "objects: copied into what the node makes, from the first image. SOP Class, SOP Instance, Study Instance and "
        "Series Instance UID are required: without them an instance is refused.",
        table("Tag|Attribute|Used by", rows),
    )


def _private(made: Sequence[Dataset]) -> Section:
    found = sorted(private_attributes(made))
    listed = ", ".join(map(tag_text, found)) or "None: the node writes no private attributes."
    return section("Data Dictionary of Private Attributes", listed)


def _terms(specimens: Sequence[Specimen], made: Sequence[Dataset]) -> Section:
    known = _codes(made)
    private = [code for code in known if code[1].startswith("99")]
    shown = [specimens[0].of(str(ObjectKind.REPORT)), specimens[2].of(NEGATIVE_REPORT)]
    rows = "Relationship|Value type|Concept|Value"
    return section(
        "Coded Terminology and Templates",
        section(
            "Context Groups",
            "Every code that the node and its own models may write. No context group is extended; a third party's "
            "model "
            "brings codes of its own, which its card lists.",
            table("Code value|Scheme|Meaning", [code for code in known if code not in private]),
        ),
        section(
            "Template Specifications",
            "As they are written, with a > for each level. A value that is given is always that one.",
            section("Report of the model of the paper: TID 1500", table(rows, templates.template(shown))),
            section(
                "Display report: TID 1500 with TID 1410",
                table(rows, templates.template([specimens[0].of(str(ObjectKind.DISPLAY_REPORT))])),
            ),
            section("Key objects: TID 2010", table(rows, templates.template(of_kind("key-images", specimens)))),
            section("Not analysed: TID 2000", table(rows, templates.template(of_kind(NOT_ANALYSED, specimens)))),
        ),
        section(
            "Private Code Definitions",
            f"Scheme {codes.PRIVATE_SCHEME}, {codes.PRIVATE_SCHEME_NAME}; declared in Coding Scheme Identification "
            "Sequence. Besides, the reason codes of docs/safety.md, in reports on series that were not analysed, and "
            "the names of a model's output in display reports.",
            table("Code value|Scheme|Meaning", private),
        ),
    )


def _codes(made: Sequence[Dataset]) -> list[tuple[str, str, str]]:
    """By scheme and value: the constants of the program, and what the specimens of its own models hold."""
    found = templates.codes_in(made)
    for module in _CODE_MODULES:
        for value in vars(module).values():
            for one in value.values() if isinstance(value, dict) else (value,):
                if {"value", "meaning"} <= set(dir(one)) and not isinstance(one, type):
                    scheme = getattr(one, "scheme", None) or getattr(one, "scheme_designator", "")
                    found.add((str(one.value), str(scheme), str(one.meaning)))
    by_code = {(scheme, value): meaning for value, scheme, meaning in sorted(found)}
    return [(value, scheme, meaning) for (scheme, value), meaning in sorted(by_code.items())]
