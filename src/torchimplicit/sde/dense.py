"""A stochastic path that can be asked for any time."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchimplicit.core import transforms
from torchimplicit.path.dense.dense_path import DensePath


class StochasticPath:
    """The solution between the first and the last time: `solution.path`.

    Inside a step the noise is bridged, and one step of the same method leads there from the state before: as accurate
    as the solve, and as rough as a path. Whatever else is asked for, and in whichever order, a time has the same noise,
    and the noise of several times the law of a path, down to a millionth of a step. A call costs a step for each time
    that it asks for, plus those back to the last state that was kept. Under `torch.vmap` there is none.

    Differentiable by all that the path depends on but times: by these it has no derivative. A sample that failed holds
    its last state.

    Attributes:
        reached: the time that each sample reached, `(B,)`.
    """

    def __init__(self, path: DensePath, beside: bool = False):
        """Of a recorded path; `beside` says whether its state is followed by two unknowns of a divergence."""
        self._path, self._beside = path, beside

    @property
    def reached(self) -> Tensor:
        """See the class."""
        return self._path.reached

    def __call__(self, t: Tensor | float) -> Any:
        """The states at times `t`; see `DensePath`.

        Raises:
            ValueError: times that were not solved for, of another shape, or that want a gradient.
        """
        if isinstance(t, Tensor) and transforms.wants_gradient(t):
            raise ValueError(
                "path(t): got times that want a gradient, expected none: a path has no derivative by time; try "
                "t.detach()"
            )
        value = self._path(t)
        return value[0] if self._beside else value

    def detach(self) -> StochasticPath:
        """The same path without a gradient."""
        return StochasticPath(self._path.detach(), self._beside)
