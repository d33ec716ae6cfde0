from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bmnas.strategies.surrogate import EPOCHS, ScorePool, Surrogate

ONE = [((0, 0, 0),), ((1, 3, 1),)]
TWO = [((0, 0, 0), (3, 2, 1)), ((1, 3, 1), (0, 1, 0)), ((2, 2, 0), (1, 1, 1))]


def steps_of(pool: ScorePool) -> int:
    (state, *_) = pool.optimizer.state.values()
    return int(state["step"])


def test_its_layers_and_where_they_start() -> None:
    torch.manual_seed(0)
    surrogate = Surrogate(3)
    shapes = {name: tuple(p.shape) for name, p in surrogate.named_parameters()}
    assert shapes == {
        "embed.weight": (100, 3),
        "embed.bias": (100,),
        "lstm.weight_ih_l0": (400, 100),
        "lstm.weight_hh_l0": (400, 100),
        "lstm.bias_ih_l0": (400,),
        "lstm.bias_hh_l0": (400,),
        "output.weight": (1, 100),
        "output.bias": (1,),
    }
    for linear in (surrogate.embed, surrogate.output):
        assert linear.weight.abs().max() <= 0.1
        assert (linear.bias == 1.8).all()
    # Uniform, not merely small: 300 draws of U(-0.1, 0.1) have the deviation 0.1 / sqrt(3).
    assert surrogate.embed.weight.std().item() == pytest.approx(0.0577, abs=0.007)


def sigmoid(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = 1 / (1 + np.exp(-x))
    return y


def test_it_computes_its_formula() -> None:
    torch.manual_seed(0)
    surrogate = Surrogate(3).double()
    w = {name: p.detach().numpy() for name, p in surrogate.named_parameters()}
    x = np.array(TWO, dtype=float)  # (N, D, 3)
    h, c = np.zeros((3, 100)), np.zeros((3, 100))
    for d in range(2):
        e = sigmoid(x[:, d] @ w["embed.weight"].T + w["embed.bias"])
        gates = e @ w["lstm.weight_ih_l0"].T + w["lstm.bias_ih_l0"]
        gates += h @ w["lstm.weight_hh_l0"].T + w["lstm.bias_hh_l0"]
        i, f, g, o = np.split(gates, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    expected = sigmoid(h @ w["output.weight"].T + w["output.bias"])[:, 0]
    found = surrogate(torch.tensor(x).transpose(0, 1))
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9)


def test_an_epoch_is_a_step_for_each_depth_and_adam_goes_on() -> None:
    pool = ScorePool(3)
    pool.learn(ONE, [0.2, 0.8])
    assert EPOCHS == 50
    assert steps_of(pool) == 50
    pool.learn(TWO, [0.3, 0.6, 0.9])
    assert steps_of(pool) == 50 + 2 * 50
    assert pool.optimizer.defaults["lr"] == 1e-3


def test_the_order_of_its_updates() -> None:
    """The depth that came first is learned first, all of a depth at once, by squared error."""
    torch.manual_seed(0)
    pool = ScorePool(3)
    torch.manual_seed(0)
    other = Surrogate(3)
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-3)
    one, two = (torch.tensor(x, dtype=torch.float32).transpose(0, 1) for x in (ONE, TWO))
    batches = [(two, torch.tensor([0.3, 0.6, 0.9]))]
    for known in (batches, [*batches, (one, torch.tensor([0.2, 0.8]))]):
        for _ in range(50):
            for layers, scores in known:
                optimizer.zero_grad()
                nn.MSELoss()(other(layers), scores).backward()
                optimizer.step()
    pool.learn(TWO, [0.3, 0.6, 0.9])
    pool.learn(ONE, [0.2, 0.8])
    expected = other(two).tolist()
    assert pool.predict(TWO) == pytest.approx(expected, rel=1e-5)


def test_of_an_architecture_that_came_twice_the_higher_score_counts() -> None:
    torch.manual_seed(0)
    pool = ScorePool(3)
    pool.learn(ONE, [0.2, 0.8])
    pool.learn([ONE[0], ONE[0], ONE[1]], [0.5, 0.4, 0.1])
    torch.manual_seed(0)
    same = ScorePool(3)
    same.learn(ONE, [0.2, 0.8])
    same.learn(ONE, [0.5, 0.8])
    assert pool.predict(ONE) == same.predict(ONE)
    assert steps_of(pool) == 100


def test_it_learns() -> None:
    torch.manual_seed(0)
    pool = ScorePool(3)
    for _ in range(10):
        pool.learn(ONE, [0.2, 0.8])
    low, high = pool.predict(ONE)
    assert low < 0.4 < 0.6 < high
