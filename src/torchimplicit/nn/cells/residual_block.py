"""The convolutional cell of a small equilibrium network for images."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from torchimplicit.core.options import is_number, require, require_count


class ResidualCell(nn.Module):
    r"""A residual block with input injection: the cell of a ResNet whose depth is an equilibrium.

    $$f(z, x) = N_3(\mathrm{relu}(z + N_2(x + W_2 * N_1(\mathrm{relu}(W_1 * z)))))$$

    with convolutions $W_1$ (channels to inner) and $W_2$ (back) without bias, and group norms $N_i$. The last norm
    keeps the state bounded whatever the weights. The first divides by $\sqrt{\sigma^2 + \text{floor}}$ and takes what
    small weights (normal, standard deviation 0.01) make for small. The tutorial's, with a floor of $10^{-5}$, blows
    it up to unit size instead: then eigenvalues of the Jacobian are beyond 1 before any training (1.07, not 0.76, on
    handwritten digits). A fixed point exists all the same, whatever the weights and the floor: the map is continuous
    and its last norm takes everything into one ball (Brouwer). But plain iteration need not go there.

    With the defaults of `DEQ` three epochs of handwritten digits leave few samples unsolved; the guide has the shares
    and accuracies of both cells, under Stability.
    Nothing keeps the map a contraction for ever: the weights grow. So add a `jacobian_penalty` when the steps in the
    reports climb. Not for a guarantee (see `ContractiveConv2d`), nor where several resolutions matter.

    Nine tensor operations an evaluation. Contiguous images are the quicker ones on a CPU, where group norms in
    `channels_last` cost more than its convolutions save; bfloat16 by autocast halves the time where the processor has
    it.

    Source: Z. Kolter, D. Duvenaud, M. Johnson, Deep Implicit Layers, NeurIPS 2020 tutorial, chapter 4
    (implicit-layers-tutorial.org); the defaults are its numbers, but for the floor.

    Args:
        channels: of state and input.
        inner: channels between the convolutions.
        groups: of the norms; divides both.
        kernel_size: an odd number.
        floor: added to the variance in the first norm; 1e-5 is the tutorial's cell, to be trained with a penalty.

    Raises:
        ValueError: no group norm or no padding fits the numbers.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> layer = ti.nn.DEQ(
        ...     ti.nn.ResidualCell(channels=16, inner=32), solver=ti.Anderson(rtol=1e-3)
        ... )
        >>> layer(torch.randn(2, 16, 8, 8)).shape, layer.report.converged
        (torch.Size([2, 16, 8, 8]), True)
    """

    def __init__(self, channels: int = 48, inner: int = 64, groups: int = 8, kernel_size: int = 3, floor: float = 1.0):
        """Draws the weights."""
        super().__init__()
        self.channels, self.inner, self.groups, self.kernel_size = channels, inner, groups, kernel_size
        require_count(self, "channels", "inner", "groups", "kernel_size")
        require(self, "kernel_size", kernel_size % 2 == 1, "an odd number, so that the image keeps its size; try 3")
        for name in ("channels", "inner"):
            require(
                self, name, getattr(self, name) % groups == 0, f"a multiple of groups={groups}, for the group norms"
            )
        self.floor = floor
        require(self, "floor", is_number(floor) and 0 < floor < math.inf, "a finite number > 0")
        self.conv1 = nn.Conv2d(channels, inner, kernel_size, padding=kernel_size // 2, bias=False)
        self.conv2 = nn.Conv2d(inner, channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm1 = nn.GroupNorm(groups, inner, eps=floor)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.norm3 = nn.GroupNorm(groups, channels)
        for conv in (self.conv1, self.conv2):
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The next state, `(B, channels, H, W)`, from two of these."""
        y = self.norm1(F.relu(self.conv1(z), inplace=True))
        return self.norm3(F.relu(z + self.norm2(x + self.conv2(y)), inplace=True))
