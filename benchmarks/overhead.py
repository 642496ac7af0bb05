"""What the tuner costs: CPU per job over a bare ``Trainer.fit`` of the same work, per decision, and for the study.

python benchmarks/overhead.py [--only jobs|decisions|study|long]
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from optuna.samplers import RandomSampler

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
warnings.simplefilter("ignore")

from lightning_hpo import FullBudget, Hyperband, OptunaTuner, RandomTuner, Tuner  # noqa: E402
from lightning_hpo.quiet import warnings_only  # noqa: E402
from lightning_hpo.records import Row  # noqa: E402
from lightning_hpo.reporting.events import Event, JobEnded  # noqa: E402
from lightning_hpo.samplers.adapter import SamplerAdapter  # noqa: E402
from lightning_hpo.space import parse_space  # noqa: E402
from lightning_hpo.study.opening import open_study  # noqa: E402
from lightning_hpo.study.run_folder import RunFolder  # noqa: E402
from lightning_hpo.study.table import TrialTable  # noqa: E402
from lightning_hpo.tuners.parts import Parts  # noqa: E402
from tests.support.small import Data, Net  # noqa: E402

SPACE = {"lr": "loguniform(1e-3, 1)", "hidden": "logint(16, 17)", "dropout": "uniform(0, 0.5)"}


def bare(steps: int, *, checkpoints: bool) -> float:
    """CPU seconds of a plain fit to ``steps`` with a validation at the end: build, train, free the memory.

    With ``checkpoints``, Lightning's own ModelCheckpoint saves every 25 steps, as the tuner does.
    """
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [ModelCheckpoint(folder, every_n_train_steps=25, save_top_k=1)] if checkpoints else []
        trainer = pl.Trainer(
            callbacks=callbacks,
            accelerator="cpu",
            max_steps=steps,
            val_check_interval=steps,
            check_val_every_n_epoch=None,
            logger=False,
            enable_checkpointing=checkpoints,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(Net(), datamodule=Data())
    del trainer, callbacks
    gc.collect()
    return time.process_time() - started


class InTurn:
    """Runs two plain fits after each job of a search, one that saves nothing first, and notes CPU seconds of the three.

    The time of a job counts from the end of the plain fits before it, so it holds the decision, the study and the
    search's files too. The first job is left out.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._began: float | None = None
        self.seconds: list[tuple[float, float, float]] = []

    def on(self, event: Event) -> None:
        if isinstance(event, JobEnded):
            job = None if self._began is None else time.process_time() - self._began
            plain = [bare(self._steps, checkpoints=checkpoints) for checkpoints in (False, True)]
            if job is not None:
                self.seconds.append((plain[0], plain[1], job))
            gc.freeze()  # what the plain fits have loaded, as the tuner does with what was there before
            self._began = time.process_time()


def in_turn(steps: int, jobs: int) -> list[tuple[float, float, float]]:
    """CPU seconds of plain fits, plain fits that save, and jobs of a search."""
    turns = InTurn(steps)
    with tempfile.TemporaryDirectory() as root:
        Tuner(
            SPACE,
            FullBudget(steps, jobs + 1),
            sampler=RandomSampler(seed=0),
            monitor="val_loss",
            root=root,
            trainer={
                "accelerator": "cpu",
                "check_val_every_n_epoch": None,
                "val_check_interval": 10**9,
                "logger": False,
            },
            verbose=False,
            parts=Parts(observers=lambda _: [turns]),
        ).fit(Net, datamodule=Data)
    return turns.seconds


def per_job(jobs: int) -> None:
    print("CPU ms per job: bare fit; fit with ModelCheckpoint every 25 steps; tuner (medians);")
    print("and what the tuner adds to each: median of the differences in turn (quartiles), share of the fit")
    print(f"{'steps':>5} {'bare':>7} {'saving':>7} {'tuner':>7} {'added to bare':>30} {'added to saving':>30}")
    for steps in (10, 25, 50, 100, 300):
        columns = [[1e3 * seconds for seconds in column] for column in zip(*in_turn(steps, jobs), strict=True)]
        medians = [statistics.median(column) for column in columns]
        texts = []
        for plain, median in zip(columns[:2], medians[:2], strict=True):
            low, middle, high = statistics.quantiles(
                [ours - theirs for ours, theirs in zip(columns[2], plain, strict=True)], n=4
            )
            texts.append(f"{middle:.1f} ({low:.1f}, {high:.1f}), {middle / median:.0%}")
        print(
            f"{steps:>5} {medians[0]:>7.1f} {medians[1]:>7.1f} {medians[2]:>7.1f} {texts[0]:>30} {texts[1]:>30}",
            flush=True,
        )


def per_decision() -> None:
    space = parse_space(SPACE)
    print(f"\n{'scheduler':<12} {'decision':<22} {'n=100 us':>9} {'n=10000 us':>11} {'ratio':>6}")
    for name, scheduler in (("FullBudget", FullBudget(81, 10**6)), ("Hyperband", Hyperband(81, iterations=10**3))):
        scheduler.plan()
        for what in ("next", "next + random sampler"):
            cost = {}
            for count in (100, 10_000):
                rows = [
                    Row(n, {"lr": 0.1, "hidden": 16, "dropout": 0.1}, {1: float(n)}, state="pruned")
                    for n in range(count)
                ]
                adapter = SamplerAdapter(RandomSampler(), space, mode="min", seed=0)
                notes = [{}] * count
                adapter.ask(rows, notes, 1)
                times = []
                for _ in range(30):
                    started = time.process_time()
                    job = scheduler.next(rows)
                    if job.trial is None and what != "next":
                        adapter.ask(rows, notes, 1)
                    times.append(time.process_time() - started)
                cost[count] = 1e6 * min(times)
            print(
                f"{name:<12} {what:<22} {cost[100]:>9.0f} {cost[10_000]:>11.0f} {cost[10_000] / cost[100]:>6.1f}",
                flush=True,
            )


def of_study() -> None:
    """CPU of a trial's records (new, value, end), of opening the study, and of a whole run of a plain function."""
    print(f"\n{'store':<14} {'trials':>7} {'CPU ms per trial':>17} {'open, CPU s':>12}")
    for name, counts in (("study.journal", (1_000, 10_000)), ("SQLite", (300,))):
        for count in counts:
            with tempfile.TemporaryDirectory() as root:
                storage = None if name == "study.journal" else f"sqlite:///{root}/study.db"
                print(f"{name:<14} {count:>7} {'{:>17.2f} {:>12.2f}'.format(*records(Path(root), storage, count))}")
    print(f"\n{'plain function':<14} {'trials':>7} {'CPU s':>7} {'seconds':>8} {'CPU ms per trial':>17}")
    for tuner, count in ((RandomTuner, 100), (RandomTuner, 1_000), (OptunaTuner, 100)):
        with tempfile.TemporaryDirectory() as root:
            begun, started = time.monotonic(), time.process_time()
            tuner(SPACE, max_steps=1, n_trials=count, root=root, name="run", verbose=False).optimize(
                lambda job, params: params["dropout"]  # noqa: ARG005  # the signature of a user's function
            )
            cpu, seconds = time.process_time() - started, time.monotonic() - begun
        print(f"{tuner.__name__:<14} {count:>7} {cpu:>7.2f} {seconds:>8.2f} {1e3 * cpu / count:>17.2f}", flush=True)


class Ends:
    """Notes the CPU time of this thread at the end of each job; an observer."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on(self, event: Event) -> None:
        """Note it."""
        if isinstance(event, JobEnded):
            self.times.append(time.thread_time())


def of_long_study(trials: int = 10_000, window: int = 500) -> None:
    """CPU of each job of a plain function, its garbage collection included, as the study grows."""
    ends = Ends()
    parts = Parts(observers=lambda run: [ends])  # noqa: ARG005  # called so
    with tempfile.TemporaryDirectory() as root:
        Tuner(SPACE, FullBudget(1, trials), parts=parts, root=root, name="run", verbose=False).optimize(
            lambda job, params: params["dropout"]  # noqa: ARG005  # as above
        )
    print(f"\n{'trials':>7} {'CPU ms per job':>15}")
    for end in (1_000, 2_000, 5_000, trials):
        print(f"{end:>7} {1e3 * (ends.times[end - 1] - ends.times[end - 1 - window]) / window:>15.2f}")


def records(root: Path, storage: str | None, count: int) -> tuple[float, float]:
    """CPU ms to record a trial, and CPU seconds to open a study of so many trials."""
    folder, space = RunFolder(root, "run"), parse_space(SPACE)

    def opened() -> TrialTable:
        return TrialTable(*open_study(folder, storage, "min", {"trains": None, "space": {}}))

    table = opened()
    started = time.process_time()
    for number in range(count):
        table.add({"lr": 0.1, "hidden": 16, "dropout": number / count / 2}, space)
        table.record(number, 1, 0.5)
        table.complete(number, [0.5])
    recorded = time.process_time()
    assert len(opened().rows) == count
    return 1e3 * (recorded - started) / count, time.process_time() - recorded


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=40, help="jobs of each length, in turn with plain fits")
    parser.add_argument("--only", choices=["jobs", "decisions", "study", "long"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with warnings_only("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        if arguments.only in (None, "jobs"):
            per_job(arguments.jobs)
        if arguments.only in (None, "decisions"):
            per_decision()
        if arguments.only in (None, "study"):
            of_study()
        if arguments.only in (None, "long"):
            of_long_study()
