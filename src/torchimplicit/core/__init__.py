"""The ground floor: statuses and reports, nested states, explicit functions. Depends on torch alone."""

from torchimplicit.core.status import (
    CaptureError,
    ConvergenceError,
    ConvergenceWarning,
    ImplicitError,
    OnFailure,
    Report,
    Solution,
    Status,
)

__all__ = [
    "CaptureError",
    "ConvergenceError",
    "ConvergenceWarning",
    "ImplicitError",
    "OnFailure",
    "Report",
    "Solution",
    "Status",
]
