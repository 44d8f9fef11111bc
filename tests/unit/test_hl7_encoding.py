"""HL7 v2 text: what a header holds never becomes a delimiter, a segment or a frame."""

import pytest
from hl7apy.parser import parse_segment

from dicom_node.gateways.hl7.encoding import DoesNotFit, Encoding
from dicom_node.gateways.hl7.segments import Place, Segment, write_message

UTF_8 = Encoding("UNICODE UTF-8")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("O'Neill|x", "O'Neill\\F\\x"),
        ("a^b~c&d\\e", "a\\S\\b\\R\\c\\T\\d\\E\\e"),
        ("\\F\\", "\\E\\F\\E\\"),
        ("two\r\nlines", "two\\X0D\\\\X0A\\lines"),
        ("\x0b\x1c\x7f", "\\X0B\\\\X1C\\\\X7F\\"),
        ("\x85", "\\XC285\\"),
        ('""', "\\X2222\\"),
        ("Müller 山田", "Müller 山田"),
    ],
)
def test_what_is_not_plain_text_is_escaped(text: str, written: str) -> None:
    assert UTF_8.escape(text, "PID-5") == written


def test_no_text_can_add_a_field_or_a_segment() -> None:
    everything = "".join(map(chr, range(0x180))) + '""'
    for name in ("UNICODE UTF-8", "8859/1", "ASCII"):
        segment = Segment("PID").put(5, everything, "x").put(8, "F")
        written = write_message([segment], Encoding(name, "escape"))
        assert written.count(b"\r") == 1
        assert written.endswith(b"|F\r")
        assert not set(written) & {0x0B, 0x1C, 0x0A}
        assert parse_segment(written.decode(Encoding(name).codec).rstrip("\r")).pid_8.to_er7() == "F"


def test_a_character_that_the_set_lacks_refuses_the_message_and_names_the_field_only() -> None:
    with pytest.raises(DoesNotFit, match='PID-5: a character that character_set = "8859/1" does not have') as raised:
        write_message([Segment("PID").put(5, "山田")], Encoding("8859/1"))
    assert "山" not in str(raised.value)


def test_a_character_that_the_set_lacks_goes_as_its_utf_8_bytes_if_the_site_says_so() -> None:
    assert Encoding("8859/1", "escape").escape("Müller – 山", "PID-5") == "Müller \\XE28093\\ \\XE5B1B1\\"
    assert Encoding("ASCII", "escape").escape("ü", "PID-5") == "\\XC3BC\\"


def test_each_set_writes_its_own_bytes() -> None:
    segment = Segment("PID").put(5, "Müller")
    assert write_message([segment], UTF_8) == "PID|||||Müller\r".encode()
    assert write_message([segment], Encoding("8859/1")) == "PID|||||Müller\r".encode("latin-1")


def test_fields_components_and_repetitions_stand_in_their_places() -> None:
    segment = Segment("PID").put(3, "7", "", "", "SITE", "MR").put(5, "A", "B").put(5, "C", "D", repetition=2)
    assert segment.write(UTF_8) == "PID|||7^^^SITE^MR||A^B~C^D"
    assert Segment("OBX").put_lines(5, ["one", "two"]).write(UTF_8) == "OBX|||||one~two"
    assert Segment("MSH").put(3, "NODE").put(18, "X").write(UTF_8) == "MSH|^~\\&|NODE" + "|" * 15 + "X"


def test_a_place_is_replaced_as_a_whole() -> None:
    segment = Segment("PID").put(3, "7", "", "", "SITE", "MR").put(3, "8", repetition=2)
    segment.replace(3, 4, 2, "1.2.3")
    assert segment.write(UTF_8) == "PID|||7^^^SITE&1.2.3^MR~8"
    segment.replace(3, 4, None, "X")
    assert segment.write(UTF_8) == "PID|||7^^^X^MR~8"
    segment.replace(3, None, None, "9")
    assert segment.values == {Place(3): "9"}
