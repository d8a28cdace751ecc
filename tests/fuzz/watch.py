"""Running the library under watch: what it raised, what it warned of, what it left behind."""

import linecache
import signal
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

import torchimplicit as ti

SECONDS = 60.0  # of the processor's time: a case that takes longer hangs; the slowest take ten
SOURCE = str(Path(ti.__file__).parent)


class Fault(NamedTuple):
    """What is wrong: `kind` is "silent" or "exception" (as is all that comes out of the inside), `words` say what."""

    kind: str
    words: str


class Outcome(NamedTuple):
    """What a call gave, or raised; the library's own warnings; and what it must not have done."""

    value: Any
    error: Exception | None
    said: list[str]
    faults: list[Fault]


class Hang(BaseException):
    """The time is up. Not an `Exception`, for nobody shall catch it."""


def watched(call, seconds=SECONDS):
    """Calls a function of no arguments, and looks at everything around it."""
    state, mode = torch.get_rng_state(), torch.is_grad_enabled()
    value = error = None
    faults = []
    with warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        try:
            with _alarm(seconds):
                value = call()
        except Hang:
            faults.append(Fault("exception", f"hangs: {seconds:.0f} s were not enough"))
            error = TimeoutError()
        except Exception as raised:
            error = raised
            if not _is_refusal(raised):
                faults.append(Fault("exception", _words(raised)))
    said = [str(warning.message) for warning in met if issubclass(warning.category, ti.ConvergenceWarning)]
    others = {str(warning.message) for warning in met if not issubclass(warning.category, ti.ConvergenceWarning)}
    faults += [Fault("exception", f"warns: {message.splitlines()[0][:200]}") for message in others]
    if not torch.equal(state, torch.get_rng_state()):
        faults.append(Fault("exception", "the global random state was changed"))
        torch.set_rng_state(state)
    if torch.is_grad_enabled() != mode:
        faults.append(Fault("exception", "the grad mode was changed"))
        torch.set_grad_enabled(mode)
    return Outcome(value, error, said, faults)


@contextmanager
def _alarm(seconds):
    def ring(*_):
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _is_refusal(error):
    """Whether an error is one of the library's own words: of a documented class, and raised by its own `raise`."""
    if not isinstance(error, ValueError | TypeError | NotImplementedError | ti.ImplicitError):
        return False
    frame = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(frame.filename, frame.lineno or 0)
    return frame.filename.startswith(SOURCE) and line.lstrip().startswith("raise")


def _words(error):
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename.startswith(SOURCE)] or frames
    place = f"{Path(inside[-1].filename).name}:{inside[-1].lineno}"
    return f"{type(error).__name__} by {place}: {(str(error).splitlines() or [''])[0][:200]}"
