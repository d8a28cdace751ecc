"""What is a warm room worth? A household's comfort, in euros, recovered from how it heats its two zones.

The household plans a day of heating, hour by hour, as cheaply as it can: electricity at a night and a day price, peaks
of power, and degrees away from 21 by day at what they are worth to it; never below 18 by night and 20 by day, never
above 24, with heaters of 2 and 1 kW. Its heating is seen with noise on a dozen days. A planner (`ti.lqr`) whose prices
of comfort and peaks start four times wrong plans the same days; the gradient of its mistakes passes through the plans,
bounds and all, into the prices. About a dozen seconds on one core.

Zones are the network of ISO 13790:2008, a medium-heavy building: 165 kJ/K of mass and 2.5 m2 of its surface a square
metre of floor, 9.1 W/(m2 K) from mass to surface, 3.45 W/(m2 K) from 4.5 m2 of surface to the air. Walls, roof and
windows have 0.28, 0.20 and 1.3 W/(m2 K), those of the reference house in the German energy act (GEG 2020, annex 1); air
changes 0.5 times an hour. The air's capacity, times five for furniture, and the gains of 4 W/m2 are ours.

    python examples/mpc_building.py [--picture FILE] [--steps STEPS]
"""

# %%
import argparse

import torch
from torch import Tensor

import torchimplicit as ti

HOURS, HOUR = 24, 3600.0
FLOOR, WALL, WINDOW = (torch.tensor(areas, dtype=torch.float64) for areas in ([40, 25], [30, 25], [8, 4]))  # m2
BETWEEN = 30.0  # W/K between the zones: an inner wall and a door
HEATERS = torch.tensor([2.0, 1.0], dtype=torch.float64)  # kW
TRUTH = {"living room": 0.05, "bedroom": 0.02, "peaks": 0.03}  # euro/(K2 h) twice, euro/(kW2 h)
WRONG = {"living room": 0.0125, "bedroom": 0.08, "peaks": 0.12}
SETPOINT, NOISE = 21.0, 0.05  # degrees, kW
DAY = torch.tensor([6 <= hour < 22 for hour in range(HOURS)])
PRICE = torch.where(DAY, 0.32, 0.24).double()  # euro/kWh


# %%
def building() -> tuple[Tensor, Tensor, Tensor]:
    """One hour of the states air, mass, air, mass: by the state, by the heaters in kW, by (outdoors, gains in W/m2)."""
    air = 2.5 * FLOOR * 1206 * 5  # J/K, rooms 2.5 m high
    mass = 165e3 * FLOOR
    inward = 1 / (1 / (9.1 * 2.5 * FLOOR) + 1 / (3.45 * 4.5 * FLOOR))  # W/K from air to mass
    leak = 1.3 * WINDOW + 0.5 * 2.5 * FLOOR * 1206 / HOUR  # W/K from air to outdoors
    through = 0.28 * WALL + 0.20 * FLOOR  # W/K from mass to outdoors
    slope = torch.zeros(8, 8, dtype=torch.float64)  # by the four states, two heaters, outdoors, gains
    for zone in range(2):
        a, m, other = 2 * zone, 2 * zone + 1, 2 - 2 * zone
        slope[a, a] = -(inward[zone] + leak[zone] + BETWEEN) / air[zone]
        slope[a, m], slope[a, other] = inward[zone] / air[zone], BETWEEN / air[zone]
        slope[m, a], slope[m, m] = inward[zone] / mass[zone], -(inward[zone] + through[zone]) / mass[zone]
        slope[a, 4 + zone], slope[a, 6], slope[m, 6] = (
            1e3 / air[zone],
            leak[zone] / air[zone],
            through[zone] / mass[zone],
        )
        slope[a, 7] = FLOOR[zone] / air[zone]
    hour = torch.linalg.matrix_exp(HOUR * slope)[:4]  # exact, for inputs held through the hour
    return hour[:, :4], hour[:, 4:6], hour[:, 6:]


# %%
def days(count: int) -> tuple[Tensor, Tensor]:
    """First states `(count, 4)`, and the temperatures outdoors, `(count, 24)`."""
    start = 20.5 + 0.5 * torch.randn(count, 4, dtype=torch.float64)
    mean = -2 + 4 * torch.randn(count, 1, dtype=torch.float64)
    hours = torch.arange(HOURS, dtype=torch.float64)
    return start, mean + 4 * torch.sin((hours - 9) / 24 * 2 * torch.pi)


# %%
def plan(weights: dict[str, Tensor], start: Tensor, outdoors: Tensor) -> ti.optim.ControlSolution:
    """The cheapest days, for what comfort and peaks are worth."""
    A, B, inputs = building()
    zero = torch.zeros_like(weights["living room"])
    comfort = torch.stack((weights["living room"], zero, weights["bedroom"], zero))
    by_day = DAY.double().unsqueeze(1) * comfort  # (24, 4)
    peaks = 2 * weights["peaks"] * torch.eye(2, dtype=torch.float64)
    drift = torch.stack((outdoors, torch.full_like(outdoors, 4.0)), -1) @ inputs.T
    free = torch.tensor([0.0, torch.inf, 0.0, torch.inf], dtype=torch.float64)  # bounds hold for the air
    lowest = torch.where(DAY.roll(-1), 20.0, 18.0).double().unsqueeze(1)  # of the states after each hour
    costs = {"q": -2 * SETPOINT * by_day, "r": PRICE.unsqueeze(1).expand(HOURS, 2)}
    bounds = {"lower": 0.0, "upper": HEATERS, "state_lower": lowest - free, "state_upper": 24 + free}
    return ti.optim.lqr(A, B, 2 * torch.diag_embed(by_day), peaks, start, HOURS, c=drift, **costs, **bounds)


# %%
def imitate(start: Tensor, outdoors: Tensor, seen: Tensor, steps: int) -> list[dict[str, float]]:
    """The weights after every step of learning."""
    logs = {name: torch.tensor(weight, dtype=torch.float64).log().requires_grad_() for name, weight in WRONG.items()}
    optimizer = torch.optim.Adam(logs.values(), lr=0.15, betas=(0.8, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = [dict(WRONG)]
    for step in range(steps):
        solution = plan({name: log.exp() for name, log in logs.items()}, start, outdoors)
        loss = (solution.value - seen).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        history.append({name: log.exp().item() for name, log in logs.items()})
        if step % 10 == 0 or step == steps - 1:
            weights = ", ".join(f"{name} {weight:.4f}" for name, weight in history[-1].items())
            print(f"step {step:3}: error {loss.item() ** 0.5:.3f} kW, {weights}; {solution.report}")
    return history


# %%
def draw(path: str, seen: Tensor, plans: dict[str, ti.optim.ControlSolution], history: list[dict[str, float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(range(HOURS), seen[0, :, 0], ".", color="0.5", label="household, seen with noise")
    for style, (name, solution) in zip((":", "-"), plans.items(), strict=True):
        left.step(range(HOURS), solution.value[0, :, 0], style, where="mid", label=name)
        middle.plot(range(HOURS + 1), solution.states[0, :, 0], style, label=name)
    middle.step(range(1, HOURS + 1), torch.where(DAY.roll(-1), 20.0, 18.0), "k--", linewidth=0.8, where="mid")
    left.set(xlabel="hour", ylabel="heating of the living room, kW")
    middle.set(xlabel="hour", ylabel="its temperature, and the least allowed")
    for name, truth in TRUTH.items():
        right.plot([weights[name] / truth for weights in history], label=name)
    right.axhspan(0.95, 1.05, color="0.9")
    right.set(xlabel="step of learning", ylabel="worth over its truth", yscale="log")
    right.set_yticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
    right.minorticks_off()
    left.legend()
    right.legend()
    figure.savefig(path, dpi=110)


# %%
def fixed(weights: dict[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(weight, dtype=torch.float64) for name, weight in weights.items()}


# %%
def main(steps: int = 60, picture: str | None = None) -> dict[str, float]:
    torch.manual_seed(0)
    start, outdoors = days(12)
    with torch.no_grad():
        household = plan(fixed(TRUTH), start, outdoors)
        seen = household.value + NOISE * torch.randn_like(household.value)
    held = [int((duals.abs() > 1e-9).sum()) for duals in (household.control_duals, household.state_duals)]
    print(
        f"the household: {household.report}; {held[0]} of {seen.numel()} powers and {held[1]} temperatures at a limit"
    )
    history = imitate(start, outdoors, seen, steps)
    wrong = {name: history[-1][name] / truth - 1 for name, truth in TRUTH.items()}
    print("recovered to", ", ".join(f"{name} {100 * error:+.2f} %" for name, error in wrong.items()))
    if picture:
        with torch.no_grad():
            plans = {
                name: plan(fixed(weights), start, outdoors)
                for name, weights in (("before", WRONG), ("imitated", history[-1]))
            }
        draw(picture, seen, plans, history)
    return wrong


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", help="draw what was done and learned into this file")
    parser.add_argument("--steps", type=int, default=60, help="of learning")
    torch.set_num_threads(1)  # the matrices are small
    main(**vars(parser.parse_known_args()[0]))
