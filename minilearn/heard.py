"""What a callback is called, and whether events reach it."""

import re
from typing import TYPE_CHECKING, Any, ClassVar

from minilearn import distributed


class _ClassName:
    """A class's name in small letters, until an object or a class has a name of its own."""

    def __get__(self, thing: object, owner: type) -> str:
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", owner.__name__)
        return words.removesuffix("_Callback").lower()


class Heard:
    """What has a name, and hears of events unless it is at rest."""

    if TYPE_CHECKING:
        learn: Any
        name: str
        """What ``learn.early_stopping`` finds it by: its class's name in small letters, without "Callback"."""
    else:
        name = _ClassName()

    main_only: ClassVar[bool] = False
    """Whether of several processes only rank 0 hears: for what writes files, or speaks."""

    def state_of_all(self) -> dict[str, Any]:
        """Those entries of `state_dict` that differ from process to process, as one process alone would have them.

        All processes of a job ask at once, so that it may add up. Nothing by default: rank 0's entries are everybody's.
        """
        return {}

    @property
    def run(self) -> bool:
        """Whether events reach this callback. False lasts until the fit has ended; `cleanup_fit` comes all the same.

        It is False in all processes of a job but rank 0 where the callback is `main_only`.

        Raises:
            TypeError: it is set to another value than True and False.
        """
        return not self.__dict__.get("_rests", False) and (not self.main_only or distributed.is_main())

    @run.setter
    def run(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"{type(self).__name__}.run says whether its events come, True or False, got {value!r}")
        self._rests = not value
        if "learn" in self.__dict__:
            self.learn.build_handlers()
