"""Every fenced block of docs/ and of both READMEs holds: code runs and prints what is shown, commands are there.

The convention is in CONTRIBUTING.md, under "How the code reads".
"""

import configparser
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from doc_pages import PAGES, ROOT, difference, run, run_apart, split
from shell_commands import commands, complaint

WITH_CODE = [page for page in PAGES if any(block.language == "python" for block in split(page.read_text())[0])]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name)


@pytest.fixture
def as_before() -> Iterator[None]:
    """What a page may set for its whole process; batches are too small to gain by a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


def made(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text)
    return page


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_code_runs_in_its_order_and_prints_what_is_shown(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_before: None
) -> None:
    blocks, prose = split(page.read_text())
    if any(re.search(r"\bmnist(_sample)?\(", block.text) for block in blocks):
        assert "MNIST" in "\n".join(prose), "a page says that its code needs MNIST"
        request.getfixturevalue("mnist_root")
    monkeypatch.chdir(tmp_path)
    if any(block.needs for block in blocks):
        run_apart(page, tmp_path)
    else:
        run(page)
    if any("pyplot" in line or "plot" in line for block in blocks for line in block.text.splitlines()):
        import matplotlib.pyplot as plt

        plt.close("all")
    if missing := {package for block in blocks for package in block.missing}:
        pytest.skip(f"all but the blocks that need {', '.join(sorted(missing))}: pip install -e '.[test]'")


@every_page
def test_blocks_are_python_text_or_shell(page: Path) -> None:
    text = page.read_text()
    directives = {"{toctree}", "{eval-rst}", "{include}"}  # what Sphinx lays out; code is never in them
    blocks, prose = split(text)
    assert {block.language.split(" ")[0] for block in blocks} <= {"python", "text", "sh"} | directives
    assert not re.search(r"code(-block|-cell)?::|\{(code|sourcecode|doctest|testcode)", text)
    assert not [
        line
        for before, line in zip(["", *prose], prose, strict=False)
        if re.match(r"( {4}|\t)\S", line) and not before.strip()
    ], "a block by indentation: fence it"


@every_page
def test_commands_are_there(page: Path) -> None:
    blocks, prose = split(page.read_text())
    inline = re.findall(r"`((?:[A-Z_]+=\S+ )*(?:make|python|pytest|pip) [^`]+)`", " ".join(prose))
    shell = [block.text for block in blocks if block.language == "sh"]
    found = {" ".join(words): complaint(words) for text in shell + inline for words in commands(text)}
    assert {command: wrong for command, wrong in found.items() if wrong} == {}


@every_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    prose = "\n".join(split(page.read_text())[1])
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target or "gallery/" in target:  # `make docs` makes the gallery, and looks for its links itself
            continue
        file, _, heading = target.partition("#")
        path = (page.parent / file) if file else page
        assert path.exists(), target
        if heading and path.suffix == ".md":
            titles = re.findall(r"^#+ (.+)$", "\n".join(split(path.read_text())[1]), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_every_page_is_found() -> None:
    names = {name(page) for page in PAGES}
    assert {"README.md", "docs/callbacks.md", "docs/optim.md"} <= names
    assert len(WITH_CODE) >= 5


def test_blocks_of_a_page_share_their_names_and_are_one_program(tmp_path: Path) -> None:
    page = made(tmp_path, "# A\n\n```python\na = 1\n```\n\n- in a list\n\n  ```python\n  b = a + 1\n  ```\n")
    program = run(page)
    assert (program.b, program.__name__) == (2, "__main__")  # type: ignore[attr-defined]


def test_traceback_names_the_line_of_the_page(tmp_path: Path) -> None:
    page = made(tmp_path, "# A\n\n```python\na = 1\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run(page)
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (page, 5)


def test_output_that_is_not_the_one_shown_is_told(tmp_path: Path) -> None:
    page = made(tmp_path, "```python\nprint('loss', 0.5)\n```\n\n```text\nloss 0.52\n```\n")
    with pytest.raises(AssertionError, match=r"page.md, line 6: .*'loss 0.52'.* is shown, and .*'loss 0.5'"):
        run(page)


def test_text_after_a_sentence_is_not_what_a_block_prints(tmp_path: Path) -> None:
    run(made(tmp_path, "```python\nprint(1)\n```\n\nAnother machine:\n\n```text\n2\n```\n"))


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("loss 0.5001", "loss 0.5", True),
        ("loss 0.52", "loss 0.50", False),
        ("1,000.0 rows", "1001.0 rows", True),
        ("1,000 rows", "1,001 rows", False),
        ("0  0.5  00:07", "0    0.5    00:00", True),
        ("took 7.1 s", "took 99.3 s", True),
        ("took 7.1 mm", "took 99.3 mm", False),
        ("rate 1.05e+02", "rate 1.04e+02", True),
        ("rate 1.5e+02", "rate 1.0e+02", False),
        ("a\nb", "a", False),
        ("a", "a\nb", False),
        ("a\nb\nc\nd", "a\n…\nd", True),
        ("a\nb\nc\nd", "a\n...\ne", False),
        ("a\nb\nc\nd", "b\n…\nd", False),
        ("a\nb\nc\nd", "…\nb\n…", True),
        ("a\nb\nc\nd", "a\n…\nb", False),
        ("relu1 x2", "relu2 x2", False),
    ],
)
def test_comparison_forgives_times_spaces_and_last_digits_alone(printed: str, shown: str, same: bool) -> None:
    assert (difference(printed, shown) is None) is same


def test_error_that_a_comment_announces_is_what_the_block_prints(tmp_path: Path) -> None:
    text = "```python\na = 1\nint('x')  # raises ValueError\n```\n\n```text\nValueError: invalid literal for {}\n```\n"
    run(made(tmp_path, text.format("int() with base 10: 'x'")))
    with pytest.raises(AssertionError, match="is shown, and"):
        run(made(tmp_path, text.format("float()")))


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("int('1')  # raises ValueError", "no ValueError was raised"),
        ("int('x')\nprint(1)  # raises ValueError", "not the last statement raised, but line 2"),
        ("print(1)  # warns UserWarning", r"warned of set\(\)"),
    ],
)
def test_error_or_warning_that_does_not_come_as_announced_is_told(tmp_path: Path, code: str, wrong: str) -> None:
    with pytest.raises(AssertionError, match=wrong):
        run(made(tmp_path, f"```python\n{code}\n```\n"))


def test_warning_that_a_comment_announces_is_what_the_block_prints(tmp_path: Path) -> None:
    code = "import warnings\n\nwarnings.warn('look out', stacklevel=1)  # warns UserWarning"
    run(made(tmp_path, f"```python\n{code}\n```\n\n```text\nUserWarning: look out\n```\n"))


def test_warning_that_nothing_announces_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserWarning, match="look out"):
        run(made(tmp_path, "```python\nimport warnings\n\nwarnings.warn('look out', stacklevel=1)\n```\n"))


def test_block_is_left_out_where_a_package_that_it_needs_is_missing_but_is_python(tmp_path: Path) -> None:
    page = made(tmp_path, "```python\n# needs: torch, no_such_package\n1 / 0\n```\n\n```python\na = 1\n```\n")
    (block, _), _ = split(page.read_text())
    assert (block.needs, block.missing) == (["torch", "no_such_package"], ["no_such_package"])
    assert run(page).a == 1  # type: ignore[attr-defined]
    with pytest.raises(SyntaxError):
        run(made(tmp_path, "```python\n# needs: no_such_package\n1 /\n```\n"))


def test_block_runs_where_the_packages_that_it_needs_are_there(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(made(tmp_path, "```python\n# needs: torch, pytest\n1 / 0\n```\n"))


def test_packages_that_blocks_need_come_with_the_extra_for_tests() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    extra = set(re.findall(r"^[\w-]+", settings["options.extras_require"]["test"], re.MULTILINE))
    needed = {package for page in WITH_CODE for block in split(page.read_text())[0] for package in block.needs}
    assert {"keras", "lightning"} <= needed <= extra


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("print(1)\n1 / 0", r'page.md", line 3, in <module>\n    1 / 0\n.*\nZeroDivisionError'),
        ("print(2)", "page.md, line 6: .*'1'.* is shown, and .*'2'"),
        ("import warnings\nwarnings.warn('look out', FutureWarning, stacklevel=1)", "FutureWarning: look out"),
        ("import warnings\nwarnings.warn('look out', stacklevel=9)", "UserWarning: look out"),
    ],
)
def test_page_in_a_process_of_its_own_fails_as_in_this_one(tmp_path: Path, code: str, wrong: str) -> None:
    page = made(tmp_path, f"```python\n{code}\n```\n\n```text\n1\n```\n")
    with pytest.raises(AssertionError, match=wrong):
        run_apart(page, tmp_path)


def test_page_in_a_process_of_its_own_changes_its_folder_alone(tmp_path: Path) -> None:
    code = "import os\n\nos.environ['LEFT_BEHIND'] = open('left', 'w').name\nprint(__name__)"
    run_apart(made(tmp_path, f"```python\n{code}\n```\n\n```text\n__main__\n```\n"), tmp_path)
    assert "LEFT_BEHIND" not in os.environ
    assert (tmp_path / "left").exists()


@pytest.mark.parametrize(
    "command",
    [
        "make nothing",
        "python examples/nothing.py",
        "python examples/mnist_sample.py --nothing",
        ".venv/bin/python -m nothing",
        "pip install -c nothing.txt .",
        "pip install '.[nothing]'",
        "SEED=1 pytest tests/nothing",
        "nothing_of_the_kind",
        "make demo && make nothing",
    ],
)
def test_command_that_would_fail_is_told(command: str) -> None:
    assert [words for words in commands(f"# a comment\n{command}  # and another\n") if complaint(words)]
