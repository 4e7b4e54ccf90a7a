"""The built site in a browser: the start page, the gallery and a search; and the names that the reference has."""

import functools
import html
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import minilearn.all
from minilearn.learner import Learner

ROOT = Path(__file__).parent.parent.parent
SITE = ROOT / "docs" / "_build" / "html"
REFERENCE = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "reference").glob("*.md")))
LESSONS = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem != "command_line")

Opened = Callable[[str], str]


@pytest.fixture(scope="session")
def site() -> Path:
    """The site of `make docs` or `make docs-short`; built in its short form where there is none."""
    if not (SITE / "index.html").is_file():
        pytest.importorskip("sphinx", reason="needs the site: make docs-short, or pip install -e '.[docs]'")
        if not (Path(os.environ.get("MINILEARN_DATA", "")) / "MNIST").is_dir():
            pytest.skip("needs MNIST to build the site: set MINILEARN_DATA to the folder that holds MNIST/raw")
        subprocess.run(
            [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "docs", str(SITE)],
            cwd=ROOT,
            env={**os.environ, "MINILEARN_EXAMPLES": "short"},
            check=True,
        )
    return SITE


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def opened(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """Opens a page of the site, its scripts run, and gives the document; the browser's console must stay empty."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a browser: apt-get install chromium")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def document(page: str) -> str:
        done = subprocess.run(
            [
                chromium,
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *("--disable-dev-shm-usage", "--enable-logging=stderr", "--virtual-time-budget=20000"),
                f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
                "--dump-dom",
                f"http://127.0.0.1:{server.server_port}/{page}",
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        assert not console
        return done.stdout

    yield document
    server.shutdown()
    thread.join()
    server.server_close()


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def test_start_page_has_its_program_its_picture_and_ways_on(opened: Opened) -> None:
    page = opened("index.html")
    assert "make demo" in text_of(page)
    assert "learn.fit(10, lr=1.0)" in text_of(page)
    assert 'href="reference/index.html"' in page
    (picture,) = re.findall(r'<img [^>]*src="([^"]*sphx_glr_mnist_sample[^"]*)"', page)
    assert (SITE / picture).stat().st_size > 10_000


def test_gallery_shows_every_lesson_with_a_picture(opened: Opened) -> None:
    page = opened("gallery/index.html")
    assert re.findall(r'class="sphx-glr-thumbcontainer" tooltip="[^"]{20,}', page)
    for lesson in LESSONS:
        assert f'href="{lesson}.html"' in page
        assert (SITE / "_images" / f"sphx_glr_{lesson}_thumb.png").stat().st_size > 2_000


def test_a_lessons_page_shows_what_it_printed_and_drew(opened: Opened) -> None:
    page = opened("gallery/mnist_sample.html")
    assert "python examples/mnist_sample.py" in text_of(page)
    assert "validation accuracy 0.9" in text_of(page)
    assert "sphx_glr_mnist_sample_001.png" in page


@pytest.mark.parametrize(("word", "found"), [("GradientClip", "reference/callbacks.html"), ("momentum", "optim.html")])
def test_search_finds_pages(opened: Opened, word: str, found: str) -> None:
    page = opened(f"search.html?q={word}")
    results = re.search(r'<ul[^>]* class="search".*?</ul>', page, re.DOTALL)
    assert results is not None
    assert found in results[0]


def test_search_for_what_is_nowhere_finds_nothing(opened: Opened) -> None:
    assert "did not match any documents" in opened("search.html?q=zyxwvut")


def test_every_public_name_is_in_the_reference() -> None:
    told = set(re.findall(r"^\.\. auto(?:class|function|data):: (\w+)", REFERENCE, re.MULTILINE))
    elsewhere = REFERENCE[REFERENCE.index("## Names from elsewhere") :]
    told |= set(re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in elsewhere.splitlines() if "|" in row)))
    assert set(minilearn.all.__all__) - told == set()


def test_reference_has_no_name_twice() -> None:
    names = re.findall(r"^\.\. auto\w+:: ([\w.]+)", REFERENCE, re.MULTILINE)
    assert len(names) == len(set(names))


def test_every_method_of_a_learner_is_in_the_reference() -> None:
    told = set(re.findall(r"^\.\. auto(?:method|property):: Learner\.(\w+)", REFERENCE, re.MULTILINE))
    methods = {
        name
        for kind in Learner.__mro__[:-1]
        for name, value in vars(kind).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }
    assert methods - told == set()
