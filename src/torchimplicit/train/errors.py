"""What the command and the recipes say when they are asked for something that there is not."""

from torchimplicit.core.status import ImplicitError


class UsageError(ImplicitError, ValueError):
    """The command was asked for something that it does not have."""
