"""A document of numbered sections with paragraphs, lists and tables, in whatever form it is written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Union


@dataclass(frozen=True)
class Table:
    """Rows under column heads; every row has a text for each column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError("rows: expected one text for each column")


@dataclass(frozen=True)
class Items:
    """A list of points."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Contents:
    """Where the table of contents goes."""


Block = Union[str, Table, Items, Contents, "Section"]
"""A paragraph is its text."""


@dataclass(frozen=True)
class Section:
    """A section. blocks: its text, and then its subsections."""

    title: str
    blocks: tuple[Block, ...] = ()

    @property
    def text(self) -> list[str | Table | Items | Contents]:
        """What stands before the subsections."""
        return [block for block in self.blocks if not isinstance(block, Section)]

    @property
    def subsections(self) -> list["Section"]:
        """In their order."""
        return [block for block in self.blocks if isinstance(block, Section)]


@dataclass(frozen=True)
class Document:
    """title and cover: of the first page."""

    title: str
    cover: tuple[str, ...]
    sections: tuple[Section, ...]


def section(title: str, *blocks: Block) -> Section:
    """A section of these blocks."""
    return Section(title, blocks)


def table(columns: str, rows: Sequence[Sequence[object]]) -> Table:
    """A table. columns: separated by |."""
    heads = tuple(head.strip() for head in columns.split("|"))
    return Table(heads, tuple(tuple(str(cell) for cell in row) for row in rows))


def numbered(sections: Sequence[Section], before: str = "") -> Iterator[tuple[str, Section]]:
    """Every section with its number, such as "4.2.1", in the order of reading."""
    for place, one in enumerate(sections, 1):
        number = f"{before}{place}"
        yield number, one
        yield from numbered(one.subsections, f"{number}.")
