"""CPU time of one schedule step against torch's CosineAnnealingLR, and of a schedule inside ``Trainer.fit``.

    python benchmarks/lr_schedules.py

Rounds of all candidates are interleaved in one process and the minimum is kept, so that the ratios survive a busy
machine; absolute times do not.
"""

import logging
import time
import warnings

import lightning.pytorch as L
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo.callbacks import LRSchedule
from lightning_hpo.lr_schedules import LR_SCHEDULES, CosineLR, make_lr_schedule

torch.set_num_threads(1)
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

TARGETS = {1: 0.6, 10: 0.4, 100: 0.4, 1000: 0.4}
FIT_TARGET_US = 60


def optimizer(groups):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(groups)], lr=0.1)


def seconds_per_step(scheduler, steps):
    start = time.process_time()
    for _ in range(steps):
        scheduler.step()
    return (time.process_time() - start) / steps


def against_torch(groups, rounds=9):
    steps = max(50, 20_000 // groups)
    horizon = 2 * rounds * steps
    candidates: dict[str, LRScheduler] = {"torch CosineAnnealingLR": CosineAnnealingLR(optimizer(groups), horizon)}
    for name in LR_SCHEDULES:
        decay = {"decay": 1.0} if name == "warmup_stable_decay" else {}  # no cheap phase: all of it is decay
        candidates[name] = make_lr_schedule(name, optimizer(groups), max_steps=horizon, warmup=0, **decay)
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(rounds):
        for name, scheduler in candidates.items():
            best[name] = min(best[name], seconds_per_step(scheduler, steps))
    return best


class Small(L.LightningModule):
    """One linear layer: all that is measured is the loop around it."""

    def __init__(self, schedule):
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
        self.schedule = schedule

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).mean()

    def configure_optimizers(self):
        sgd = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.schedule is None:
            return sgd
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": self.schedule(sgd), "interval": "step"}}


def fit_seconds_per_step(schedule, callbacks, steps):
    trainer = L.Trainer(
        max_steps=steps,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(TensorDataset(torch.randn(1000, 8)))
    start = time.process_time()
    trainer.fit(Small(schedule), data)
    return (time.process_time() - start) / steps


def in_fit(steps=2000, rounds=5):
    candidates = {
        "no schedule": lambda: (None, []),
        "torch CosineAnnealingLR": lambda: (lambda sgd: CosineAnnealingLR(sgd, steps), []),
        "CosineLR + LRSchedule()": lambda: (CosineLR, [LRSchedule()]),
        'LRSchedule("cosine")': lambda: (None, [LRSchedule("cosine")]),
    }
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(rounds):
        for name, make in candidates.items():
            best[name] = min(best[name], fit_seconds_per_step(*make(), steps))
    return best


def main():
    print("CPU us per scheduler.step(), minimum of 9 interleaved rounds; ratio to torch CosineAnnealingLR")
    print(f"{'groups':>24}" + "".join(f"{groups:>18}" for groups in TARGETS))
    table = {groups: against_torch(groups) for groups in TARGETS}
    for name in table[1]:
        cells = [
            f"{best[name] * 1e6:9.2f} ({best[name] / best['torch CosineAnnealingLR']:.2f})" for best in table.values()
        ]
        print(f"{name:>24}" + "".join(f"{cell:>18}" for cell in cells))
    print(f"{'allowed for cosine':>24}" + "".join(f"{f'({limit:.2f})':>18}" for limit in TARGETS.values()))
    print("\nCPU us per step of Trainer.fit (Linear(8, 1), 2000 steps), minimum of 5 interleaved fits")
    best = in_fit()
    for name, seconds in best.items():
        print(f"{name:>24} {seconds * 1e6:9.1f} {(seconds - best['no schedule']) * 1e6:+7.1f}")
    print(f"{'allowed':>24} {'':9} {FIT_TARGET_US:+7.1f}")


if __name__ == "__main__":
    main()
