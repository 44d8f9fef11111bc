"""The node's current model behind HTTP, for routers that send images to a model: the answer is dicom-ai-router's.

    python -m benchmarks.turnaround_model_server PORT MODELS

The body of a POST is multipart with one DICOM file a part. The model is loaded once; who asks before that waits.
"""

import json
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from config.settings import Settings
from dicom_node.analysis.analyse import Analysis, analyse
from dicom_node.analysis.open_model import OpenModel, open_current
from inference.models.cards import read_card
from inference.models.registry import find_model


class Model:
    """A loaded model."""

    def __init__(self, models: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "models").symlink_to(models.resolve())
            self._settings = Settings(data_dir=Path(folder))
            self._card = read_card(find_model(models))
            self._model: OpenModel = open_current(self._settings, "auto")

    def answer(self, files: list[bytes]) -> dict[str, object]:
        """What it finds in a series, as the router wants it."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number:05d}.dcm" for number in range(len(files))]
            for path, content in zip(paths, files, strict=True):
                path.write_bytes(content)
            found: Analysis = analyse(paths, self._model, own=self._settings.report)
        if found.output is None:
            raise ValueError(f"not analysed: {found.refusal}")
        finding = found.output.findings[0]
        verdict = "POSITIVE" if finding.positive else "NEGATIVE"
        lines = [("Result", verdict), ("Probability", f"{finding.certainty:.4f}")]
        named = {"model": self._card.identity().name, "model_version": self._card.identity().version}
        return {**named, "result": verdict, "summary_lines": lines, "key_sop_instance_uid": None, "overlays": []}


def handler(model: Model) -> type[BaseHTTPRequestHandler]:
    """Answers each POST with what the model finds in its files."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            boundary = b"--" + self.headers["Content-Type"].partition("boundary=")[2].encode()
            parts = self.rfile.read(int(self.headers["Content-Length"])).split(boundary)[1:-1]
            answer = json.dumps(model.answer([part.partition(b"\r\n\r\n")[2][:-2] for part in parts])).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    return Handler


def main() -> None:
    """Listen, load the model, answer."""
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), BaseHTTPRequestHandler)
    server.RequestHandlerClass = handler(Model(Path(sys.argv[2])))
    server.serve_forever()


if __name__ == "__main__":
    main()
