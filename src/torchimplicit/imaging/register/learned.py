"""Registration by learned features: the demons equilibrium as a layer that trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from torchimplicit.core.options import require_instance
from torchimplicit.core.status import OnFailure
from torchimplicit.imaging.positive import below, under
from torchimplicit.imaging.register.align import Registration, align
from torchimplicit.imaging.register.demons import Demons
from torchimplicit.imaging.register.similarity import LNCC, normalised
from torchimplicit.imaging.register.transform import Transform
from torchimplicit.nn.layer import ImplicitLayer

CAP = 8.0  # of the features' weight: beyond, steps overshoot


class FeatureLNCC(nn.Module):
    r"""A similarity of an image and features of it: `LNCC` of the first channel, squared differences of the others.

    Its force is $f_\mathrm{LNCC} + w \sum_c (\phi_c - \psi_c) \nabla \psi_c$, of features $\phi$ of the fixed and
    $\psi$ of the warped moving image.

    Args:
        lncc: of the image.
        weight: $w$, to begin with; stays below 8, so that training cannot leave the steps that converge.
    """

    def __init__(self, lncc: LNCC = LNCC(), weight: float = 1.0):
        """Has the weight."""
        super().__init__()
        require_instance("FeatureLNCC(lncc)", lncc, LNCC, "LNCC()")
        self.lncc, self.raw_weight = lncc, below(self, "weight", weight, CAP)

    def prepared(self, fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        """The images normalised, their features as they are."""
        one, other = (torch.cat((normalised(each[:, :1]), each[:, 1:]), 1) for each in (fixed, moving))
        return one, other

    def force(
        self, fixed: Tensor, warped: Tensor, gradient: Tensor, units: Sequence[float], weights: Tensor | None = None
    ) -> Tensor:
        """See `SSD.force`."""
        force = self.lncc.force(fixed[:, :1], warped[:, :1], gradient[:, :1], units, weights)
        left = fixed[:, 1:] - warped[:, 1:]
        left = (left if weights is None else weights * left).unsqueeze(2)
        return force + under(CAP, self.raw_weight) * (left * gradient[:, 1:]).sum(1)

    def loss(
        self, fixed: Tensor, warped: Tensor, units: Sequence[float] | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """What the force makes smaller, `(B,)`."""
        image = self.lncc.loss(fixed[:, :1], warped[:, :1], units, weights)
        left = (fixed[:, 1:] - warped[:, 1:]).square()
        left = (left if weights is None else weights * left).sum(1)
        return image + under(CAP, self.raw_weight) * left.flatten(1).mean(1) / 2


class LearnedDemons(ImplicitLayer):
    r"""Registers images by themselves and by learned features of them, such as maps of what they show.

    The equilibrium of `Demons`, of images $(x, \phi(x))$: trained through the implicit function theorem, its features
    get the gradient that the field has by them, in the memory of one step. What a gradient could drive out of the steps
    that converge, the weight of the features and the step, is bounded. A pair that did not converge has a status: leave
    it out of a loss.

    Args:
        features: $\phi$, a network `(B, 1, *S) -> (B, F, *S)`; values of about one, such as probabilities.
        demons: form, solver and levels, and the `LNCC` of the images; the last level's step, a number, is where the
            learned one starts.
        training_levels: in training, in place of those of `demons`: coarser ones cost an eighth. None takes the same.
        weight: of the features in the force, to begin with, below 8.
        most_step: what the learned step stays below.
        on_failure: "warn", "raise" or "ignore" samples that do not converge, forward and backward.

    Attributes:
        report: of the last level of the last call; None before.

    Raises:
        TypeError: an option is of another kind.
        ValueError: an option is impossible.

    Examples:
        >>> import torch
        >>> from torchimplicit.imaging import register
        >>> layer = register.LearnedDemons(torch.nn.Conv2d(1, 2, 3, padding=1))
        >>> x = torch.linspace(-3, 3, 24)
        >>> blob = lambda c: torch.exp(-((x[:, None] - c) ** 2) - x**2)[None, None]
        >>> with torch.no_grad():
        ...     result = layer(blob(0.0), blob(0.4))
        >>> result.folds().tolist(), bool(layer.report.converged)
        ([0], True)
    """

    advice = "Try a smaller most_step, or more smoothing in the levels of demons."

    def __init__(
        self,
        features: nn.Module,
        demons: Demons = Demons(),
        training_levels: tuple[tuple[int, float, float], ...] | None = None,
        weight: float = 1.0,
        most_step: float = 4.0,
        on_failure: OnFailure = "warn",
    ):
        super().__init__()
        require_instance("LearnedDemons(features)", features, nn.Module, "a network")
        require_instance("LearnedDemons(demons)", demons, Demons, "Demons()")
        self.features, self.demons, self.on_failure = features, demons, on_failure
        self.training_levels: Any = training_levels
        if self.training_levels is not None:
            replace(demons, levels=self.training_levels)  # refuses impossible ones now
        self.similarity = FeatureLNCC(demons.similarity, weight)  # type: ignore[arg-type]
        self.most_step, self.raw_step = most_step, below(self, "most_step", float(demons.levels[-1][2]), most_step)

    def seen(self, image: Tensor) -> Tensor:
        """An image `(B, 1, *S)` and its features, `(B, 1 + F, *S)`."""
        if image.shape[1] != 1:
            raise ValueError(f"LearnedDemons: got images {tuple(image.shape)}, expected one channel, (B, 1, ...)")
        return torch.cat((image, self.features(normalised(image))), 1)

    def forward(
        self,
        fixed: Tensor,
        moving: Tensor,
        initial: str | Transform | Registration | Tensor = "world",
        **options: Any,
    ) -> Registration:
        """The registration of a moving image on a fixed one.

        Args:
            fixed: `(B, 1, *S)`.
            moving: `(B, 1, *T)`.
            initial: see `align`; mostly an affine registration.
            **options: of `align`: `spacing`, `moving_spacing`, `adjoint`.

        Returns:
            See `align`.
        """
        levels = self.training_levels if self.training and self.training_levels is not None else self.demons.levels
        shrink, smoothing, _ = levels[-1]
        levels = (*levels[:-1], (shrink, smoothing, under(self.most_step, self.raw_step)))
        kind = replace(self.demons, similarity=self.similarity, levels=levels)
        return self.solve(align, self.seen(fixed), self.seen(moving), kind, initial=initial, **options)
