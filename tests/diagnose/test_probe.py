import subprocess
import sys

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit import diagnose

DIAGNOSES = [
    diagnose.certify,
    diagnose.convergence,
    diagnose.spectral_radius,
    diagnose.check_gradient,
    diagnose.memory,
]


@pytest.fixture(params=DIAGNOSES, ids=lambda function: function.__name__)
def function(request):
    return request.param


def test_what_is_no_layer_is_refused_with_the_way_out(function, make_layer, x):
    with pytest.raises(TypeError, match=r"got a Linear, expected a torchimplicit.nn.DEQ; try: wrap the cell"):
        function(nn.Linear(6, 6), x)
    with pytest.raises(TypeError, match=r"model\.1$"):
        function(nn.Sequential(nn.Linear(6, 6), make_layer()), x)


def test_bad_inputs(function, make_layer, x):
    with pytest.raises(ValueError, match="expected at least one sample"):
        function(make_layer(), x[:0])
    with pytest.raises(TypeError, match="floating"):
        function(make_layer(), x.long())
    with pytest.raises(TypeError, match="unexpected keyword"):
        function(make_layer(), x, colour="blue")
    with pytest.raises(ValueError, match="returned shape"):
        function(ti.nn.DEQ(lambda z, x: z[:, :2] + x[:, :2]), x)


class Busy(nn.Module):
    """Counts its calls in a buffer and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z, x):
        self.calls += 1
        return 0.5 * z + x + 1e-9 * torch.rand(())


def test_buffers_and_the_random_state_are_put_back(function, x):
    layer = ti.nn.DEQ(Busy(), on_failure="ignore")
    state = torch.get_rng_state()
    function(layer, x)
    assert layer.cell.calls == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.report is None


def test_pictures_without_matplotlib_name_the_extra(make_layer, x, monkeypatch):
    result = diagnose.convergence(make_layer(), x)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"torchimplicit\[train\]"):
        result.plot()


def test_importing_the_diagnostics_does_not_import_matplotlib():
    code = "import sys, torchimplicit.diagnose; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
