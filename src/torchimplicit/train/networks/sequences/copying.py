"""Networks for the copy memory task: the equilibrium of a transformer's block, and its explicit rivals."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from torchimplicit.adjoint import Adjoint, Implicit
from torchimplicit.core.options import require_count
from torchimplicit.core.status import OnFailure
from torchimplicit.nn import DEQ, TransformerCell, TransformerInjection
from torchimplicit.solve import Anderson, Solver


class Waves(nn.Module):
    """A parametrisation: rows of numbers by distance as sums of sines and cosines of it.

    Neighbouring distances then rise together, so attention finds the right region first and the right distance
    after it; a table of independent numbers has to be lucky. The wave lengths go from 2 to `2 * length`.

    Args:
        length: how many distances.
        count: of the wave lengths.
    """

    waves: Tensor

    def __init__(self, length: int, count: int = 32):
        """Keeps the table of waves, `(2 * count, length)`."""
        super().__init__()
        phase = torch.outer(math.pi * length ** -torch.linspace(0, 1, count), torch.arange(length))
        self.register_buffer("waves", torch.cat((phase.cos(), phase.sin())), persistent=False)

    def forward(self, amplitudes: Tensor) -> Tensor:
        """`(rows, length)` of `(rows, 2 * count)`."""
        return amplitudes @ self.waves

    def right_inverse(self, table: Tensor) -> Tensor:
        """Amplitudes of a table of zeros, which is what there is at first."""
        return table.new_zeros(len(table), len(self.waves))


class CopyingTransformer(nn.Module):
    """A deep equilibrium transformer that reads a sequence of symbols and says one at every position.

    It starts with attention that looks at all positions alike and with large values, so that one symbol among hundreds
    of blanks is noticed at all; scores by distance are sums of `Waves`.

    Source: S. Bai, J. Z. Kolter, V. Koltun, NeurIPS 2019, arXiv 1909.01377, section 5.1; the start and the waves are
    ours.

    Args:
        width: of an embedded symbol and of the equilibrium.
        heads: of its attention.
        hidden: units between its dense layers.
        length: of the longest sequence.
        vocabulary: number of symbols.
        solver: finds the equilibrium.
        adjoint: differentiates it.
        warm_start: starts from the last batch's equilibrium where the shapes agree.
        on_failure: of the layer. "ignore", as `Copying` counts what does not converge and says so once an epoch.
    """

    def __init__(
        self,
        width: int = 32,
        heads: int = 2,
        hidden: int | None = None,
        length: int = 420,
        vocabulary: int = 10,
        solver: Solver = Anderson(rtol=1e-2),
        adjoint: Adjoint = Implicit(),
        warm_start: bool = False,
        on_failure: OnFailure = "ignore",
    ):
        """Draws the weights."""
        super().__init__()
        self.vocabulary, self.length = vocabulary, length
        require_count(self, "vocabulary")
        cell = TransformerCell(width, heads, hidden, positions="relative", length=length)
        register_parametrization(cell.distances, "bias", Waves(length))  # type: ignore[arg-type]
        inject = TransformerInjection(width, width)
        with torch.no_grad():
            cell.out.weight *= 6
            inject.weight[: 2 * width] *= 0.1  # queries and keys
            inject.weight[2 * width : 3 * width] *= 3  # values
        self.encoder = nn.Sequential(nn.Embedding(vocabulary, width), inject)
        self.equilibrium = DEQ(
            cell, solver, adjoint, init=cell.start, warm_start=warm_start, batched_args=(0,), on_failure=on_failure
        )
        self.head = nn.Linear(width, vocabulary)

    def forward(self, seen: Tensor) -> Tensor:
        """Logits `(B, L, vocabulary)` of whole numbers `(B, L)`."""
        return self.head(self.equilibrium(self.encoder(seen)))


class CopyingLSTM(nn.Module):
    """An LSTM that reads a sequence of symbols and says one at every position.

    Args:
        width: of an embedded symbol.
        hidden: of the LSTM.
        vocabulary: number of symbols.
    """

    def __init__(self, width: int = 32, hidden: int = 50, vocabulary: int = 10):
        """Draws the weights."""
        super().__init__()
        self.width, self.hidden, self.vocabulary = width, hidden, vocabulary
        require_count(self, "width", "hidden", "vocabulary")
        self.encoder = nn.Embedding(vocabulary, width)
        self.body = nn.LSTM(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, seen: Tensor) -> Tensor:
        """Logits `(B, L, vocabulary)` of whole numbers `(B, L)`."""
        return self.head(self.body(self.encoder(seen))[0])


class CopyingTCN(nn.Module):
    """A temporal convolutional network: residual blocks of causal convolutions, each dilated twice as far as the last.

    Source: S. Bai, J. Z. Kolter, V. Koltun, arXiv 1803.01271, section 3, where it has for this task
    ten channels, kernels of 8 and eight blocks; here it has a little more, for the size of its rivals.

    Args:
        channels: of the blocks and of an embedded symbol.
        blocks: how many; `2 (kernel_size - 1) (2**blocks - 1)` positions of the past are seen.
        kernel_size: positions that a convolution sees.
        vocabulary: number of symbols.
    """

    def __init__(self, channels: int = 11, blocks: int = 8, kernel_size: int = 9, vocabulary: int = 10):
        """Draws the weights."""
        super().__init__()
        self.channels, self.blocks, self.kernel_size, self.vocabulary = channels, blocks, kernel_size, vocabulary
        require_count(self, "channels", "blocks", "kernel_size", "vocabulary")
        self.encoder = nn.Embedding(vocabulary, channels)
        self.body = nn.Sequential(*(CausalBlock(channels, kernel_size, 2**level) for level in range(blocks)))
        self.head = nn.Linear(channels, vocabulary)

    def forward(self, seen: Tensor) -> Tensor:
        """Logits `(B, L, vocabulary)` of whole numbers `(B, L)`."""
        return self.head(self.body(self.encoder(seen).transpose(1, 2)).transpose(1, 2))


class CausalBlock(nn.Module):
    """Two causal dilated convolutions with ReLU, added to what came in."""

    def __init__(self, channels: int, kernel_size: int, dilation: int):
        """Draws the weights."""
        super().__init__()
        self.reach = (kernel_size - 1) * dilation
        self.convolutions = nn.ModuleList(nn.Conv1d(channels, channels, kernel_size, dilation=dilation) for _ in "12")

    def forward(self, x: Tensor) -> Tensor:
        """`(B, channels, L)` from the same."""
        y = x
        for convolution in self.convolutions:
            y = F.relu(convolution(F.pad(y, (self.reach, 0))))
        return F.relu(x + y)
