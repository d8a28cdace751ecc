"""Blocks in a row as one cell: the same as applying them in turn, and each remembers its own segment."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit.nn import DEQ, TransformerCell, TransformerInjection, TransformerStack

TIGHT = {"solver": ti.Anderson(rtol=1e-12, atol=1e-14, max_steps=200), "adjoint": ti.Implicit(ti.GMRES(rtol=1e-12))}


def parts(count=2):
    torch.manual_seed(0)
    blocks = [TransformerCell(4, 2, length=12) for _ in range(count)]
    for block in blocks:
        torch.nn.init.normal_(block.distances.bias)
        for linear in (block.out, block.down):  # less than at the start of a training, so that any stack contracts
            linear.weight.data *= 0.3
    return TransformerInjection(3, 4).double(), TransformerStack(blocks).double()


def sequence(length):
    torch.manual_seed(1)
    return torch.randn(2, length, 3, dtype=torch.float64)


def test_it_is_the_blocks_in_turn():
    inject, stack = parts(3)
    x, z = inject(sequence(6)), torch.randn(2, 6, 4, dtype=torch.float64)
    first, second, third = stack.blocks
    assert torch.equal(stack(z, x), third(second(first(z, x))))
    inputs = stack.inputs(z, x)
    assert len(inputs) == 3
    assert torch.equal(inputs[2], second(first(z, x)))


def test_a_segment_that_remembers_is_the_same_as_in_the_whole():
    inject, stack = parts()
    x, z = inject(sequence(10)), torch.randn(2, 10, 4, dtype=torch.float64)
    memories = stack.recall([each[:, :7] for each in stack.inputs(z, x)], x[:, :7])
    segment = stack(z[:, 7:], x[:, 7:], *memories)
    assert (stack(z, x)[:, 7:] - segment).abs().max() <= 1e-12
    assert (stack(z[:, 7:], x[:, 7:]) - segment).abs().max() > 1e-3


def test_so_is_the_equilibrium_of_a_causal_stack():
    inject, stack = parts()
    layer, x = DEQ(stack, init=stack.start, on_failure="raise", **TIGHT), inject(sequence(10))
    whole, begun = layer(x), layer(x[:, :7])
    memories = stack.recall(stack.inputs(begun, x[:, :7]), x[:, :7])
    assert (whole[:, :7] - begun).abs().max() <= 1e-10
    assert (whole[:, 7:] - layer(x[:, 7:], *memories)).abs().max() <= 1e-10


def test_one_block_is_its_cell():
    inject, stack = parts(1)
    x, z = inject(sequence(6)), torch.randn(2, 6, 4, dtype=torch.float64)
    assert torch.equal(stack(z, x), stack.blocks[0](z, x))
    assert torch.equal(stack.recall(stack.inputs(z, x), x)[0], stack.blocks[0].recall(z, x))


@pytest.mark.parametrize("widths", [[], [4, 8]])
def test_blocks_of_several_widths_are_refused(widths):
    with pytest.raises(ValueError, match=r"widths .* expected one width"):
        TransformerStack([TransformerCell(width, 2, length=4) for width in widths])
