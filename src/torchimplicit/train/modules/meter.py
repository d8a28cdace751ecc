"""Figures of many solves, summed where the tensors are: the host waits only when it reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimplicit.core.status import Report, Status


class SolveMeter:
    """Mean steps, largest residual, fraction unconverged and evaluations over the solves since the last `read`.

    Adding a report costs a handful of small tensor operations and no transfer to the host.
    """

    def __init__(self):
        """Starts empty."""
        self._epoch: list[tuple[int, Tensor]] = []
        self._clear()

    def _clear(self) -> None:
        self.samples = self._solves = self._nfev = 0
        self._steps = self._failed = self._residual = torch.zeros(())

    def add(self, report: Report) -> None:
        """Counts the samples of one solve."""
        residual = report.residual.amax() if report.residual.numel() else report.residual.sum()
        steps, failed = report.steps.sum(), (report.status != Status.CONVERGED).sum()
        if self.samples:
            residual = torch.maximum(residual, self._residual)
            steps, failed = steps + self._steps, failed + self._failed
        self._steps, self._failed, self._residual = steps, failed, residual
        self.samples += report.status.numel()
        self._solves, self._nfev = self._solves + 1, self._nfev + report.nfev

    def read(self) -> dict[str, Tensor]:
        """The figures so far, then starts afresh; empty without solves.

        They are `steps` (mean), `residual` (largest), `unconverged` (fraction) and `evaluations` (mean of the solves).
        """
        if not self.samples:
            return {}
        self._epoch.append((self.samples, self._failed))
        figures = {
            "steps": self._steps / self.samples,
            "residual": self._residual,
            "unconverged": self._failed / self.samples,
            "evaluations": torch.tensor(self._nfev / self._solves),
        }
        self._clear()
        return figures

    def finish_epoch(self) -> float:
        """The fraction unconverged since the last call, whether read or not; starts afresh."""
        self.read()
        samples = sum(count for count, _ in self._epoch)
        failed = sum(int(count) for _, count in self._epoch)
        self._epoch = []
        return failed / samples if samples else 0.0
