"""Keyed hashes in place of what names a patient, for an index and an audit trail that must not identify patients.

The files keep what the sender sent. With the key, a person can ask about a patient: one ID always gives one pseudonym.
"""

import hashlib
from dataclasses import replace

from storage.arrival import IndexedHeader

BYTES = 16


class Pseudonyms:
    """The pseudonyms of one key. Without a key (empty) everything stays as it is."""

    def __init__(self, key: str) -> None:
        self._key = hashlib.sha256(key.encode()).digest() if key else b""

    def header(self, header: IndexedHeader) -> IndexedHeader:
        """The header as the index keeps it: pseudonyms for Patient ID and Accession Number, no name, no birth date."""
        if not self._key:
            return header
        return replace(
            header,
            patient_id=self.of(header.patient_id),
            accession_number=self.of(header.accession_number),
            patient_name="",
            birth_date="",
        )

    def of(self, identifier: str) -> str:
        """The pseudonym of an identifier; an empty one stays empty."""
        identifier = identifier.strip()
        if not self._key or not identifier:
            return identifier
        return f"~{hashlib.blake2b(identifier.encode(), key=self._key, digest_size=BYTES).hexdigest()}"
