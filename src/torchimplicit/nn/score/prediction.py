r"""What a network says of the image behind the noise: five parametrisations of one denoiser.

A network $F$ is given $u = x + s\, \varepsilon$ in units of its standard deviation, and the denoiser is
$D(u, s) = c_{skip}(s)\, u + c_{out}(s)\, F$. So the loss of a network against its own target is the denoiser's,
weighted by $1 / c_{out}^2$.

Source: T. Karras et al. (EDM), arXiv 2206.00364, equation 7 and table 1; v: T. Salimans, J. Ho, arXiv 2202.00512,
appendix D.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["eps", "x", "v", "edm", "flow"]


def coefficients(prediction: Prediction, s: Tensor, std: float) -> tuple[Tensor, Tensor]:
    """The factors `c_skip` of the noisy image `u` and `c_out` of the network.

    Args:
        prediction: "eps", the noise; "x", the image; "v", the velocity on the circle of a path that keeps the variance;
            "edm", that of data of standard deviation `std`, turned round; "flow", the velocity on the straight path,
            from the image to the noise.
        s: noise levels.
        std: the data's standard deviation.
    """
    if prediction == "eps":
        return torch.ones_like(s), -s
    if prediction == "x":
        return torch.zeros_like(s), torch.ones_like(s)
    if prediction == "v":
        return 1 / (1 + s.square()), -s / (1 + s.square()).sqrt()
    if prediction == "flow":
        return 1 / (1 + s), -s / (1 + s)
    whole = s.square() + std**2
    return std**2 / whole, std * s / whole.sqrt()
