"""What a state may look like: rows `(B, n)` as tensors and nests of other shapes and dtypes, and back."""

from dataclasses import dataclass

import torch

REAL = {torch.float64: 4, torch.float32: 4, torch.bfloat16: 1, torch.float16: 1}
COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


@dataclass(frozen=True)
class Form:
    """A name, the dtype of the real numbers behind the state, and the batch's dimensions."""

    name: str
    dtype: torch.dtype
    batch_dims: int

    @property
    def eps(self):
        return torch.finfo(self.dtype).eps

    def pack(self, rows):
        """The state that the library sees."""
        batch, width = rows.shape
        if self.name == "vector":
            return rows[:, 0]
        if self.name == "volume":
            return rows.reshape(batch, width // 2, 2, 1)
        if self.name == "nested":
            return {"first": rows[:, :1], "rest": (rows[:, 1:].reshape(batch, width - 1, 1),)}
        if self.name == "complex":
            return torch.view_as_complex(rows.reshape(batch, width // 2, 2).contiguous())
        return rows

    def unpack(self, state):
        """The rows again."""
        if self.name == "vector":
            return state[:, None]
        if self.name == "volume":
            return state.flatten(1)
        if self.name == "nested":
            return torch.cat((state["first"], state["rest"][0].flatten(1)), 1)
        if self.name == "complex":
            return torch.view_as_real(state).flatten(1)
        return state

    def groups(self, rows):
        """What the library counts as samples: the rows, or all of them as one, `(G, n)`."""
        return rows if self.batch_dims else rows.reshape(1, -1)


def draw(dice, width, low=True):
    """A form that rows of this width can take; `low` admits half precision."""
    dtype = dice.weighted({dtype: w for dtype, w in REAL.items() if low or dtype in COMPLEX})
    names = {"matrix": 6}
    if width == 1:
        names["vector"] = 3
    else:
        names["nested"] = 2
    if width % 2 == 0:
        names["volume"] = 1
        if dtype in COMPLEX:
            names["complex"] = 1
    return Form(dice.weighted(names), dtype, dice.weighted({1: 5, 0: 1}))
