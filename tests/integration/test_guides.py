"""What the guides say to do, done: their commands are run as they stand there."""

import re
import subprocess
from pathlib import Path

from config.settings import Destination, SenderSettings
from dicom_node.scu.store import echo
from tests.conftest import require_program
from tests.receiving import Node

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"
MARKED = re.compile(r"^ *<!-- run: (\w+) -->\n\n((?: {7,}.*\n)+)", re.M)


def commands(guide: str) -> dict[str, str]:
    """The marked blocks of a guide, by their marks."""
    return {
        mark: re.sub(r"^ {7}", "", block, flags=re.M) for mark, block in MARKED.findall((GUIDES / guide).read_text())
    }


def run(script: str, folder: Path) -> str:
    done = subprocess.run(["bash", "-euc", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


AUTHORITY = """
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=root -keyout root.key -out root.crt 2>/dev/null
openssl req -newkey rsa:2048 -nodes -subj /CN=intermediate -keyout intermediate.key -out intermediate.csr 2>/dev/null
printf 'basicConstraints=critical,CA:TRUE\\nkeyUsage=keyCertSign,cRLSign\\n' > ca.ext
openssl x509 -req -in intermediate.csr -CA root.crt -CAkey root.key -CAcreateserial -days 2 -extfile ca.ext \
  -out intermediate.crt
"""
SIGN = """
openssl x509 -req -in node.csr -CA intermediate.crt -CAkey intermediate.key -CAcreateserial -days 2 \
  -copy_extensions copy -out node.crt
"""


def test_dicom_is_spoken_over_tls_with_what_the_guide_makes(tmp_path: Path) -> None:
    require_program("openssl")
    steps = commands("tls.md")
    assert list(steps) == ["request", "chain", "fit"]
    run(AUTHORITY, tmp_path)
    assert "IP:10.20.30.50" in steps["request"]  # the node's own address; here it is this one
    run(steps["request"].replace("10.20.30.50", "127.0.0.1"), tmp_path)
    run(SIGN, tmp_path)
    run(steps["chain"], tmp_path)
    said = run(steps["fit"], tmp_path)
    assert "node.crt: OK" in said and "key fits" in said
    assert "ainode.hospital.example" in said and "TLS Web Client Authentication" in said
    files = {
        "tls_certificate": tmp_path / "node.pem",
        "tls_key": tmp_path / "node.key",
        "tls_authorities": tmp_path / "authorities.pem",
    }
    with Node(tmp_path / "data", {**files, "plain": False, "tls_port": 0}) as node:
        peer = Destination(name="n", ae_title="DICOM_NODE", host="127.0.0.1", port=node.port, tls=True, **files)
        answer = echo(peer, SenderSettings())
        assert answer.ok, answer
