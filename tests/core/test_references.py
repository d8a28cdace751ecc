"""References to modules are exchanged wherever they are, and nothing else is touched."""

from collections import OrderedDict
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchimplicit.core.references import LONGEST, exchanged

OLD, NEW = nn.ModuleList(nn.Identity() for _ in range(3)), nn.ModuleList(nn.Identity() for _ in range(3))
FORTH = {id(a): b for a, b in zip(OLD, NEW, strict=True)}
BACK = {id(b): a for a, b in zip(OLD, NEW, strict=True)}


def capturing(value):
    return lambda: value


leaves = st.sampled_from([*OLD, None, 3, "text", *(module.forward for module in OLD)])
nests = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.integers(), inner, max_size=3),
        st.dictionaries(st.integers(), inner, max_size=3).map(OrderedDict),
        inner.map(partial(partial, capturing)),
        inner.map(capturing),
    ),
    max_leaves=3,
)


def leaves_of(value):
    """The modules and numbers in a nest, whatever holds them."""
    if isinstance(value, partial):
        return leaves_of(list(value.args))
    if isinstance(value, list | tuple | dict):
        return [leaf for part in (value.values() if isinstance(value, dict) else value) for leaf in leaves_of(part)]
    if getattr(value, "__closure__", None):
        return leaves_of(value())
    return [getattr(value, "__self__", value)]


@settings(max_examples=100)
@given(nests)
def test_exchange_and_back(value):
    new = exchanged(value, FORTH, depth=9)
    assert type(new) is type(value)
    held = leaves_of(value)
    expected = [FORTH.get(id(leaf), leaf) for leaf in held]
    assert all(a is b for a, b in zip(leaves_of(new), expected, strict=True))
    assert (new is value) == (not any(id(leaf) in FORTH for leaf in held)), "what refers to nothing is kept as it is"
    assert all(a is b for a, b in zip(leaves_of(exchanged(new, BACK, depth=9)), held, strict=True))


def test_captured_variables_stay_shared_but_for_modules():
    count, module = 0, OLD[0]

    def function(*, step=1):
        nonlocal count
        count += step
        return module

    function.label = "mine"
    new = exchanged(function, FORTH)
    assert new() is NEW[0]
    assert function() is OLD[0]
    assert count == 2
    assert new.label == "mine"


def test_long_containers_and_variables_that_are_not_bound_yet():
    long = [OLD[0]] * (LONGEST + 1)
    assert exchanged(long, FORTH) is long

    def function():
        return later

    assert exchanged(function, FORTH) is function
    later = OLD[0]
    assert exchanged(function, FORTH)() is NEW[0]
    assert later is OLD[0]
