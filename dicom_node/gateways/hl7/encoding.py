"""HL7 v2 text: delimiters, escapes and character sets (HL7 v2.5.1, 2.7 and 2.15.9.18)."""

from dataclasses import dataclass
from typing import Literal

from dicom_node.errors import NodeError

FIELD, COMPONENT, REPETITION, ESCAPE, SUBCOMPONENT = "|^~\\&"
_ESCAPED = {ESCAPE: "\\E\\", FIELD: "\\F\\", COMPONENT: "\\S\\", REPETITION: "\\R\\", SUBCOMPONENT: "\\T\\"}
_DELETES = '""'
"""A value of two quotation marks tells the receiver to delete what it has: it must never come from a header."""


class DoesNotFit(NodeError):
    """A character that the message's character set does not have, where the site wants no escape for it."""


@dataclass(frozen=True)
class Encoding:
    """How the text of a message becomes bytes.

    name: of the character set, as MSH-18 writes it (HL7 table 0211).
    unfit: what becomes of a character that the set lacks: "refuse" the message, or "escape" its UTF-8 bytes.
    """

    name: str
    unfit: Literal["refuse", "escape"] = "refuse"

    @property
    def codec(self) -> str:
        """Python's name of the character set."""
        return {"UNICODE UTF-8": "utf-8", "ASCII": "ascii"}.get(self.name, self.name.replace("8859/", "iso8859_"))

    def escape(self, text: str, place: str) -> str:
        """A value as the message carries it: no delimiter, no control character, none that the set lacks.

        place: where it stands, such as PID-5, for the error.
        Raises DoesNotFit.
        """
        if text == _DELETES:
            return _hexadecimal(text.encode())
        return "".join(self._character(one, place) for one in text)

    def _character(self, character: str, place: str) -> str:
        if character in _ESCAPED:
            return _ESCAPED[character]
        try:
            encoded = character.encode(self.codec)
        except UnicodeEncodeError:
            if self.unfit == "refuse":
                # The character itself may be a part of a patient's name.
                raise DoesNotFit(
                    f'{place}: a character that character_set = "{self.name}" does not have; '
                    'use "UNICODE UTF-8", or unfit_characters = "escape"'
                ) from None
            return _hexadecimal(character.encode("utf-8", "surrogatepass"))
        # C0 and C1: carriage return ends a segment, 0x0B and 0x1C frame the message.
        is_control = ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0
        return _hexadecimal(encoded) if is_control else character


def _hexadecimal(data: bytes) -> str:
    return f"\\X{data.hex().upper()}\\"
