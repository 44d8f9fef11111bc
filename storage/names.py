"""Patients' names as they are looked for: whoever types "mueller hans" or "Müller, Hans" finds "MÜLLER^HANS"."""

import re
import unicodedata

LONGEST_KEY = 64
SEPARATORS = re.compile(r"[\s,^=]+")
SPELLED_OUT = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "æ": "ae", "ø": "oe", "å": "aa", "ł": "l"})


def name_key(name: str) -> str:
    """A person's name without case, accents and separators; family name first, as DICOM has it.

    Of a name in several scripts (DICOM's component groups) the first one that is not empty.
    """
    group = next((part for part in name.split("=") if part.strip(" ^")), "")
    folded = unicodedata.normalize("NFC", group).casefold().translate(SPELLED_OUT)
    plain = "".join(c for c in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(c))
    return SEPARATORS.sub(" ", plain).strip()[:LONGEST_KEY]
