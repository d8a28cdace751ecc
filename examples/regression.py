"""An equilibrium layer learns y = 2 x from x = 1..10, and answers about -10 for -5.

The cell is a network 1-2-1 without activations; the layer's output is the z with cell(z + x) = z. Runs in seconds.
"""

# %%
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit import diagnose


# %%
class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))

    def forward(self, z, x):
        return self.layers(z + x)


# %%
def main(steps: int = 300) -> float:
    torch.manual_seed(0)
    layer = ti.nn.DEQ(Cell(), solver=ti.Newton(rtol=1e-5))  # of one unknown a sample: its linear systems are numbers
    x = torch.arange(1.0, 11.0).unsqueeze(1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for step in range(1, steps + 1):
        loss = nn.functional.mse_loss(layer(x), 2 * x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.2e}; {layer.report}")
    with torch.no_grad():
        answer = layer(torch.tensor([[-5.0]])).item()
    print(f"\n2 * -5 = {answer:.3f}\n")
    print(diagnose.convergence(layer, x).table())
    return answer


# %%
if __name__ == "__main__":
    main()
