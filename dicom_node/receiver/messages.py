"""Presentation data values joined to messages: the pieces of a command set, then those of its data set, PS3.7 6.3."""

import time
from typing import Protocol

from dicom_node.receiver import pdu
from dicom_node.receiver.errors import ProtocolError

MAX_EMPTY = 64
"""Empty fragments in a row. One may end a message; more than a few mean a peer that wants to stay without sending."""


class Listener(Protocol):
    """What is done with a message."""

    def on_command(self, command: pdu.Command, context_id: int) -> bool:
        """A whole command set. Returns True if a data set is to follow."""

    def on_data(self, fragment: memoryview, is_last: bool) -> None:
        """The next piece of the data set."""


class Messages:
    """One association's incoming messages. command_s: seconds that a command set may take to come."""

    def __init__(self, listener: Listener, command_s: float) -> None:
        self._listener = listener
        self._command_s = command_s
        self._command = bytearray()
        self._context_id = 0
        self._began = 0.0
        self._empty = 0
        self._in_data_set = False

    @property
    def is_between(self) -> bool:
        """True if no message is under way."""
        return not self._in_data_set and not self._command

    def take(self, content: memoryview) -> None:
        """A P-DATA-TF PDU: presentation data values, each a piece of a command or of a data set.

        Raises ProtocolError.
        """
        at = 0
        if not content:
            self._take_empty()
        while at < len(content):
            if at + pdu.PDV_HEADER_BYTES > len(content):
                raise ProtocolError("presentation data value is cut short", pdu.INVALID_PARAMETER)
            length, context_id, control = pdu.parse_pdv_header(content, at)
            end = at + 4 + length
            if length < 2 or end > len(content):
                raise ProtocolError("presentation data value is malformed", pdu.INVALID_PARAMETER)
            fragment = content[at + pdu.PDV_HEADER_BYTES : end]
            is_last = bool(control & pdu.IS_LAST)
            if fragment:
                self._empty = 0
            else:
                self._take_empty()
            if control & pdu.IS_COMMAND:
                self._take_command(context_id, fragment, is_last)
            else:
                self._take_data_set(context_id, fragment, is_last)
            at = end

    def _take_empty(self) -> None:
        self._empty += 1
        if self._empty > MAX_EMPTY:
            raise ProtocolError("presentation data without data", pdu.INVALID_PARAMETER)

    def _take_command(self, context_id: int, fragment: memoryview, is_last: bool) -> None:
        if self._in_data_set or (self._command and context_id != self._context_id):
            raise ProtocolError("a command inside another message", pdu.INVALID_PARAMETER)
        if len(self._command) + len(fragment) > pdu.MAX_COMMAND_BYTES:
            raise ProtocolError("command set is too long", pdu.INVALID_PARAMETER)
        if not self._command:
            self._began = time.monotonic()
        elif time.monotonic() - self._began > self._command_s:
            raise ProtocolError("command set comes too slowly")
        self._command += fragment
        self._context_id = context_id
        if not is_last:
            return
        command = pdu.parse_command(bytes(self._command))
        self._command.clear()
        self._in_data_set = self._listener.on_command(command, context_id)

    def _take_data_set(self, context_id: int, fragment: memoryview, is_last: bool) -> None:
        if not self._in_data_set or context_id != self._context_id:
            raise ProtocolError("a data set without its command", pdu.INVALID_PARAMETER)
        self._in_data_set = not is_last
        self._listener.on_data(fragment, is_last)
