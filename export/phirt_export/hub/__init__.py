"""Checkpoints by the ids under which a model hub publishes them, such as `microsoft/Phi-4-mini-instruct`.

Nothing else of phirt opens a connection, and nothing here does so before `Observer.asks` was told. The
protocol and the layout of the cache are those of the Hugging Face Hub, whose library is asked for both.
"""

from phirt_export.hub.connection import Patience
from phirt_export.hub.errors import HubError
from phirt_export.hub.fetching import Observer, Plan, Step, fetch, is_offline, kept, require_library
from phirt_export.hub.names import HubId, hub_id, published_name

__all__ = [
    "HubError", "HubId", "Observer", "Patience", "Plan", "Step", "fetch", "hub_id", "is_offline", "kept",
    "published_name", "require_library",
]  # fmt: skip
