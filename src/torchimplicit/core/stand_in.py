"""Stand-ins for modules: the same modules with other tensors, for the time of a solve, seen by nobody else.

A solve evaluates its function with tensors of its own: detached, saved, mapped over. Put into the modules they would
be seen by every other thread, by solves within the function and, after an interrupt, by whoever comes next. So they are
put into shallow copies, as `torch.nn.DataParallel` makes its replicas: of the same class, with the same attributes, but
with their own dictionaries of parameters, buffers and children. The modules themselves are only read, and in the end
given what the function has written to its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torchimplicit.core.references import exchanged, may_refer

Slot = tuple[int, str, Any]  # (member, attribute, key): a place that a tensor is put into

HOMES = ("_parameters", "_buffers", "_modules")
NOTHING = object()
LISTS = ("_flat_weights", "_flat_weight_refs")  # of a recurrent layer's weights, beside its parameters
MARK = "_stands_in"  # an attribute of every stand-in, and of no module


class StandIn:
    """A copy of a module that has its own parameters, buffers and children.

    Args:
        module: the module.
        copy: an instance of the class that it shall have, without attributes yet.
        state: its attributes.
    """

    def __init__(self, module: nn.Module, copy: nn.Module, state: dict[str, Any]):
        """Remembers what the copy begins with."""
        object.__setattr__(copy, "__dict__", state)
        self.module, self.copy = module, copy
        self.before: dict[str, dict[str, Any]] = {"": dict(state)} | {home: dict(state[home]) for home in HOMES}

    @classmethod
    def alone(cls, module: nn.Module) -> StandIn:
        """Of a module as it is, with the same tensors and children."""
        state = module.__dict__ | {home: dict(module.__dict__[home]) for home in HOMES}
        return cls(module, object.__new__(type(module)), state)

    def changes(self) -> dict[str, Any]:
        """The attributes that are others than in the beginning."""
        was = self.before[""]
        return {key: value for key, value in self.copy.__dict__.items() if value is not was.get(key, NOTHING)}

    def hand_back(self, keep_buffers: bool, modules: dict[int, nn.Module]) -> None:
        """Gives the module what was written to the copy: attributes, new tensors and children.

        Args:
            keep_buffers: also tensors that took the place of buffers.
            modules: the module behind each copy, by the copy's `id`.
        """
        for home, old in self.before.items():
            new, own = ((each if home == "" else each[home]) for each in (self.copy.__dict__, self.module.__dict__))
            if len(new) == len(old) and all(map(is_, new.values(), old.values())):
                continue
            for key in old.keys() - new.keys():
                own.pop(key, None)
            for key, value in new.items():
                was = old.get(key, NOTHING)
                free = home == "" or not isinstance(was, Tensor) or (keep_buffers and _is_buffer(own.get(key)))
                if value is not was and free and key not in LISTS:
                    own[key] = exchanged(value, modules)


def _is_buffer(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.requires_grad


@dataclass
class Member:
    """A module of a family, and what is known of its stand-ins.

    Attributes:
        module: the module.
        kind: the class of its stand-ins: for a parametrised module the class that it had before.
        own: attributes that belong to the solve: the mode that it began in, and what was drawn for it.
        weights: parametrised weights, or a replica's: parameters of the stand-in like any other.
        references: names of attributes that lead to modules of the family in other ways than as children.
    """

    module: nn.Module
    kind: type
    own: dict[str, Any]
    weights: list[str]
    references: Sequence[str] = ()

    def state(self, copies: dict[int, nn.Module]) -> dict[str, Any]:
        """The attributes of a stand-in, with the modules' tensors still.

        Args:
            copies: of the modules of the family, by the modules' `id`.
        """
        state = self.module.__dict__ | self.own
        state[MARK] = True
        for home in HOMES[:2]:
            state[home] = dict(state[home])
        state["_modules"] = {key: copies.get(id(child), child) for key, child in state["_modules"].items()}
        if "_flat_weights" in state:
            state["_flat_weights"] = list(state["_flat_weights"])
        for key in self.references:
            state[key] = exchanged(state[key], copies)
        if self.weights:
            for name in (*self.weights, "_former_parameters"):
                state.pop(name, None)
            if "parametrizations" in state["_modules"]:  # to be looked at, but not what makes the weight
                state["parametrizations"] = state["_modules"].pop("parametrizations")
        return state


class Family:
    """Modules and all that is in them, of which any number of stand-ins can be made.

    Args:
        roots: the modules.
        begins: whether a solve begins: modules with a method `begin_solve` are told.
    """

    def __init__(self, roots: Sequence[nn.Module], begins: bool):
        """Looks at the modules as they are now."""
        self.members: list[Member] = []
        places: dict[int, list[Slot]] = {}
        tensors: dict[int, Tensor] = {}
        computed: list[tuple[Slot, Tensor]] = []
        for i, module in enumerate(_with_children(roots)):
            names = _parametrised(module)
            kind = _class_before(type(module), names) if names else type(module)
            own, buffers = _begun(module) if begins and not is_stand_in(module) else ({}, module._buffers)
            former = module.__dict__.get("_former_parameters") or {}  # of a replica, which has no parameters itself
            self.members.append(Member(module, kind, {"training": module.training, **own}, [*names, *former]))
            for home, key, tensor in _tensors(module, buffers, former):
                places.setdefault(id(tensor), []).append((i, home, key))
                tensors[id(tensor)] = tensor
            # A parametrised weight is computed here, once a solve, outside of the solve: its graph leads to the
            # originals, and forward and backward use the very same weight (a power iteration advances once).
            computed += [((i, "_parameters", name), getattr(module, name)) for name in names]
        self.slots = [*places.values(), *([slot] for slot, _ in computed)]
        self._tensors = [*tensors.values(), *(tensor for _, tensor in computed)]
        self.known: dict[int, Any] = {id(member.module): member for member in self.members}
        for member in self.members:
            items = member.module.__dict__.items()
            member.references = [key for key, value in items if may_refer(value) and self.is_in(value)]

    def is_in(self, value: Any) -> bool:
        """Whether a value leads to modules of the family."""
        return bool(self.known) and exchanged(value, self.known) is not value

    def take_tensors(self) -> list[Tensor]:
        """Parameters and buffers, each once, then parametrised weights; once, so that no graph is kept alive here."""
        tensors, self._tensors = self._tensors, []
        return tensors

    def cast(self, tensors: Sequence[Tensor]) -> Cast:
        """Stand-ins with these tensors, in the order of `take_tensors`."""
        copies: dict[int, nn.Module] = {id(member.module): object.__new__(member.kind) for member in self.members}
        states = [member.state(copies) for member in self.members]
        for places, tensor in zip(self.slots, tensors, strict=False):
            for i, home, key in places:
                states[i][home][key] = tensor
        pairs = zip(self.members, states, strict=True)
        return Cast([StandIn(each.module, copies[id(each.module)], state) for each, state in pairs], copies)


@dataclass
class Cast:
    """The stand-ins of a family for one solve.

    Attributes:
        stand_ins: of every member.
        copies: they themselves, by the `id` of the modules.
    """

    stand_ins: list[StandIn]
    copies: dict[int, nn.Module]

    def hand_back(self, keep_buffers: bool) -> None:
        """See `StandIn.hand_back`."""
        modules = {id(each.copy): each.module for each in self.stand_ins}
        for each in self.stand_ins:
            each.hand_back(keep_buffers, modules)


def is_stand_in(module: nn.Module) -> bool:
    """Whether a module is the stand-in of another."""
    return MARK in module.__dict__


def _with_children(roots: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Modules and those in them, each once; what makes a parametrised weight is not part of the function."""
    todo, seen = list(reversed(roots)), set()
    while todo:
        module = todo.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield module
        skipped = "parametrizations" if _parametrised(module) else None
        children = [child for name, child in list(module._modules.items()) if child is not None and name != skipped]
        todo.extend(reversed(children))


def _parametrised(module: nn.Module) -> list[str]:
    """The names of the weights that a module computes by `torch.nn.utils.parametrize`."""
    parametrizations = module._modules.get("parametrizations")
    return list(parametrizations) if isinstance(parametrizations, nn.ModuleDict) else []


def _class_before(kind: type, names: list[str]) -> type:
    """The class of a module before these weights of it became properties."""
    properties = [any(isinstance(vars(base).get(name), property) for name in names) for base in kind.__mro__]
    return kind.__mro__[len(properties) - properties[::-1].index(True)]


def _begun(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `begin_solve` makes of a module, which keeps it, but is the solve's own: attributes and buffers."""
    if not callable(getattr(module, "begin_solve", None)):
        return {}, module._buffers
    stand_in = StandIn.alone(module)
    stand_in.copy.begin_solve()  # type: ignore[operator]
    stand_in.hand_back(True, {})
    return stand_in.changes(), stand_in.copy._buffers


def _tensors(module: nn.Module, buffers: dict, former: dict) -> Iterator[tuple[str, Any, Tensor]]:
    """Attribute, key and tensor of every parameter and buffer of a module itself."""
    for home, container in (("_parameters", module._parameters), ("_parameters", former), ("_buffers", buffers)):
        for name, tensor in list(container.items()):
            if tensor is not None and is_lazy(tensor):
                raise ValueError(
                    f"{type(module).__name__}.{name} is not initialised yet; try calling the module once, as cell(z, x)"
                )
            if isinstance(tensor, Tensor):
                yield home, name, tensor
    flat_weights = module.__dict__.get("_flat_weights") or ()  # recurrent layers keep a second list of their weights
    for index, tensor in enumerate(flat_weights):
        if isinstance(tensor, Tensor):
            yield "_flat_weights", index, tensor
