"""Record learning curves of random configurations of the modules of ``hyperband_real.py``, as tables for ``curves.py``.

    python benchmarks/record_curves.py --modules mnist1d characters --configurations 500

A curve is the validation loss after every sixth of 162 optimizer steps; a loss that diverges counts as 50. The format is
that of ``data/README.md``.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hyperband_real import MODULES, Real
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn

from lightning_hpo.space import from_unit, parse_space

STEPS, EVERY, DIVERGED = 162, 6, 50.0


def curve(of: Real, params: dict[str, Any], seed: int) -> list[float]:
    """Train a configuration, and return its validation losses."""
    torch.manual_seed(seed)
    (inputs, labels), val = of.data()[0].tensors, of.data()[1].tensors
    model = of.model(**{name: value for name, value in params.items() if name != "data.batch_size"})
    optimizer, losses = model.configure_optimizers(), []
    order, place = torch.randperm(len(labels)), 0
    for step in range(1, STEPS + 1):
        if place >= len(labels):
            order, place = torch.randperm(len(labels)), 0
        batch = order[place : place + params["data.batch_size"]]
        place += params["data.batch_size"]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.net(inputs[batch]), labels[batch]).backward()
        optimizer.step()
        if step % EVERY == 0:
            model.eval()
            with torch.no_grad():
                loss = float(nn.functional.cross_entropy(model.net(val[0]), val[1]))
            model.train()
            losses.append(min(DIVERGED, loss))  # NaN too
    return losses


def record(name: str, configurations: int) -> None:
    """Write the table of a module."""
    of = MODULES[name]
    space, rng = parse_space(of.space), np.random.default_rng(11)
    configs, curves, began = [], [], time.process_time()
    for number in range(configurations):
        configs.append(space.draw(lambda key: from_unit(space[key], rng.random())))
        curves.append(curve(of, configs[-1], number))
    columns = []
    for key, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            columns.append([key, "cat", list(distribution.choices), None, False])
        else:
            assert isinstance(distribution, IntDistribution | FloatDistribution)
            kind = "int" if isinstance(distribution, IntDistribution) else "float"
            columns.append([key, kind, distribution.low, distribution.high, distribution.log])
    np.savez_compressed(
        Path(__file__).parent / "data" / f"{name}.npz",
        val_ce=np.array(curves, dtype=np.float32),
        configs=json.dumps(configs),
        space=json.dumps(columns),
    )
    print(f"{name}: {configurations} curves, {time.process_time() - began:.0f} s of CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", default=["mnist1d", "characters"], choices=list(MODULES))
    parser.add_argument("--configurations", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.modules:
        record(name, arguments.configurations)


if __name__ == "__main__":
    main()
