"""Data that fits into one table: rows of tensors, drawn or computed rather than read."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchimplicit.core.options import require, require_count
from torchimplicit.train.data.base import RecipeData, Splits
from torchimplicit.train.seeds import seed_of


class Rows(Dataset):
    """Tensors with one row per sample; a batch is a tuple of their rows.

    Args:
        *tensors: `(N, ...)` each.
    """

    def __init__(self, *tensors: Tensor):
        """Keeps the tensors."""
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """A whole batch at once."""
        return tuple(tensor[indices] for tensor in self.tensors)


class Drawn(RecipeData):
    """Base of the data modules that draw their samples: a subclass adds `draw(count, generator)`.

    Args:
        samples: of training.
        eval_samples: of validation, and of test.
        batch_size: samples a batch, in every process.
        seed: of all that is random; the test split is always the same.
    """

    def __init__(self, samples: int, eval_samples: int, batch_size: int, seed: int = 0):
        """Draws nothing yet."""
        super().__init__(batch_size, seed)
        self.samples, self.eval_samples = samples, eval_samples
        require_count(self, "samples", "eval_samples", "batch_size")

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """So many samples."""
        raise NotImplementedError

    def load(self) -> Splits:
        """The splits."""
        counts = {"train": self.samples, "val": self.eval_samples, "test": self.eval_samples}
        seeds = {"train": self.seed, "val": self.seed, "test": 0}
        return Splits(
            *(
                Rows(*self.draw(count, torch.Generator().manual_seed(seed_of(type(self).__name__, name, seeds[name]))))
                for name, count in counts.items()
            )
        )


class Powers(Drawn):
    """Numbers in [-1, 1] and their powers: the map that a neural ODE in one dimension shall learn.

    Source: D. Duvenaud, J. Z. Kolter, M. Johnson, Deep implicit layers, NeurIPS 2020 tutorial, chapter 5: $x^3$.

    Args:
        power: an odd number: other powers are no homeomorphism of the line, see `nn.AugmentedNeuralODE`.
        samples: see `Drawn`.
        eval_samples: see `Drawn`.
        batch_size: see `Drawn`.
        seed: see `Drawn`.
    """

    def __init__(
        self, power: int = 3, samples: int = 512, eval_samples: int = 128, batch_size: int = 128, seed: int = 0
    ):
        """Draws nothing yet."""
        super().__init__(samples, eval_samples, batch_size, seed)
        self.power = power
        require_count(self, "power")
        self.save_hyperparameters()

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`x` and `x ** power`, `(count, 1)` each."""
        x = 2 * torch.rand(count, 1, generator=generator) - 1
        return x, x**self.power


class Spiral(Drawn):
    r"""Pieces of a spiral, $\dot y = (y^3) A$, with noise: a start, and the states at later times.

    Source: R. Chen et al., Neural ordinary differential equations, arXiv 1806.07366; this field is that of the example
    in the authors' software.

    Args:
        times: how many states of a piece, its start included.
        duration: of a piece.
        noise: standard deviation of what is added to every state.
        samples: see `Drawn`.
        eval_samples: see `Drawn`.
        batch_size: see `Drawn`.
        seed: see `Drawn`.

    Attributes:
        ts: the times of a piece, `(times,)`.
    """

    matrix: ClassVar[tuple[tuple[float, float], ...]] = ((-0.1, 2.0), (-2.0, -0.1))

    def __init__(
        self,
        times: int = 10,
        duration: float = 0.5,
        noise: float = 0.01,
        samples: int = 1000,
        eval_samples: int = 200,
        batch_size: int = 50,
        seed: int = 0,
    ):
        """Draws nothing yet."""
        super().__init__(samples, eval_samples, batch_size, seed)
        self.noise, self.ts = noise, torch.linspace(0, duration, times)
        require(self, "noise", noise >= 0, "a number >= 0")
        self.save_hyperparameters()

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        """The true field."""
        return (y**3) @ torch.tensor(self.matrix, dtype=y.dtype, device=y.device)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Starts `(count, 2)` on the spiral from (2, 0), and the states `(count, times, 2)`."""
        along = torch.cat((torch.zeros(1), torch.rand(count, generator=generator).double().sort().values * 25))
        start = _integrated(self.field, torch.tensor([[2.0, 0.0]]), along)[1:, 0]
        path = _integrated(self.field, start, self.ts).transpose(0, 1)
        path = path + self.noise * torch.randn(path.shape, generator=generator)
        return path[:, 0], path


class Pendulum(Drawn):
    r"""A pendulum, $\dot q = p$, $\dot p = -\sin q$: states and the slopes there, with noise.

    Source: S. Greydanus, M. Dzamba, J. Yosinski, Hamiltonian neural networks, arXiv 1906.01563, section 3 (task 2).

    Args:
        energy: of the fastest path, above the rest; 2 would go over the top.
        noise: standard deviation of what is added to states and slopes.
        samples: see `Drawn`.
        eval_samples: see `Drawn`.
        batch_size: see `Drawn`.
        seed: see `Drawn`.
    """

    def __init__(
        self,
        energy: float = 1.5,
        noise: float = 0.05,
        samples: int = 750,
        eval_samples: int = 200,
        batch_size: int = 125,
        seed: int = 0,
    ):
        """Draws nothing yet."""
        super().__init__(samples, eval_samples, batch_size, seed)
        self.energy, self.noise = energy, noise
        require(self, "energy", 0 < energy < 2, "a number in (0, 2): of a pendulum that swings to and fro")
        require(self, "noise", noise >= 0, "a number >= 0")
        self.save_hyperparameters()

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        """The true field."""
        q, p = y.chunk(2, -1)
        return torch.cat((p, -torch.sin(q)), -1)

    @staticmethod
    def height(y: Tensor) -> Tensor:
        """The true energy, above the rest."""
        return y[..., 1] ** 2 / 2 + 1 - torch.cos(y[..., 0])

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States `(count, 2)`, angle and momentum, and slopes `(count, 2)`."""
        energy = self.energy * (0.05 + 0.95 * torch.rand(count, 1, generator=generator))
        phase = 2 * torch.pi * torch.rand(count, 1, generator=generator)
        # On the ellipse of (sin(q / 2), p / 2), whose radius is the energy's.
        radius = (energy / 2).sqrt()
        y = torch.cat((2 * torch.asin(radius * torch.sin(phase)), 2 * radius * torch.cos(phase)), 1)
        slope = self.field(torch.zeros(()), y)
        y, slope = (each + self.noise * torch.randn(each.shape, generator=generator) for each in (y, slope))
        return y, slope


def _integrated(field: Callable, start: Tensor, ts: Tensor) -> Tensor:
    from torchimplicit.ode import Tsit5, odeint

    with torch.no_grad():
        return odeint(field, start.double(), ts.double(), solver=Tsit5(rtol=1e-9, atol=1e-9)).value.float()
