"""Stand-ins for modules: the same modules with other tensors, for the time of a solve, seen by nobody else.

A solve evaluates its function with tensors of its own: detached, saved, mapped over. Put into the modules they would
be seen by every other thread, by solves within the function and, after an interrupt, by whoever comes next. So they are
put into shallow copies, as `torch.nn.DataParallel` makes its replicas: of the same class, with the same attributes, but
with their own dictionaries of parameters, buffers and children. The modules themselves are only read, and in the end
given what the function has written to its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # pyright: ignore[reportAttributeAccessIssue]

from torchimplicit.core.references import SEARCHED, exchanged

Slot = tuple[int, str, Any]  # (member, attribute, key): a place that a tensor is put into

HOMES = ("_parameters", "_buffers", "_modules")
EVERYWHERE = ("", *HOMES)
LISTS = ("_flat_weights", "_flat_weight_refs")  # of a recurrent layer's weights, beside its parameters
MARK = "_stands_in"  # an attribute of every stand-in, and of no module
NOTHING = object()


@dataclass(slots=True)
class Member:
    """A module, and what is known of its stand-ins.

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
    weights: Sequence[str] = ()
    references: Sequence[str] = ()

    def complete(self, state: dict[str, Any], copies: dict[int, nn.Module]) -> None:
        """Does to the attributes of a stand-in what is rarely needed."""
        for key in self.references:
            state[key] = exchanged(state[key], copies)
        if "_flat_weights" in state:
            state["_flat_weights"] = list(state["_flat_weights"])
        for name in self.weights:
            state.pop(name, None)
        state.pop("_former_parameters", None)
        if self.kind is not type(self.module):  # to be looked at, but no longer what makes the weight
            state["parametrizations"] = state["_modules"].pop("parametrizations")


class Cast:
    """Stand-ins for some modules, for one solve.

    Args:
        members: the modules.
        slots: the places of each of the tensors.
        tensors: to be put there.

    Attributes:
        copies: the stand-ins, by the `id` of the modules.
    """

    def __init__(self, members: Sequence[Member], slots: Sequence[Sequence[Slot]], tensors: Sequence[Tensor]):
        """Makes them. In one loop, for this is done in every solve for every module."""
        self.members = members
        self.copies: dict[int, nn.Module] = {id(member.module): object.__new__(member.kind) for member in members}
        states, take = [], self.copies.get
        for member in members:
            held = member.module.__dict__
            state = held | member.own
            state["_parameters"], state["_buffers"] = held["_parameters"].copy(), held["_buffers"].copy()
            children = held["_modules"]
            state["_modules"] = {key: take(id(child), child) for key, child in children.items()} if children else {}
            if member.references or member.weights or "_flat_weights" in held:
                member.complete(state, self.copies)
            states.append(state)
        for places, tensor in zip(slots, tensors, strict=False):
            for i, home, key in places:
                states[i][home][key] = tensor
        self.before = []
        for copy, state in zip(self.copies.values(), states, strict=True):
            object.__setattr__(copy, "__dict__", state)
            homes = state["_parameters"].copy(), state["_buffers"].copy(), state["_modules"].copy()
            self.before.append((state.copy(), *homes))

    def hand_back(self, keep_buffers: bool) -> None:
        """Gives the modules what was written to their stand-ins: attributes, new tensors and children.

        Args:
            keep_buffers: also tensors that took the place of buffers.
        """
        for member, copy, before in zip(self.members, self.copies.values(), self.before, strict=True):
            new = copy.__dict__
            now = (new, new["_parameters"], new["_buffers"], new["_modules"])
            for home, changed, old in zip(EVERYWHERE, now, before, strict=True):
                same = len(changed) == len(old) and (not old or all(map(is_, changed.values(), old.values())))
                if not same:
                    own = member.module.__dict__
                    self._hand_back(old, changed, own[home] if home else own, home == "", keep_buffers)

    def _hand_back(self, old: dict, new: dict, own: dict, attributes: bool, keep_buffers: bool) -> None:
        modules = {id(copy): member.module for copy, member in zip(self.copies.values(), self.members, strict=True)}
        for key in old.keys() - new.keys():
            own.pop(key, None)
        for key, value in new.items():
            was, mine = old.get(key, NOTHING), own.get(key)
            free = attributes or not isinstance(was, Tensor)
            free = free or (keep_buffers and isinstance(mine, Tensor) and not mine.requires_grad)
            if value is not was and free and key not in LISTS:
                own[key] = exchanged(value, modules)


def alone(module: nn.Module) -> Cast:
    """A stand-in for a module with the tensors and the children that it has."""
    return Cast([Member(module, type(module), {})], (), ())


class Family:
    """Modules and all that is in them, of which any number of stand-ins can be made.

    Args:
        roots: the modules.
        begins: whether a solve begins: modules with a method `begin_solve` are told.
    """

    def __init__(self, roots: Sequence[nn.Module], begins: bool):
        """Looks at the modules as they are now."""
        self.members: list[Member] = []
        self._places: dict[int, list[Slot]] = {}
        self._found: dict[int, Tensor] = {}
        weights: list[tuple[Slot, Tensor]] = []
        self.known: dict[int, Any] = {}
        todo = list(reversed(roots))
        while todo:
            module = todo.pop()
            if id(module) in self.known or _is_scripted(module):
                continue
            names = _parametrised(module) if "parametrizations" in module._modules else ()
            member = self._add(module, names, begins)
            self.known[id(module)] = member
            # A parametrised weight is computed here, once a solve, outside of the solve: its graph leads to the
            # originals, and forward and backward use the very same weight (a power iteration advances once).
            if names:
                place = len(self.members) - 1
                weights += [((place, "_parameters", name), getattr(module, name)) for name in names]
            if children := module._modules:
                left_out = (None, children["parametrizations"]) if names else (None,)
                todo += [child for child in reversed(children.values()) if child not in left_out]
        self.slots = [*self._places.values(), *([slot] for slot, _ in weights)]
        self._tensors = [*self._found.values(), *(tensor for _, tensor in weights)]
        del self._places, self._found
        for member in self.members:
            member.references = [
                key
                for key, value in member.module.__dict__.items()
                if (value if type(value) in SEARCHED else isinstance(value, nn.Module))
                and key not in HOMES
                and self.is_in(value)
            ]

    def _add(self, module: nn.Module, names: Sequence[str], begins: bool) -> Member:
        """Notes a module and the places of its own tensors."""
        held = module.__dict__
        own, buffers = {"training": module.training, MARK: True}, held["_buffers"]
        if begins and hasattr(type(module), "begin_solve") and MARK not in held:
            drawn, buffers = _begun(module)
            own |= drawn
        former = held.get("_former_parameters")  # of a replica, which has no parameters itself
        kind = _class_before(type(module), names) if names else type(module)
        i = len(self.members)
        self.members.append(Member(module, kind, own, [*names, *(former or ())]))
        for home, container in (("_parameters", held["_parameters"]), ("_parameters", former), ("_buffers", buffers)):
            if container:
                self._note(i, home, container.items())
        if held.get("_flat_weights"):  # recurrent layers keep a second list of their weights
            self._note(i, "_flat_weights", enumerate(held["_flat_weights"]))
        return self.members[-1]

    def _note(self, i: int, home: str, items: Any) -> None:
        for key, tensor in items:
            if isinstance(tensor, UninitializedTensorMixin):
                raise ValueError(
                    f"{type(self.members[i].module).__name__}.{key} is not initialised yet; try calling the module "
                    "once, as cell(z, x)"
                )
            if isinstance(tensor, Tensor):
                self._places.setdefault(id(tensor), []).append((i, home, key))
                self._found[id(tensor)] = tensor

    def is_in(self, value: Any) -> bool:
        """Whether a value leads to modules of the family."""
        return bool(self.known) and exchanged(value, self.known) is not value

    def take_tensors(self) -> list[Tensor]:
        """Parameters and buffers, each once, then parametrised weights; once, so that no graph is kept alive here."""
        tensors, self._tensors = self._tensors, []
        return tensors

    def cast(self, tensors: Sequence[Tensor]) -> Cast:
        """Stand-ins with these tensors, in the order of `take_tensors`."""
        return Cast(self.members, self.slots, tensors)


def is_stand_in(module: nn.Module) -> bool:
    """Whether a module is the stand-in of another."""
    return MARK in module.__dict__


def _is_scripted(module: nn.Module) -> bool:
    """Whether a module is one of `torch.jit`, of which there are no stand-ins; refused where it needs one."""
    if not isinstance(module, torch.jit.ScriptModule):
        return False
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters()):
        raise TypeError(
            f"got a {module.original_name} compiled by torch.jit, whose tensors no solve can replace, expected a "
            "module of Python where a gradient is wanted; try the module before torch.jit.script, or torch.compile"
        )
    return True


def _parametrised(module: nn.Module) -> list[str]:
    """The names of the weights that a module computes by `torch.nn.utils.parametrize`."""
    parametrizations = module._modules["parametrizations"]
    return list(parametrizations) if isinstance(parametrizations, nn.ModuleDict) else []


def _class_before(kind: type, names: Sequence[str]) -> type:
    """The class of a module before these weights of it became properties."""
    properties = [any(isinstance(vars(base).get(name), property) for name in names) for base in kind.__mro__]
    return kind.__mro__[len(properties) - properties[::-1].index(True)]


def _begun(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `begin_solve` makes of a module, which keeps it, but is the solve's own: new attributes; all buffers."""
    cast = alone(module)
    copy: Any = cast.copies[id(module)]
    copy.begin_solve()
    cast.hand_back(keep_buffers=True)
    old = cast.before[0][0]
    return {key: value for key, value in copy.__dict__.items() if value is not old.get(key, NOTHING)}, copy._buffers
