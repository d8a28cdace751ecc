"""Model-predictive control as a layer: linear-quadratic with bounds, and nonlinear with bounds on the controls."""

from torchimplicit.optim.control.box_ddp import BoxDDP
from torchimplicit.optim.control.ilqr import ilqr
from torchimplicit.optim.control.lqr import lqr
from torchimplicit.optim.control.solution import ControlReport, ControlSolution

__all__ = ["BoxDDP", "ControlReport", "ControlSolution", "ilqr", "lqr"]
