"""Half precision, compiled cells, gradients accumulated over batches."""

import csv
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch._dynamo.utils import counters

import torchimplicit as ti
from torchimplicit.core.status import ConvergenceWarning
from torchimplicit.train.data import Digits
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules import Classifier, EquilibriumModule
from torchimplicit.train.modules.compiled import compile_cell
from torchimplicit.train.networks import ConvolutionalDEQ, DigitsNetwork


def fit(module, batch=16, **options):
    options = {"max_steps": 6, "logger": False, "limit_val_batches": 1, "log_every_n_steps": 1} | options
    trainer = pl.Trainer(
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, datamodule=Digits(batch_size=batch))
    return trainer


def dense(solver, adjoint):
    return DigitsNetwork(16, solver, adjoint)


def convolutional(solver, adjoint):
    return ConvolutionalDEQ(1, 8, 8, 4, strides=(2,), pool=2, solver=solver, adjoint=adjoint)


class Solves(pl.Callback):
    """Notes the layer's output and how its solves went."""

    def __init__(self, layer):
        self.dtypes, self.forward, self.backward = set(), [], []
        layer.register_forward_hook(lambda layer, inputs, value: self.dtypes.add(value.dtype))

    def on_train_batch_end(self, trainer, pl_module, *_):
        report = pl_module.reports()[0]
        self.forward.append(report)
        self.backward.append(report.backward)


@pytest.mark.filterwarnings("ignore::torchimplicit.core.status.ConvergenceWarning")
@pytest.mark.parametrize("network", [dense, convolutional])
def test_half_precision_trains_and_its_solves_arrive_where_its_rounding_allows(network):
    torch.manual_seed(0)
    model = network(ti.Anderson(rtol=2e-2), ti.Implicit(ti.GMRES(rtol=1e-1)))
    solves = Solves(model.equilibrium)
    module = Classifier(model, learning_rate=1e-2)
    trainer = fit(module, max_steps=40, precision="bf16-mixed", callbacks=[solves], val_check_interval=40)
    assert float(trainer.callback_metrics["val/accuracy"]) > 0.4
    for reports in (solves.forward, solves.backward):
        assert torch.cat([report.status == ti.Status.CONVERGED for report in reports]).float().mean() > 0.95
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert solves.dtypes == {torch.bfloat16}, "as what goes in; the solver carries them in float32"


def test_half_precision_does_not_claim_more_than_its_rounding_allows():
    torch.manual_seed(0)
    model = dense(ti.Anderson(rtol=1e-6), ti.Implicit(ti.GMRES(rtol=1e-6)))
    solves = Solves(model.equilibrium)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        fit(Classifier(model), max_steps=2, precision="bf16-mixed", callbacks=[solves])
    assert not any(report.converged for report in solves.forward)
    assert all(float(report.residual.max()) > 1e-6 for report in solves.forward)


def logged(trainer):
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get("train/loss")]


def test_small_batches_accumulated_are_one_large_batch():
    def trained(batch, accumulate):
        torch.manual_seed(0)
        model = dense(ti.Anderson(rtol=1e-11, max_steps=99), ti.Implicit(ti.GMRES(rtol=1e-11)))
        module = Classifier(model, learning_rate=1e-2)
        options = {"precision": "64-true", "logger": CSVLogger(f"logs{batch}"), "log_every_n_steps": 2}
        return module, fit(module, batch, accumulate_grad_batches=accumulate, **options)

    (large, once), (small, often) = trained(24, 1), trained(8, 3)
    for name, parameter in large.named_parameters():
        assert torch.allclose(parameter, small.get_parameter(name), rtol=0, atol=1e-6), name
    lines = logged(once), logged(often)
    assert [row["step"] for row in lines[0]] == [row["step"] for row in lines[1]]
    assert len(lines[0]) == 3, "6 steps, one line every 2"
    for one, other in zip(*lines, strict=True):
        for name in ("train/loss", "train/accuracy", "train/forward_unconverged"):
            assert float(one[name]) == pytest.approx(float(other[name]), abs=1e-6), name


@pytest.fixture
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


# The backend that needs no C++ compiler, but traces, derives and guards as inductor does.
@pytest.fixture
def _eagerly(monkeypatch, _fresh):
    kind = "torchimplicit.train.modules.equilibrium.compile_cell"
    monkeypatch.setattr(kind, lambda layer: compile_cell(layer, "aot_eager"))


@pytest.mark.usefixtures("_eagerly")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, in tracing
@pytest.mark.parametrize("network", [dense, convolutional])
def test_a_compiled_cell_trains_alike_without_compiling_anew(network):
    def trained(compiled):
        torch.manual_seed(0)
        model = network(ti.Anderson(rtol=1e-3), ti.Implicit(ti.GMRES(rtol=1e-3)))
        names = list(model.state_dict())
        module = Classifier(model, jacobian_penalty=0.1, compile_cells=compiled)
        assert list(model.state_dict()) == names
        fit(module)
        return module

    plain, compiled = trained(False), trained(True)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(parameter, compiled.get_parameter(name), atol=1e-5), name
    assert not counters["graph_break"]
    for batch in (40, 72, 133):
        fit(compiled, batch, max_steps=1, limit_val_batches=0)
    # Seven variants, and one for a batch that is as large as the state is wide; however many sizes there are.
    assert 2 <= counters["stats"]["unique_graphs"] <= 8


class Calls(nn.Module):
    """A cell that counts the calls that its Python gets, and those that are traced."""

    def __init__(self):
        super().__init__()
        self.linear, self.ran = nn.Linear(8, 8), 0

    def forward(self, z, x):
        if not torch.compiler.is_compiling():
            self.ran += 1
        return torch.tanh(0.5 * self.linear(z) + x)


@pytest.mark.usefixtures("_fresh")
def test_solves_and_gradients_run_nothing_but_what_was_compiled():
    layer = ti.nn.DEQ(Calls())
    compile_cell(layer, "aot_eager")
    layer(torch.randn(5, 8, requires_grad=True)).sum().backward()
    assert layer.report.nfev > 2
    assert layer.report.backward.converged
    assert layer.cell.ran == 0


def test_without_a_compiler_the_option_says_so(monkeypatch):
    import torch._inductor.cpp_builder as builder
    from torch._inductor.exc import InvalidCxxCompiler

    def absent():
        raise InvalidCxxCompiler

    monkeypatch.setattr(builder, "get_cpp_compiler", absent)
    with pytest.raises(UsageError, match=r"no C\+\+ compiler.*g\+\+"):
        EquilibriumModule(DigitsNetwork(width=8), compile_cells=True)


def test_a_plain_function_is_refused():
    with pytest.raises(UsageError, match="a cell that is a function"):
        compile_cell(ti.nn.DEQ(lambda z, x: torch.tanh(x)), "aot_eager")
