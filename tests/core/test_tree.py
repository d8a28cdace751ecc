import pytest
import torch
from torch.utils import _pytree as pytree

from torchimplicit.core.tree import Layout, norm


def test_the_norm_is_of_every_row():
    assert norm(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).tolist() == [5.0, 2.0]


def test_the_coarsest_rounding_counts_and_the_widest_dtype_carries():
    state = {"half": torch.zeros(2, 3, dtype=torch.bfloat16), "wide": torch.zeros(2, dtype=torch.float64)}
    layout = Layout(state)
    assert layout.eps == torch.finfo(torch.bfloat16).eps
    assert layout.dtype == torch.float64
    assert Layout(state["half"]).dtype == torch.float32
    assert Layout(torch.zeros(2, dtype=torch.complex64)).dtype == torch.float32


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_complex_numbers_are_two_real_ones_side_by_side(batch_dims):
    state = (torch.randn(2, 3, dtype=torch.complex128), torch.randn(2, 2, dtype=torch.float64))
    layout = Layout(state, batch_dims)
    rows = layout.flatten(state)
    assert rows.shape == ((2, 8) if batch_dims else (1, 16))
    assert layout.width == rows.shape[1]
    if batch_dims:
        assert rows[1, :6].tolist() == torch.view_as_real(state[0][1]).flatten().tolist()
    for back, leaf in zip(pytree.tree_leaves(layout.unflatten(rows)), state, strict=True):
        assert torch.equal(back, leaf)
        assert back.dtype == leaf.dtype


def test_a_matrix_is_left_as_it_is():
    state = torch.randn(3, 4)
    layout = Layout(state)
    assert layout.flatten(state) is state
    assert layout.unflatten(state) is state


def test_the_layout_of_other_batches_leaves_its_own_alone():
    layout = Layout({"a": torch.zeros(4, 2), "b": torch.zeros(4)})
    other = layout.of_batch(2)
    assert other.flatten({"a": torch.zeros(2, 2), "b": torch.zeros(2)}).shape == (2, 3)
    assert layout.batch == 4
    assert layout.shapes[0] == (4, 2)


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ((), ValueError, "the state is empty"),
        ([1.0], TypeError, "the state holds a float"),
        (torch.zeros(2, dtype=torch.int64), TypeError, "torch.int64"),
        (torch.tensor(1.0), ValueError, "scalar"),
        ((torch.zeros(2, 1), torch.zeros(3, 1)), ValueError, "one batch size"),
    ],
)
def test_states_that_are_none_are_refused(state, error, words):
    with pytest.raises(error, match=words):
        Layout(state)


def test_values_unlike_the_state_are_refused():
    layout = Layout({"a": torch.zeros(2, 3)})
    layout.check({"a": torch.ones(2, 3)})
    layout.check({"a": torch.ones(2, 3, dtype=torch.float64)}, cast=True)
    for value, error, words in (
        ({"b": torch.ones(2, 3)}, ValueError, "structure"),
        ({"a": torch.ones(3, 2)}, ValueError, r"shape \(3, 2\), expected the state's shape \(2, 3\)"),
        ({"a": torch.ones(2, 3, dtype=torch.float64)}, TypeError, "torch.float64, expected the state's torch.float32"),
        ({"a": 1.0}, TypeError, "float, expected a tensor"),
    ):
        with pytest.raises(error, match=words):
            layout.check(value)


def test_what_half_precision_has_no_number_for_is_its_largest_one_and_not_infinite():
    """A sample is held at its last finite iterate, which is carried in float32."""
    layout = Layout(torch.zeros(2, 2, dtype=torch.float16))
    found = layout.unflatten(torch.tensor([[1e5, -1e30], [torch.nan, 2.0]]))
    assert found.dtype == torch.float16
    assert found[0].tolist() == [65504.0, -65504.0]
    assert found[1, 0].isnan()
    assert found[1, 1] == 2


def test_conjugates_that_torch_has_not_written_out_are_states_like_any_other():
    state = torch.randn(2, 3, dtype=torch.complex128)
    layout = Layout(state)
    assert torch.equal(layout.unflatten(layout.flatten(state.conj())), state.conj())
