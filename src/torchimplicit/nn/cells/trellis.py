"""The trellis network's layer, a causal convolution with the gates of an LSTM, as the cell of an equilibrium."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from torchimplicit.core.options import require_count
from torchimplicit.nn.parts.dropout import VariationalDropout

State = tuple[Tensor, Tensor]  # what the convolution sees and what the forget gate keeps, both (B, T, width)

GATES = 4


class CausalTaps(nn.Module):
    """A causal convolution of sequences `(B, T, inputs)`: one dense layer of the present and of what came before.

    Args:
        inputs: features of the sequence.
        outputs: of the result.
        kernel_size: how many positions it sees, the present one included; 2 or more.
        dilation: the distance from one of them to the next.
        bias: whether the dense layer has one.
        normalise: weight normalisation, one length for every output.
        std: of the normal distribution that the weights are drawn from; None for torch's own of a dense layer.

    Raises:
        ValueError: a number is impossible.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int = 2,
        dilation: int = 1,
        *,
        bias: bool = True,
        normalise: bool = True,
        std: float | None = None,
    ):
        """Draws the weights."""
        super().__init__()
        self.inputs, self.outputs, self.kernel_size, self.dilation = inputs, outputs, kernel_size, dilation
        require_count(self, "inputs", "outputs", "dilation")
        require_count(self, "kernel_size", least=2)
        self.reach = (kernel_size - 1) * dilation
        self.linear = nn.Linear(kernel_size * inputs, outputs, bias=bias)
        if std is not None:
            nn.init.normal_(self.linear.weight, std=std)
        if normalise:
            weight_norm(self.linear)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """`(B, T, outputs)` of `(B, T, inputs)`; `memory` is the `(B, reach, inputs)` before it, zeros where None."""
        taps = [delayed(x, lag * self.dilation, memory) for lag in range(self.kernel_size - 1, -1, -1)]
        return self.linear(torch.cat(taps, -1))


class TrellisInjection(CausalTaps):
    """The share of the input in a `TrellisCell`'s gates: linear in the input alone, and so computed once a solve.

    Args:
        inputs: features of the input `(B, T, inputs)`.
        width: of the cell.
        kernel_size: of the cell.
        dilation: of the cell.
        normalise: weight normalisation.

    Raises:
        ValueError: a number is impossible.
    """

    def __init__(self, inputs: int, width: int, kernel_size: int = 2, dilation: int = 1, *, normalise: bool = True):
        """Draws the weights; the biases of the gates are here, too."""
        self.width = width
        require_count(self, "width")
        super().__init__(inputs, GATES * width, kernel_size, dilation, normalise=normalise)


class TrellisCell(nn.Module):
    r"""A layer of a trellis network: the cell whose equilibrium is a trellis network of infinite depth.

    The state is a pair of sequences, the hidden $z$ and the LSTM's cell $c$. With $*$ a causal convolution and
    $\tilde x = W_x * x + b$ from `TrellisInjection`,

    $$(i, f, g, o) = W_z * z + \tilde x, \qquad
      c'_t = \sigma(f_t)\, c_{t-s} + \sigma(i_t) \tanh(g_t), \qquad z'_t = \sigma(o_t) \tanh(c'_t)$$

    where $s$ is the dilation. All depths share the weights, and every depth sees the input. An LSTM is the case in
    which no weight of $W_z$ looks at the present: then the equilibrium is its states, all found at once.

    An evaluation carries what happened one reach further, $(k - 1) s$ positions, so solves grow with what the gates
    keep. Measured with 16 features and kernels of 2, to `rtol=1e-3` by `Anderson`: where they keep half of it from one
    position to the next, 15 steps for 50 positions and for 200; where they keep nine tenths, 75 and 204; where they
    keep all but a 400th, the residual shrinks so late that solves count as stagnated. Not for recall over hundreds of
    positions, therefore: `TransformerCell` sees all of them in one evaluation.

    Sources: S. Bai, J. Z. Kolter, V. Koltun, ICLR 2019, arXiv 1810.06682, section 4 (the layer); the same, NeurIPS
    2019, arXiv 1909.01377, section 4.1 (its equilibrium).

    Args:
        width: features of the hidden state and of the cell state.
        kernel_size: positions that the convolution sees, 2 or more.
        dilation: the distance between these.
        dropout: probability of a hidden feature to be zeroed on its way into the convolution, at all positions alike
            and the same throughout a solve.
        normalise: weight normalisation, computed once a solve.

    Attributes:
        reach: how many positions of the past an evaluation sees, and so how many `remember` keeps.

    Raises:
        ValueError: a number is impossible.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> inject, cell = ti.nn.TrellisInjection(5, width=16), ti.nn.TrellisCell(width=16)
        >>> layer = ti.nn.DEQ(cell, init=cell.start)
        >>> x = torch.randn(3, 12, 5)
        >>> hidden, kept = layer(inject(x))
        >>> hidden.shape, layer.report.converged
        (torch.Size([3, 12, 16]), True)

        The next segment of the same sequences goes on from there, of the states and of the inputs:

        >>> memory = cell.remember((hidden, kept))
        >>> layer(inject(torch.randn(3, 12, 5), x[:, -cell.reach :]), memory)[0].shape
        torch.Size([3, 12, 16])
    """

    def __init__(
        self, width: int, kernel_size: int = 2, dilation: int = 1, *, dropout: float = 0.0, normalise: bool = True
    ):
        """Draws the weights, small ones: the first solves are short."""
        super().__init__()
        self.width, self.kernel_size, self.dilation = width, kernel_size, dilation
        require_count(self, "width", "dilation")
        require_count(self, "kernel_size", least=2)
        self.reach = (kernel_size - 1) * dilation
        self.taps = CausalTaps(width, GATES * width, kernel_size, dilation, bias=False, normalise=normalise, std=0.01)
        self.dropout = VariationalDropout(dropout, shared=(1,))

    def forward(self, state: State, x: Tensor, memory: State | None = None) -> State:
        """The next state.

        Args:
            state: hidden and cell state, each `(B, T, width)`.
            x: what `TrellisInjection` makes of the input, `(B, T, 4 * width)`.
            memory: the states before the first position, each `(B, reach, width)`; zeros where None.

        Raises:
            ValueError: `x` or the memory has another shape.
            TypeError: the memory is no pair.
        """
        hidden, kept = state
        self._check(hidden, x, memory)
        before = None if memory is None else self.dropout(memory[0])  # the mask is that of the hidden state
        enter, forget, content, leave = (self.taps(self.dropout(hidden), before) + x).chunk(GATES, -1)
        kept = delayed(kept, self.dilation, None if memory is None else memory[1])
        kept = forget.sigmoid() * kept + enter.sigmoid() * content.tanh()
        return leave.sigmoid() * kept.tanh(), kept

    @staticmethod
    def start(x: Tensor, memory: State | None = None) -> State:
        """Where a solve begins: zeros, each `(B, T, width)`. For `DEQ(cell, init=cell.start)`."""
        zeros = x.new_zeros(*x.shape[:-1], x.shape[-1] // GATES)
        return zeros, zeros

    def remember(self, state: State, memory: State | None = None) -> State:
        """What the next segment needs of this one: the last states, detached, each `(B, reach, width)`.

        Args:
            state: the equilibrium of this segment.
            memory: what this segment was given, for segments shorter than the reach.
        """
        before = [part.new_zeros(len(part), self.reach, self.width) for part in state] if memory is None else memory
        last = [torch.cat(parts, 1)[:, -self.reach :].detach() for parts in zip(before, state, strict=True)]
        return last[0], last[1]

    def _check(self, hidden: Tensor, x: Tensor, memory: State | None) -> None:
        if memory is not None and (isinstance(memory, Tensor) or len(memory) != 2):
            raise TypeError(
                f"TrellisCell: got a memory that is a {type(memory).__name__}, expected the pair of hidden and cell "
                "states; try cell.remember"
            )
        places = hidden.shape[:-1] if hidden.dim() == 3 else ("B", "T")
        expected = (*places, GATES * self.width)
        if x.shape != expected:
            raise ValueError(
                f"TrellisCell(width={self.width}): got x of shape {tuple(x.shape)} for a state of "
                f"{tuple(hidden.shape)}, expected {expected}; try TrellisInjection, which makes it from the input"
            )
        expected = (len(x), self.reach, self.width)
        for part in memory or ():
            if part.shape != expected:
                raise ValueError(
                    f"TrellisCell(width={self.width}): got a memory of shape {tuple(part.shape)}, expected {expected}, "
                    "the batch and the reach of the cell; try cell.remember"
                )


def delayed(x: Tensor, steps: int, memory: Tensor | None = None) -> Tensor:
    """The sequence `(B, T, n)` that many positions ago: the end of `memory`, or zeros, comes in at the front."""
    if steps == 0:
        return x
    front = x.new_zeros(len(x), steps, x.shape[-1]) if memory is None else memory[:, memory.shape[1] - steps :]
    return torch.cat((front, x), 1)[:, : x.shape[1]]
