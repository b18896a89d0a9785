"""ironbus: the embedded event bus for Python, with a Rust core."""

from ironbus import errors as errors
from ironbus._core import Delivery as Delivery
from ironbus._core import Event as Event
from ironbus._core import __version__ as __version__
