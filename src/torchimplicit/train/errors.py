"""What the command and the recipes say when they are asked for something that there is not, or that was not found."""

from torchimplicit.core.status import ImplicitError


class UsageError(ImplicitError, ValueError):
    """The command was asked for something that it does not have."""


class OptionError(UsageError):
    """An option of the command is unknown, missing, or has an impossible value."""


class UnconvergedError(ImplicitError, RuntimeError):
    """What the command found is not what was asked for, though perhaps written as far as it came."""
