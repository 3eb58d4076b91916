"""The error of everything that concerns published checkpoints."""

from phirt.errors import PhirtError


class HubError(PhirtError):
    """A published checkpoint cannot be fetched, or is not kept here."""
