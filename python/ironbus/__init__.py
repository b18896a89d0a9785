"""ironbus: the embedded event bus for Python, with a Rust core."""

from ironbus import errors as errors
from ironbus._core import BatchReceipt as BatchReceipt
from ironbus._core import Delivery as Delivery
from ironbus._core import Event as Event
from ironbus._core import Receipt as Receipt
from ironbus._core import __version__ as __version__
from ironbus._core import content_key as content_key
from ironbus._core import current_delivery as current_delivery
from ironbus._waiting import Settlement as Settlement
from ironbus.bus import EventBus as EventBus
from ironbus.bus import Idempotency as Idempotency
from ironbus.errors import IronbusError as IronbusError
from ironbus.priority import EventPriority as EventPriority
