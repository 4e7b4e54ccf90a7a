"""README.md: what it says of the loop and of the installation is so."""

from doc_pages import ROOT, split

from minilearn.callback import EVENTS


def test_events_are_those_of_the_loop() -> None:
    blocks, _ = split((ROOT / "README.md").read_text())
    (events,) = [block.text for block in blocks if block.language == "text" and block.text.startswith("before_fit")]
    shown = list(dict.fromkeys(events.split()))
    assert set(shown) == {event for event in EVENTS if "cancel" not in event and event != "after_create"}


def test_make_installs_what_is_proved_as_the_commands_without_it_do() -> None:
    assert "--constraint constraints.txt" in (ROOT / "Makefile").read_text()
