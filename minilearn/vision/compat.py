"""torchvision, imported so that it works beside any build of torch (`minilearn.operators` says why it may not).

from minilearn.vision import torchvision
"""

from minilearn.operators import declare_missing, library_loads, ready_for_torchvision

ready_for_torchvision()

import torchvision  # noqa: E402 -- only now can it be imported

__all__ = ["declare_missing", "library_loads", "torchvision"]
