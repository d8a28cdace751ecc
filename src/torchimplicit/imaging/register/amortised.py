"""An amortised start: a network that guesses where registrations end, so that the equilibrium is soon reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchimplicit.core.options import require, require_count
from torchimplicit.imaging.image import Image
from torchimplicit.imaging.register.align import Registration
from torchimplicit.imaging.register.grid import Grid
from torchimplicit.imaging.register.pair import Pair
from torchimplicit.imaging.register.scene import Scene
from torchimplicit.imaging.register.similarity import normalised
from torchimplicit.imaging.register.start import field_part, linear_part, started
from torchimplicit.imaging.register.transform import Chain, Transform, Velocity

CHANNELS = 8  # of a group that is normalised together


class AmortisedStart(nn.Module):
    r"""Guesses the velocity that `Demons` will find, from both images, in one pass of a small network.

    Given to `align` as `initial`, the guess is refined: what is found is an equilibrium, with its status and its
    gradients, whatever the network says. A wrong guess costs steps; where a pair has more equilibria than one, it also
    decides which is found. A good one takes the place of coarse levels.

    It learns by regression on equilibria: `loss` compares a guess with what the registration has come to. Neither
    labels nor a derivative of the solve are needed. Before any training the guess is no motion at all.

    A U-Net of three resolutions on images halved `halvings` times: the moving one as the linear map shows it.

    Not without a linear registration before it, not for pairs unlike those it was trained on, and not after a short
    training: coarse levels are a start that costs little and needs none. On hippocampi, 35 pairs and 20 s of training
    did not come near it; see the page on registration.

    Source: B. Amos, Tutorial on amortized optimization, Foundations and Trends in Machine Learning 16, 2023
    (arXiv:2202.00665), section 2.2.1, regression; the network after G. Balakrishnan et al., VoxelMorph, IEEE TMI 38,
    2019 (arXiv:1809.05231).

    Args:
        channels: of an image, $C$.
        space: 2 or 3 dimensions, D.
        width: channels of the network at its finest resolution, a multiple of 8.
        halvings: of the images; velocities are smooth, and each halving makes a guess $2^D$ times cheaper.

    Raises:
        ValueError: an option is impossible.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import register
        >>> start = register.AmortisedStart(space=2)
        >>> x = torch.linspace(-3, 3, 24)
        >>> blob = lambda c: torch.exp(-((x[:, None] - c) ** 2) - x**2)[None, None]
        >>> guess = start(blob(0.0), blob(0.4))
        >>> found = register.align(blob(0.0), blob(0.4), register.Demons(), initial=guess)
        >>> bool(found.report.converged), start.loss(guess, found).shape
        (True, torch.Size([1]))
    """

    def __init__(self, channels: int = 1, space: int = 3, width: int = 16, halvings: int = 1):
        """Starts where nothing moves."""
        super().__init__()
        self.channels, self.space, self.width, self.halvings = channels, space, width, halvings
        require_count(self, "channels")
        require_count(self, "width")
        require_count(self, "halvings", least=0)
        require(self, "space", space in (2, 3), "2 or 3")
        require(self, "width", width % CHANNELS == 0, f"a multiple of {CHANNELS}")
        convolution: Any = nn.Conv2d if space == 2 else nn.Conv3d
        sizes = (2 * channels, width), (width, 2 * width), (2 * width, 2 * width)
        self.down = nn.ModuleList(_block(convolution, *each) for each in sizes)
        self.up = nn.ModuleList(_block(convolution, *each) for each in ((4 * width, 2 * width), (3 * width, width)))
        self.last = convolution(width, space, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        fixed: Image | Tensor,
        moving: Image | Tensor,
        initial: str | Transform | Registration = "world",
        *,
        spacing: Sequence[float] | None = None,
        moving_spacing: Sequence[float] | None = None,
    ) -> Chain:
        """A guess of the registration of a moving image on a fixed one.

        Args:
            fixed: `Image`, or `(B, C, *S)`: of a learned registration, what its force compares.
            moving: the same.
            initial: the linear registration: see `align`.
            spacing: see `align`.
            moving_spacing: see `align`.

        Returns:
            A `Velocity` on the halved grid, and the linear map: to be `initial` of `align`.

        Raises:
            TypeError: see `align`.
            ValueError: images of other channels or dimensions than those of the network.
        """
        pair = Pair.of(fixed, moving, spacing, moving_spacing)
        batch, channels, *size = pair.fixed.shape
        if (channels, len(size)) != (self.channels, self.space):
            raise ValueError(
                f"AmortisedStart: got images {tuple(pair.fixed.shape)}, expected {self.channels} channels and "
                f"{self.space} dimensions; try AmortisedStart(channels={channels}, space={len(size)})"
            )
        initial = initial.transform if isinstance(initial, Registration) else initial
        base = linear_part(started(initial, pair, Grid.of(fixed, spacing)), batch, self.space)
        scene = Scene.of(pair, base, 2**self.halvings, "linear")
        warped, _ = scene.warped(scene.fixed.new_zeros(batch, self.space, *scene.grid.size))
        velocity = self._guess(torch.cat((normalised(scene.fixed), normalised(warped)), 1))
        return Chain((Velocity(velocity, scene.grid), base))

    def loss(self, guess: Chain, found: Registration) -> Tensor:
        r"""How far guesses are from what was found, $\overline{|v - v^*|^2}$ in squared voxels of the guess's grid.

        Args:
            guess: as `forward` gives it.
            found: the registration that started there: of `Demons` in its velocity form. It gets no gradient.

        Returns:
            `(B,)`; samples that did not converge have one too: leave them out, `found.report.status` says which.

        Raises:
            ValueError: the guess is none, or the registration no velocity.
        """
        start, parts = guess.parts[0], getattr(found.transform, "parts", ())
        if not isinstance(start, Velocity) or not any(isinstance(part, Velocity) for part in parts):
            raise ValueError(
                f"AmortisedStart.loss: got {start} and {found.transform}, expected a guess of this network and a "
                "registration by Demons(form='velocity')"
            )
        truth = field_part(found.transform, start.grid, start.vectors, Velocity)
        assert truth is not None  # there is a velocity
        return (start.vectors - truth).square().flatten(1).mean(1)

    def _guess(self, x: Tensor) -> Tensor:
        """The velocity `(B, D, *S)`, in voxels, of two images `(B, 2 C, *S)`."""
        pool: Any = F.avg_pool2d if self.space == 2 else F.avg_pool3d
        seen = []
        for i, block in enumerate(self.down):
            x = block(pool(x, 2, ceil_mode=True) if i else x)
            seen.append(x)
        for block, skip in zip(self.up, seen[-2::-1], strict=True):
            x = F.interpolate(x, skip.shape[2:], mode="nearest")
            x = block(torch.cat((x, skip), 1))
        return self.last(x)


def _block(convolution: Any, taken: int, given: int) -> nn.Sequential:
    """Two convolutions; groups of channels are normalised by sample, so that samples are independent."""
    steps: list[nn.Module] = []
    for n in (taken, given):
        steps += [convolution(n, given, 3, padding=1), nn.GroupNorm(given // CHANNELS, given), nn.SiLU()]
    return nn.Sequential(*steps)
