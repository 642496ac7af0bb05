"""Noisy digits for many populations at once: every member of every seed is a slice of a batched matrix product.

Training is plain SGD with momentum 0.9 on a 64-64-64-10 perceptron with dropout. Of 500 training images 20 % carry a
random label; 500 clean images validate, 797 test. The decisions are those of `lightning_hpo.schedulers.population`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from lightning_hpo.schedulers.explore import Interval
from lightning_hpo.schedulers.population import MemberScore, Rules
from lightning_hpo.space import parse_space

SPACE = parse_space(
    {"lr": "loguniform(1e-3, 1)", "weight_decay": "loguniform(1e-5, 1e-1)", "dropout": "uniform(0, 0.7)"}
)
HAND_PICKED = {"lr": 0.05, "weight_decay": 1e-4, "dropout": 0.3}
SIZES = (64, 64, 64, 10)
MEMBERS, STEPS, INTERVAL, BATCH, MOMENTUM = 10, 600, 60, 64, 0.9


@dataclass(frozen=True)
class Study:
    """Per seed: losses of the member that is best in validation, its test accuracy and its last learning rate."""

    val_loss: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    last_lr: np.ndarray


def run(seeds: range, rules: Callable[[int], Rules] | None, *, constant: Mapping[str, float] | None = None) -> Study:
    """Train one population per seed.

    Args:
        seeds: of the populations; the same seed has the same data, first weights and first hyperparameters in each arm.
        rules: seed -> rules; None never copies or explores.
        constant: hyperparameters for every member instead of a random draw.
    """
    data = [_data(seed) for seed in seeds]
    train_x, train_y, val_x, val_y, test_x, test_y = (torch.stack(column) for column in zip(*data, strict=True))
    count = len(seeds) * MEMBERS
    weights = _first_weights(seeds)
    for tensor in weights:
        tensor.requires_grad_(True)
    momenta = [torch.zeros_like(tensor) for tensor in weights]
    first = [Rules(SPACE, seed=seed) for seed in seeds]
    params = [dict(constant or rule.initial(member)) for rule in first for member in range(MEMBERS)]
    batches = torch.Generator().manual_seed(1000 + seeds[0])
    score = torch.zeros(count)
    history = [[] for _ in seeds]
    before = [None] * count
    for step in range(1, STEPS + 1):
        lr, decay, dropout = (torch.tensor([values[name] for values in params]) for name in SPACE)
        rows = torch.randint(500, (count, BATCH), generator=batches)
        owner = torch.arange(count).div(MEMBERS, rounding_mode="floor")[:, None]
        loss = _loss(weights, train_x[owner, rows], train_y[owner, rows], dropout, batches).sum()
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for tensor, momentum, gradient in zip(weights, momenta, gradients, strict=True):
                shape = (count,) + (1,) * (tensor.ndim - 1)
                momentum.mul_(MOMENTUM).add_(gradient + decay.view(shape) * tensor)
                tensor.sub_(lr.view(shape) * momentum)
        if step % INTERVAL == 0:
            score = _evaluate(weights, val_x, val_y)[0]
            if rules is not None and step < STEPS:
                donors = _decide(rules, seeds, step, score, params, history, before)
                before = [float(score[donor]) for donor in donors]
                for tensor in (*weights, *momenta):
                    tensor.data.copy_(tensor.data[donors])
    test_loss, accuracy = _evaluate(weights, test_x, test_y)
    by_seed = score.nan_to_num(nan=1e9, posinf=1e9).view(len(seeds), MEMBERS)
    best = by_seed.argmin(1) + torch.arange(len(seeds)) * MEMBERS
    rates = np.array([params[int(member)]["lr"] for member in best])
    return Study(score[best].numpy(), test_loss[best].numpy(), accuracy[best].numpy(), rates)


def _decide(rules, seeds, step, score, params, history, before):
    """Change `params` in place and return from whom every member copies."""
    donors = list(range(len(params)))
    for place, seed in enumerate(seeds):
        base = place * MEMBERS
        rule = rules(seed)
        member_scores = {
            number: MemberScore(float(score[base + number]), params[base + number]) for number in range(MEMBERS)
        }
        history[place] += [
            Interval(params[base + number], step, before[base + number], float(score[base + number]))
            for number in range(MEMBERS)
        ]
        forks = [rule.decide(member, step, member_scores, history[place]) for member in range(MEMBERS)]
        for member, fork in enumerate(forks):
            if fork is not None:
                donors[base + member] = base + fork.donor
                params[base + member] = dict(fork.params)
    return torch.tensor(donors)


def _forward(weights, x, dropout=None, generator=None):
    for layer in range(3):
        x = torch.baddbmm(weights[2 * layer + 1], x, weights[2 * layer])
        if layer < 2:
            x = functional.relu(x)
            if dropout is not None:
                keep = 1 - dropout.view(-1, 1, 1)
                x = x * (torch.rand(x.shape, generator=generator) < keep) / keep
    return x


def _loss(weights, x, y, dropout, generator):
    out = _forward(weights, x, dropout, generator)
    return functional.cross_entropy(out.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)


@torch.no_grad()
def _evaluate(weights, x, y):
    x, y = x.repeat_interleave(MEMBERS, 0), y.repeat_interleave(MEMBERS, 0)
    out = _forward(weights, x)
    loss = functional.cross_entropy(out.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)
    return loss, (out.argmax(-1) == y).float().mean(1)


def _first_weights(seeds):
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(MEMBERS):
            member = []
            for inputs, outputs in pairwise(SIZES):  # as in nn.Linear
                bound = inputs**-0.5
                member.append((torch.rand(inputs, outputs, generator=generator) * 2 - 1) * bound)
                member.append((torch.rand(1, outputs, generator=generator) * 2 - 1) * bound)
            drawn.append(member)
    return [torch.stack(column) for column in zip(*drawn, strict=True)]


def _data(seed):
    digits = load_digits()
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(digits.data))
    x = torch.tensor(digits.data[order] / 16, dtype=torch.float32)
    y = torch.tensor(digits.target[order])
    noisy = y[:500].clone()
    wrong = generator.permutation(500)[:100]
    noisy[wrong] = torch.tensor(generator.integers(10, size=100))
    return x[:500], noisy, x[500:1000], y[500:1000], x[1000:], y[1000:]
