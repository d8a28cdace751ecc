"""Words of other libraries: each is answered by what it is called here, and what is named exists and can be called."""

import copy
import inspect
import pickle
import re

import pytest
import torch

import torchimplicit as ti
from torchimplicit.core.migration import KEYWORDS, LAYERS, NAMES, explain, missing

SAMPLES = {"max_steps": 20, "window": 4, "steps": 3, "seed": 0, "solver": ti.Tsit5()}
ROWS = [(call, keyword, answer) for call, table in KEYWORDS.items() for keyword, answer in table.items()]


def decays(z):
    return z / 2 + 1


def line():
    return ti.odeint(lambda t, y: -y, torch.ones(2, 3), torch.linspace(0, 1, 3))


def snippets(answer):
    """The options of an answer: `solver=Anderson(rtol=...)` and those that follow."""
    return re.findall(r"(\w+)=((?:[\w.]+\((?:[^()]|\([^()]*\))*\))|\{\})", answer)


@pytest.mark.parametrize(("call", "keyword", "answer"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS])
def test_what_an_answer_names_exists_and_can_be_made(call, keyword, answer):
    known = inspect.signature(getattr(ti, call)).parameters
    assert keyword not in known
    for option, code in snippets(answer):
        assert option in known
        if code != "{}":
            inner = re.search(r"(\w+)=(?:\.\.\.|\{\})", code)
            value = SAMPLES.get(inner[1] if inner else "", 0.5)
            filled = code.replace("{}", "value").replace("...", "value").replace("condition", "len")
            eval(filled, {name: getattr(ti, name) for name in (*ti.__all__, "sde")} | {"value": value})


def test_layers_are_of_the_functions_that_they_are_said_to_call():
    for layer, function in LAYERS.items():
        assert issubclass(getattr(ti.nn, layer), ti.nn.layer.ImplicitLayer)
        assert function in KEYWORDS


@pytest.mark.parametrize(("name", "answer"), NAMES.items())
def test_a_name_of_another_library_leads_to_one_that_exists(name, answer):
    found = ti if "diagnose" not in answer else __import__("torchimplicit.diagnose")
    for part in re.match(r"[\w.]+", answer)[0].split("."):
        found = getattr(found, part)
    with pytest.raises(AttributeError, match=re.escape(f"try torchimplicit.{answer}")):
        getattr(ti, name)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            lambda: ti.fixed_point(decays, torch.zeros(2, 3), f_max_iter=30),
            r"f_max_iter=30\).*Anderson\(max_steps=30\)",
        ),
        (lambda: ti.odeint(decays, torch.ones(2), torch.ones(2), rtol=1e-3), r"solver=Tsit5\(rtol=0.001\)"),
        (lambda: ti.sdeint(decays, decays, torch.ones(2), torch.ones(2), bm=None), "brownian=sde.Brownian"),
        (lambda: ti.nn.DEQ(lambda z, x: z, f_solver="broyden"), r"DEQ\(f_solver='broyden'\)"),
        (lambda: ti.nn.DEQ(lambda z, x: z, indexing=(1,)), "fixed_point has it, as save_steps=..."),
        (lambda: ti.nn.NeuralODE(lambda t, y: -y, jump_t=[1.0]), "odeint has it, as jumps=..."),
        (lambda: ti.nn.DEQ(lambda z, x: z, solvr=ti.Picard()), "did you mean solver"),
        (lambda: ti.Anderson(m=5), "window=5"),
        (lambda: ti.Anderson(rtoll=1e-3), "did you mean rtol"),
        (lambda: ti.Anderson(1e-3), r"too many positional arguments; expected Anderson\(rtol"),
        (lambda: ti.Dopri5(first_step=0.1), "dt0=0.1"),
        (lambda: ti.GMRES(max_iter=5), "max_steps=5"),
        (lambda: ti.Checkpointed(number=3), "expected one of checkpoints"),
        (lambda: ti.fixed_point(decays), "missing a required argument: 'z0'"),
        (lambda: line()[-1], "solution.value"),
        (lambda: tuple(line()), "solution.value"),
        (lambda: ti.odeint(decays, torch.ones(2), torch.ones(2), solver="dopri5"), r"try Dopri5\(\)"),
        (lambda: ti.fixed_point(decays, torch.ones(2), solver="broyden"), r"try Broyden\(\)"),
    ],
)
def test_the_answer(wrong, words):
    with pytest.raises(TypeError, match=words):
        wrong()


def test_one_object_for_drift_and_diffusion():
    class Equation:
        def f(self, t, y):
            return -y

        def g(self, t, y):
            return y

    with pytest.raises(TypeError, match=r"sdeint\(sde.f, sde.g, y0, ts\)"):
        ti.sdeint(Equation(), torch.ones(2, 3), torch.linspace(0, 1, 3))


def test_errors_of_the_users_own_functions_are_left_alone():
    def broken(z):
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine"):
        ti.fixed_point(broken, torch.zeros(2, 3))


def test_a_call_that_takes_any_keyword_is_no_fault():
    explain("any", lambda **options: None, (), {"f_tol": 1})


def test_a_close_name_is_asked_for():
    with pytest.raises(AttributeError, match=r"did you mean torchimplicit.Anderson\?"):
        _ = ti.Andersson
    with pytest.raises(AttributeError, match=r"did you mean torchimplicit.nn.DEQ\?"):
        _ = ti.DEQ
    with pytest.raises(AttributeError, match=r"did you mean torchimplicit.nn.MDEQ\?"):
        _ = ti.nn.MDEK
    assert not hasattr(ti, "__wrapped__")
    assert "mean" not in str(missing("torchimplicit", "qqqqq", ti.__all__))


def test_what_a_tensor_has_is_the_values():
    solution = ti.fixed_point(decays, torch.zeros(2, 3))
    with pytest.raises(AttributeError, match=r"try solution\.value\.shape"):
        _ = solution.shape
    with pytest.raises(AttributeError, match=r"no attribute 'valeu'$"):
        _ = solution.valeu
    assert copy.copy(solution).value is solution.value


def test_options_and_layers_copy_and_say_what_they_take():
    assert "rtol" in inspect.signature(ti.Anderson).parameters
    assert "cell" in inspect.signature(ti.nn.DEQ).parameters
    for each in (ti.Anderson(rtol=1e-3), ti.Implicit(), ti.Tsit5(), ti.GMRES(), ti.Checkpointed()):
        assert pickle.loads(pickle.dumps(each)) == copy.deepcopy(each) == each
