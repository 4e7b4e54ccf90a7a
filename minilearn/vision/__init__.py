"""Images: torchvision, imported so that it works beside any build of torch."""

from minilearn.vision.compat import torchvision

__all__ = ["torchvision"]
