"""Where the processes that torchrun has started, and perhaps started again, find each other."""

import os
import time
import uuid
from datetime import timedelta
from typing import Any

import torch.distributed as dist

POLL_S = 0.02


def store_of_this_start(timeout_s: float) -> Any:
    """A store that holds nothing from before a restart; None where the launcher is not torchrun, or keeps no store.

    torchrun (2.13) lends one store to all starts of a job. What the processes of an earlier start have left there is
    taken for that of those that come after: a process that is quicker than the others asks for an address at which
    nobody is any more (3 of 7 restarts failed so on a busy machine). Two machines do not even count the starts alike.
    So rank 0 gives this start a name, and each process gets it for a word of its own that it has just made up.

    Raises:
        TimeoutError: the others have not come in time.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or "MASTER_PORT" not in os.environ:
        return None
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    stores: Any = dist  # whose classes torch does not declare as its own
    store = stores.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout_s))
    until = time.monotonic() + timeout_s
    if rank == 0:
        name = _name_given(store, world, until)
    else:
        word = uuid.uuid4().hex
        store.set(f"minilearn/word/{rank}", word)
        _wait(lambda: store.check([f"minilearn/name/{word}"]), until)
        name = store.get(f"minilearn/name/{word}").decode()
        store.set(f"minilearn/{name}/{rank}", "heard")
    return stores.PrefixStore(f"minilearn/{name}", store)


def _name_given(store: Any, world: int, until: float) -> str:
    """Gives this start a name, until every process has heard it; a word from before is answered for nobody."""
    name, missing = uuid.uuid4().hex, set(range(1, world))

    def all_heard() -> bool:
        for rank in sorted(missing):
            if store.check([f"minilearn/{name}/{rank}"]):
                missing.discard(rank)
            elif store.check([f"minilearn/word/{rank}"]):
                store.set(f"minilearn/name/{store.get(f'minilearn/word/{rank}').decode()}", name)
        return not missing

    _wait(all_heard, until)
    return name


def _wait(done: Any, until: float) -> None:
    while not done():
        if time.monotonic() > until:
            raise TimeoutError("Timed out waiting for the other processes of the job to begin")
        time.sleep(POLL_S)
