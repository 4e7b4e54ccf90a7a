"""Downloads and archives: whole, checked, and never outside their folder."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from minilearn.data import DataError, untar_data
from minilearn.data.download import download, unpack

CONTENT = bytes(range(256)) * 1000


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT whole, cut short, or not at all."""

    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // (2 if self.path == "/short" else 1)])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    """A web server on this machine."""
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


needs_filter = pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"), reason="tarfile's data filter needs Python 3.11.4"
)


def accept(file: Path) -> None:
    """Any file will do."""


def refuse(file: Path) -> None:
    """No file will do."""
    raise DataError("not this one")


def test_download_is_kept_when_it_is_whole(server: str, tmp_path: Path) -> None:
    assert download(f"{server}/whole", tmp_path / "file", accept).read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("/short", r"broke off|IncompleteRead"), ("/missing", "cannot download .*/missing: Not Found")],
)
def test_download_that_fails_leaves_nothing(server: str, tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        download(server + path, tmp_path / "file", accept)
    assert list(tmp_path.iterdir()) == []


def test_download_that_is_refused_leaves_nothing(server: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"what http://.*/whole sent is not what it should be: not this one"):
        download(f"{server}/whole", tmp_path / "file", refuse)
    assert list(tmp_path.iterdir()) == []


def test_download_that_fails_leaves_the_old_file(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(DataError):
        download(f"{server}/short", tmp_path / "file", accept)
    assert (tmp_path / "file").read_bytes() == b"old"


def test_nobody_listening_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot download http://127\.0\.0\.1:9/x: .*refused"):
        download("http://127.0.0.1:9/x", tmp_path / "file", accept)


def archive(path: Path, members: dict[str, bytes], link: tuple[str, str] | None = None) -> str:
    """Makes a tar archive and gives its SHA-256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.SYMTYPE, link[1]
            tar.addfile(info)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@needs_filter
def test_archive_is_checked_and_unpacked_into_a_folder_of_its_name(tmp_path: Path) -> None:
    source, data = tmp_path / "set.tgz", tmp_path / "data"
    sha256 = archive(source, {"set/train/1.txt": b"one", "set/valid/2.txt": b"two"})
    path = untar_data(source.as_uri(), data, sha256)
    assert path == data / f"set-{sha256[:8]}"
    assert (path / "train" / "1.txt").read_bytes() == b"one"
    assert list(data.iterdir()) == [path]
    source.unlink()
    assert untar_data(source.as_uri(), data, sha256) == path  # it is there already


def test_archive_without_a_checksum_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"give untar_data\(.*, sha256=\.\.\.\): what cannot be checked is not unpacked"
    ):
        untar_data("https://example.org/set.tgz", tmp_path)


def test_archive_with_another_checksum_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "set.tgz", {"a": b"b"})
    with pytest.raises(DataError, match="is not the file expected: its SHA-256 is"):
        untar_data((tmp_path / "set.tgz").as_uri(), tmp_path / "data", "0" * 64)
    assert list((tmp_path / "data").iterdir()) == []


@needs_filter
@pytest.mark.parametrize(
    ("members", "link"),
    [
        ({"../outside": b"x"}, None),
        ({"a/../../outside": b"x"}, None),
        ({"inside": b"x"}, ("link", "../../outside")),
        ({"inside": b"x"}, ("link", "/etc/passwd")),
    ],
)
def test_archive_that_reaches_outside_is_refused(
    tmp_path: Path, members: dict[str, bytes], link: tuple[str, str] | None
) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    archive(tmp_path / "bad.tgz", members, link)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(tmp_path / "bad.tgz", inner / "set")
    assert list(inner.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.tgz", "inner"]


@needs_filter
def test_truncated_archive_is_refused_whole(tmp_path: Path) -> None:
    file = tmp_path / "set.tgz"
    archive(file, {str(i): bytes([i]) * 5000 for i in range(50)})
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(file, tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["set.tgz"]


@needs_filter
def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.tgz").write_bytes(b"hello")
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(tmp_path / "set.tgz", tmp_path / "set")


@needs_filter
def test_two_archives_of_one_name_are_told_apart(tmp_path: Path) -> None:
    found = []
    for content in (b"one", b"two"):
        source = tmp_path / content.decode() / "set.tgz"
        source.parent.mkdir()
        sha256 = archive(source, {"set/file": content})
        found.append(untar_data(source.as_uri(), tmp_path / "data", sha256) / "file")
    assert [file.read_bytes() for file in found] == [b"one", b"two"]


@pytest.mark.skipif(hasattr(tarfile, "data_filter"), reason="this Python can unpack safely")
def test_python_that_cannot_unpack_safely_does_not_unpack(tmp_path: Path) -> None:
    archive(tmp_path / "set.tgz", {"file": b"x"})
    with pytest.raises(DataError, match=r"Python 3\.11\.4 or newer can do so safely"):
        unpack(tmp_path / "set.tgz", tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["set.tgz"]
