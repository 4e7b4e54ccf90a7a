"""Each set-up that is broken on purpose is named; nothing is said about those that are sound."""

import re

import pytest
import torch
from broken_setups import BROKEN, Broken
from sound_setups import SOUND, Sound

from minilearn.preflight import Check


def checked(learn: object) -> Check:
    with learn.no_logging():  # type: ignore[attr-defined]
        return learn.check()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_check_names_a_broken_set_up(broken: Broken) -> None:
    page = checked(broken.make())
    found = [one for one in page.findings if re.search(broken.text, str(one))]
    assert found, page
    assert any(one.sure for one in found) == broken.sure, page


@pytest.mark.parametrize("broken", [one for one in BROKEN if one.in_fit], ids=lambda broken: broken.name)
def test_fit_names_a_broken_set_up(broken: Broken) -> None:
    learn = broken.make()
    with learn.no_logging(), pytest.raises(Exception) as caught:  # noqa: PT011 -- a warning is an error here
        learn.fit(1)
    assert re.search(broken.text, "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])), caught.value
    assert broken.sure != isinstance(caught.value, RuntimeWarning)


@pytest.mark.parametrize("sound", SOUND, ids=lambda sound: sound.name)
def test_nothing_is_said_about_a_sound_set_up(sound: Sound) -> None:
    assert checked(sound.make()).findings == []


@pytest.mark.parametrize("sound", SOUND, ids=lambda sound: sound.name)
def test_fit_of_a_sound_set_up_is_silent(sound: Sound) -> None:
    learn = sound.make()
    with learn.no_logging():
        learn.fit(2)  # a warning would be an error


def test_there_are_sixty_broken_and_twenty_sound_ones() -> None:
    assert len({one.name for one in BROKEN}) >= 60
    assert len({one.name for one in SOUND}) >= 20


def test_check_leaves_no_trace() -> None:
    learn, twin = SOUND[0].make(), SOUND[0].make()
    before = torch.get_rng_state()
    checked(learn)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    with learn.no_logging(), twin.no_logging():
        learn.fit(1)
        torch.manual_seed(1)
        twin.fit(1)
    pairs = zip(learn.model.parameters(), twin.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
