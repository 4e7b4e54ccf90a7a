"""What several processes of a machine need is fetched once."""

import hashlib
import io
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from processes import in_processes

GETS_DATA = Path(__file__).parent / "gets_data.py"


def archive() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        row = tarfile.TarInfo("rows/row.txt")
        row.size = 4
        tar.addfile(row, io.BytesIO(b"data"))
    return held.getvalue()


def test_one_process_of_a_machine_downloads_and_the_others_wait(tmp_path: Path) -> None:
    content, asked = archive(), []

    class Handler(BaseHTTPRequestHandler):
        """Serves the archive, slowly."""

        def do_GET(self) -> None:
            asked.append(self.path)
            time.sleep(1)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{http.server_port}/rows.tar"
        try:
            printed = in_processes(GETS_DATA, 4, url, hashlib.sha256(content).hexdigest(), tmp_path)
        finally:
            http.shutdown()
            thread.join()
    assert [text.splitlines()[-1] for text in printed] == ["data"] * 4
    assert asked == ["/rows.tar"]
    assert len(list(tmp_path.iterdir())) == 1
