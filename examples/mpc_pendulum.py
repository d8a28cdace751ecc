"""What does an expert care about? The weights of a swing-up's cost, recovered from the torques that it chose.

The expert swings a pendulum upwards by a motor too weak to lift it, as cheaply as its own cost says: squares of speed
and torque, and what is left at the end, against the height that is missing. Its torques are seen with noise. A planner
(`ti.nn.MPC`) whose weights start four times wrong plans for the same first states; the gradient of its mistakes passes
through the plans into the weights. About half a minute on one core.

    python examples/mpc_pendulum.py [--picture FILE] [--steps STEPS]
"""

# %%
import argparse

import torch
from torch import Tensor, nn

import torchimplicit as ti

STEP, HORIZON, GRAVITY, TORQUE = 0.05, 40, 9.81, 7.0  # seconds, steps, 1/s^2; the torque that lifts it is 9.81
TRUTH = {"speed": 0.3, "torque": 0.05, "end": 3.0}  # beside a weight of one for the height: only ratios can be known
WRONG = {"speed": 0.075, "torque": 0.2, "end": 0.75}
NOISE = 0.2


# %%
def pendulum(x: Tensor, u: Tensor) -> Tensor:
    """One step, angle zero at the top; the speed moves first."""
    angle, speed = x.unbind(-1)
    speed = speed + STEP * (GRAVITY * angle.sin() + u[..., 0])
    return torch.stack((angle + STEP * speed, speed), -1)


# %%
class Cost(nn.Module):
    """What a planner wants, its weights positive whatever is learned."""

    def __init__(self, weights: dict[str, float]):
        super().__init__()
        logs = {name: nn.Parameter(torch.tensor(weight, dtype=torch.float64).log()) for name, weight in weights.items()}
        self.logs = nn.ParameterDict(logs)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        motion = self.weight("speed") * x[:, 1] ** 2 + self.weight("torque") * u[:, 0] ** 2
        return STEP * (1 - x[:, 0].cos() + motion)

    def end(self, x: Tensor) -> Tensor:
        return self.weight("end") * (1 - x[:, 0].cos() + 0.1 * x[:, 1] ** 2)

    def weight(self, name: str) -> Tensor:
        return self.logs[name].exp()


# %%
def planner(weights: dict[str, float]) -> tuple[ti.nn.MPC, Cost]:
    cost = Cost(weights)
    solver = ti.optim.BoxDDP(rtol=1e-5)
    return ti.nn.MPC(pendulum, cost, HORIZON, -TORQUE, TORQUE, final_cost=cost.end, solver=solver, whole=True), cost


# %%
def imitate(learner: ti.nn.MPC, cost: Cost, states: Tensor, seen: Tensor, steps: int) -> list[dict[str, float]]:
    """The weights after every step of learning."""
    optimizer = torch.optim.Adam(cost.parameters(), lr=0.3, betas=(0.7, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = [{name: cost.weight(name).item() for name in TRUTH}]
    for step in range(steps):
        torques = learner(states, u0=seen)  # the minimum next to what was seen: there are others, swings to both sides
        loss = (torques - seen).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        history.append({name: cost.weight(name).item() for name in TRUTH})
        if step % 10 == 0 or step == steps - 1:
            weights = ", ".join(f"{name} {weight:.4f}" for name, weight in history[-1].items())
            print(f"step {step:2}: error {loss.item() ** 0.5:.3f}, {weights}; {learner.report}")
    return history


# %%
def draw(path: str, seen: Tensor, before: Tensor, after: Tensor, history: list[dict[str, float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    times = [STEP * t for t in range(HORIZON)]
    left.plot(times, seen[0, :, 0], ".", color="0.5", label="expert, seen with noise")
    left.step(times, before[0, :, 0], ":", where="mid", label="before")
    left.step(times, after[0, :, 0], where="mid", label="imitated")
    left.set(xlabel="time, s", ylabel="torque")
    left.legend()
    for name, truth in TRUTH.items():
        right.plot([weights[name] / truth for weights in history], label=name)
    right.axhspan(0.95, 1.05, color="0.9")
    right.set(xlabel="step of learning", ylabel="weight over its truth", yscale="log")
    right.set_yticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    right.minorticks_off()
    right.legend()
    figure.savefig(path, dpi=110)


# %%
def main(steps: int = 60, picture: str | None = None) -> dict[str, float]:
    torch.manual_seed(0)
    start = torch.tensor([torch.pi, 0.0], dtype=torch.float64)
    states = start + torch.tensor([0.5, 1.0]) * torch.randn(8, 2, dtype=torch.float64)
    with torch.no_grad():
        expert, _ = planner(TRUTH)
        plan = expert.plan(states)
        seen = plan.value + NOISE * torch.randn_like(plan.value)
    print(f"the expert: {expert.report}; {int((plan.control_duals != 0).sum())} of {seen.numel()} torques at a limit")
    learner, cost = planner(WRONG)
    with torch.no_grad():
        before = learner(states, u0=seen)
    history = imitate(learner, cost, states, seen, steps)
    wrong = {name: history[-1][name] / truth - 1 for name, truth in TRUTH.items()}
    print("recovered to", ", ".join(f"{name} {100 * error:+.2f} %" for name, error in wrong.items()))
    if picture:
        with torch.no_grad():
            draw(picture, seen, before, learner(states, u0=seen), history)
    return wrong


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", help="draw what was done and learned into this file")
    parser.add_argument("--steps", type=int, default=60, help="of learning")
    torch.set_num_threads(1)  # the matrices are small
    main(**vars(parser.parse_known_args()[0]))
