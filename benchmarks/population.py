"""Numbers of population-based training: quality, cost, copies, and Ray Tune on the same work.

    python benchmarks/population.py toy digits cost copy      # about 15 minutes on one core
    python benchmarks/population.py ray                       # needs ray[tune]

Each study prints a Markdown table. Processes are compared by CPU seconds, in pairs inside one run.
"""

import argparse
import contextlib
import logging
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning.pytorch as pl
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import population_digits
from lightning_hpo.schedulers.population import MemberScore, Rules
from lightning_hpo.space import from_unit, parse_space
from lightning_hpo.study.lineage import lineage
from lightning_hpo.training.state_transfer import capture, transplant
from lightning_hpo.tuners.population import PopulationTuner

torch.set_num_threads(1)
warnings.filterwarnings("ignore")
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class _Net(pl.LightningModule):
    """A perceptron of about 1 ms per step."""

    def __init__(self, lr=0.05, weight_decay=1e-4, dropout=0.1):
        super().__init__()
        self.save_hyperparameters()
        drop = nn.Dropout(dropout)
        self.net = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), drop, nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(
            self.parameters(), lr=self.hparams.lr, momentum=0.9, weight_decay=self.hparams.weight_decay
        )


class _Data(pl.LightningDataModule):
    """Digits, 22 batches of 64."""

    def __init__(self):
        super().__init__()
        images, labels = load_digits(return_X_y=True)
        self.data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))

    def train_dataloader(self):
        return DataLoader(torch.utils.data.Subset(self.data, range(1400)), batch_size=64, shuffle=True)

    def val_dataloader(self):
        return DataLoader(torch.utils.data.Subset(self.data, range(1400, 1797)), batch_size=397)


SPACE = {"lr": "loguniform(1e-3, 1)", "weight_decay": "loguniform(1e-5, 1e-1)", "dropout": "uniform(0.05, 0.7)"}


def toy():
    """Figure 2 of Jaderberg et al. 2017, 100 seeds, 200 steps, two members."""
    space = parse_space({"h0": "uniform(0, 1)", "h1": "uniform(0, 1)"})
    print("| arm | ready 4 | ready 10 | ready 20 |\n|---|---|---|---|")
    arms = {
        "grid search": None,
        "default rules": {},
        "perturb only (resample 0)": {"resample": 0.0},
        "exploit only": {"explore": lambda params, *_: params},
    }
    for name, options in arms.items():
        means = []
        for ready in (4, 10, 20):
            found = []
            for seed in range(100):
                rules = None if options is None else Rules(space, mode="max", seed=seed, **options)
                found.append(toy_run(rules, ready))
            means.append(f"{np.mean(found):.3f}")
        print(f"| {name} | {' | '.join(means)} |")


def toy_run(rules, ready):
    theta = np.full((2, 2), 0.9)
    params = [{"h0": 1.0, "h1": 0.0}, {"h0": 0.0, "h1": 1.0}]
    for step in range(1, 201):
        h = np.array([[values["h0"], values["h1"]] for values in params])
        theta = theta - 0.02 * h * theta
        if rules is not None and step % ready == 0:
            table = {m: MemberScore(1.2 - float((theta[m] ** 2).sum()), params[m]) for m in range(2)}
            forks = [rules.decide(m, step, table) for m in range(2)]
            theta = np.array([theta[m if fork is None else fork.donor] for m, fork in enumerate(forks)])
            params = [params[m] if fork is None else dict(fork.params) for m, fork in enumerate(forks)]
    return max(1.2 - float((theta[m] ** 2).sum()) for m in range(2))


def digits():
    """Noisy digits, 16 seeds, the same number of steps in every arm."""

    def ray(params, space, generator):
        changed = {}
        for name, distribution in space.items():
            if generator.random() < 0.25:
                changed[name] = from_unit(distribution, generator.random())
            else:
                changed[name] = params[name] * (1.2 if generator.random() < 0.5 else 0.8)
        return changed

    def rules(**options):
        return lambda seed: Rules(population_digits.SPACE, seed=seed, **options)

    arms = {
        "hand-picked constant, best of 10": {"rules": None, "constant": population_digits.HAND_PICKED},
        "random search": {"rules": None},
        "PBT, default": {"rules": rules()},
        "PBT, resample .25 else x.8/1.2, 20 %": {"rules": rules(explore=ray, quantile=0.2)},
        "PBT, paper: x1.2 or /1.2, 20 %": {"rules": rules(resample=0.0, quantile=0.2)},
        "PBT, original sketch: best donor, everyone p .25": {"rules": rules(explore="all", donor="best", quantile=0.2)},
        "PB2, 40 %": {"rules": rules(explore="pb2")},
        "exploit only, 20 %": {"rules": rules(explore=lambda params, *_: params, quantile=0.2)},
    }
    print("| arm | val loss | test loss (mean +- se) | of random search | test acc | geometric mean of last lr |")
    print("|---|---|---|---|---|---|")
    results = {name: population_digits.run(range(16), **options) for name, options in arms.items()}
    random = results["random search"].test_loss.mean()
    for name, found in results.items():
        error = found.test_loss.std(ddof=1) / 4
        lr = np.exp(np.log(found.last_lr).mean())
        print(
            f"| {name} | {found.val_loss.mean():.4f} | {found.test_loss.mean():.4f} +- {error:.4f} | "
            f"{found.test_loss.mean() / random:.3f} | {found.test_accuracy.mean():.3f} | {lr:.4f} |",
            flush=True,
        )
    default = results["PBT, default"].test_loss
    for name in ("random search", "PBT, resample .25 else x.8/1.2, 20 %"):
        gap = default - results[name].test_loss
        print(f"\npaired, default minus {name}: {gap.mean():.4f} +- {gap.std(ddof=1) / 4:.4f}")


def cost():
    """PopulationTuner against the same Trainers one after another; CPU seconds and peak memory of one process each."""
    print("| members x steps | loop CPU s | population CPU s | ratio, median (each pair) | loop MB | more MB |")
    print("|---|---|---|---|---|---|")
    for members in (4, 8):
        pairs = []
        for seed in range(4):
            pair = [measured(work, members, seed) for work in ((loop, population) if seed % 2 else (population, loop))]
            pairs.append(pair if seed % 2 else pair[::-1])
        (loop_cpu, loop_mb), (our_cpu, our_mb) = (
            [statistics.median(column) for column in zip(*(pair[which] for pair in pairs), strict=True)]
            for which in (0, 1)
        )
        ratios = [ours[0] / plain[0] for plain, ours in pairs]
        print(
            f"| {members} x 1000 | {loop_cpu:.2f} | {our_cpu:.2f} | {statistics.median(ratios):.3f} "
            f"({' '.join(f'{ratio:.2f}' for ratio in ratios)}) | {loop_mb:.0f} | {our_mb - loop_mb:+.0f} |",
            flush=True,
        )


def loop(members, seed):
    for member in range(members):
        torch.manual_seed(1000 * seed + member)
        trainer = pl.Trainer(**QUIET, max_steps=1000, check_val_every_n_epoch=None, val_check_interval=100)
        trainer.fit(_Net(), datamodule=_Data())


def population(members, seed):
    with tempfile.TemporaryDirectory() as root:
        tuner = PopulationTuner(
            SPACE,
            population_size=members,
            interval=100,
            max_steps=1000,
            monitor="val_loss",
            seed=seed,
            root=root,
            trainer={"accelerator": "cpu", "logger": False},
            verbose=False,
        )
        result = tuner.fit(_Net, datamodule=_Data)
        assert len(lineage(result)) > members


def measured(work, *arguments):
    """CPU seconds of the work and peak MB of a forked process that does it after a warm-up."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        logging.disable(logging.WARNING)
        pl.Trainer(**QUIET, max_steps=20).fit(_Net(), datamodule=_Data())
        before = time.process_time()
        work(*arguments)
        spent = time.process_time() - before
        os.write(write, f"{spent} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return tuple(map(float, text.split()))


def copy():
    """An in-process copy against load_state_dict of the same weights, best of 15."""
    print("| weights | optimizer | load_state_dict ms | copy ms | MB copied | copy / load_state_dict per MB |")
    print("|---|---|---|---|---|---|")
    for megabytes in (1, 100):
        for kind in (torch.optim.SGD, torch.optim.AdamW):
            ends = [big(megabytes, kind) for _ in range(2)]
            (donor, source), (own, target) = ends
            load = best(lambda source=source, target=target: target.load_state_dict(source.state_dict()))
            both = best(lambda d=donor, s=source, o=own, t=target: transplant(capture(d, s), o, t))
            factor = 1 if kind is torch.optim.SGD else 3
            print(
                f"| {megabytes} MB | {kind.__name__} | {load:.2f} | {both:.2f} | {megabytes * factor} | "
                f"{both / load / factor:.2f} |",
                flush=True,
            )


def big(megabytes, kind):
    class Big(pl.LightningModule):
        def __init__(self):
            super().__init__()
            width = 256 if megabytes == 1 else 1024
            self.layers = nn.ModuleList(
                nn.Linear(width, width, bias=False) for _ in range(round(megabytes * 2**20 / 4 / width**2))
            )

        def training_step(self, batch, batch_idx):
            return sum(layer.weight.mean() for layer in self.layers)

        def configure_optimizers(self):
            return kind(self.parameters(), lr=0.1)

    module = Big()
    trainer = pl.Trainer(**QUIET, max_steps=2)
    trainer.fit(module, DataLoader(torch.zeros(4, 1)))
    return trainer, module


def best(work, repeats=15):
    times = []
    for _ in range(repeats):
        before = time.process_time()
        work()
        times.append(time.process_time() - before)
    return 1000 * min(times)


def ray():
    """Ray Tune's PBT, 4 members x 400 steps, interval 100, two slots, actors reused; CPU of all its processes."""
    import psutil
    import ray as ray_package
    from ray import tune
    from ray.tune.schedulers import PopulationBasedTraining

    steps, members = 400, 4
    mine = psutil.Process()

    def family():
        seconds, memory = {}, 0
        for process in [mine, *mine.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                seconds[process.pid] = times.user + times.system
                memory += process.memory_full_info().pss / 2**20
        return seconds, memory

    def train(config):
        from ray.tune.integration.pytorch_lightning import TuneReportCheckpointCallback

        torch.set_num_threads(1)

        class Apply(pl.Callback):
            def on_train_start(self, trainer, pl_module):
                trainer.optimizers[0].param_groups[0].update(lr=config["lr"], weight_decay=config["weight_decay"])

        report = TuneReportCheckpointCallback({"val_loss": "val_loss"}, on="validation_end")
        trainer = pl.Trainer(
            **QUIET,
            max_steps=steps,
            check_val_every_n_epoch=None,
            val_check_interval=100,
            callbacks=[Apply(), report],
        )
        checkpoint = tune.get_checkpoint()
        with checkpoint.as_directory() if checkpoint else contextlib.nullcontext() as folder:
            path = f"{folder}/checkpoint" if folder else None
            trainer.fit(_Net(**config), datamodule=_Data(), ckpt_path=path)

    before = sum(family()[0].values())
    plain = time.process_time()
    loop_steps(members, steps)
    plain = time.process_time() - plain
    seen, peak, running = {}, 0.0, True

    import threading

    def watch():
        nonlocal peak
        while running:
            seconds, memory = family()
            seen.update(seconds)
            peak = max(peak, memory)
            time.sleep(0.5)

    started = time.time()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    ray_package.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=1,
        hyperparam_mutations={
            "lr": tune.loguniform(1e-3, 1),
            "weight_decay": tune.loguniform(1e-5, 1e-1),
            "dropout": tune.uniform(0.05, 0.7),
        },
    )
    with tempfile.TemporaryDirectory() as storage:
        tuner = tune.Tuner(
            tune.with_resources(train, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                metric="val_loss", mode="min", scheduler=scheduler, num_samples=members, reuse_actors=True
            ),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        )
        results = tuner.fit()
    running = False
    watcher.join()
    total = sum(seen.values()) - before - plain
    print("| work | CPU s | of the loop | peak PSS MB | wall s | errors |\n|---|---|---|---|---|---|")
    print(f"| plain loop, {members} x {steps} | {plain:.1f} | 1 | | | |")
    print(
        f"| Ray Tune {ray_package.__version__} PBT, two slots | {total:.1f} | {total / plain:.1f} | {peak:.0f} | "
        f"{time.time() - started:.0f} | {len(results.errors)} |"
    )
    ray_package.shutdown()


def loop_steps(members, steps):
    for _ in range(members):
        trainer = pl.Trainer(**QUIET, max_steps=steps, check_val_every_n_epoch=None, val_check_interval=100)
        trainer.fit(_Net(), datamodule=_Data())


STUDIES = {study.__name__: study for study in (toy, digits, cost, copy, ray)}

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=STUDIES)
    for name in parser.parse_args().studies:
        print(f"\n### {name}\n\n{STUDIES[name].__doc__.strip()}\n", flush=True)
        STUDIES[name]()
