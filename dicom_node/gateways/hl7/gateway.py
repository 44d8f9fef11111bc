"""The gateway to an interface engine or RIS: ORU^R01 over MLLP."""

from config.gateways.hl7 import Hl7Destination
from dicom_node.gateways.hl7.encoding import DoesNotFit, Encoding
from dicom_node.gateways.hl7.field_map import apply
from dicom_node.gateways.hl7.mllp import exchange, reach
from dicom_node.gateways.hl7.oru import control_id, control_id_after, oru_r01
from dicom_node.gateways.hl7.segments import write_message
from dicom_node.gateways.interface import CannotCompose, EchoAnswer, Message, Verdict
from dicom_node.gateways.reported import ReportedResult

CONTENT_TYPE = "x-application/hl7-v2+er7"


class Hl7:
    """Tells results to one destination of kind "hl7"."""

    def __init__(self, destination: Hl7Destination) -> None:
        self._destination = destination

    def compose(self, result: ReportedResult) -> Message:
        """The ORU^R01. Raises CannotCompose if the character set does not have a character of it."""
        destination = self._destination
        encoding = Encoding(destination.character_set, destination.unfit_characters)
        segments = apply(destination.fields, oru_r01(destination, result), result)
        try:
            content = write_message(segments, encoding)
        except DoesNotFit as error:
            raise CannotCompose(str(error)) from None
        return Message(content, f"{CONTENT_TYPE}; charset={encoding.codec}", control_id(destination.name, result))

    def send(self, message: Message) -> Verdict:
        """Send it once. Its MSH-10 tells the peer whether it has it already."""
        return exchange(self._destination, message.content, message.key)

    def anew(self, message: Message) -> Message:
        """With another MSH-10: receivers leave out what comes again with the same one."""
        key = control_id_after(message.key)
        return Message(message.content.replace(message.key.encode(), key.encode(), 1), message.content_type, key)

    def test(self) -> EchoAnswer:
        """Whether the peer listens. MLLP has no message that means nothing, so none is sent."""
        return reach(self._destination)
