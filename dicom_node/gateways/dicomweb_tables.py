"""What the node asks of DICOMweb servers, and what their HTTP statuses mean; without the HTTP client."""

from collections.abc import Mapping

from dicom_node.gateways.worklist.interface import Answer
from dicom_node.statuses import CLASS_NOT_SUPPORTED, OUT_OF_RESOURCES

JSON = "application/dicom+json"
INSTANCE = 'multipart/related; type="application/dicom"; transfer-syntax=*'
"""As it is stored: without the last parameter a server may send Explicit VR Little Endian, which is another file."""
PAGE = 500
"""Answers of a search at a time."""
AWAY = frozenset({401, 403, 404, 407, 408, 425, 429, 502, 503, 504})
"""Statuses that say nothing of the message: whatever else waits for the destination would be answered so too."""
ONE_BY_ONE = frozenset({400, 409, 413, 415, 422})
"""To several instances: one may be to blame, so each is then sent by itself, and the others are not kept out."""
OF_ONE: Mapping[int, int] = {413: OUT_OF_RESOURCES, 415: CLASS_NOT_SUPPORTED}
"""Failure reasons for a single instance, by HTTP status; of the others, CANNOT_UNDERSTAND."""
STEPS: Mapping[int, Answer] = {
    400: Answer.CONFLICT,
    409: Answer.CONFLICT,
    404: Answer.UNKNOWN,
    410: Answer.UNKNOWN,
    401: Answer.REFUSED,
    403: Answer.REFUSED,
    405: Answer.REFUSED,
    415: Answer.REFUSED,
    501: Answer.REFUSED,
}
"""What a worklist's answer means for the step."""
