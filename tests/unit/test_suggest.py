import math
import statistics
import time

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from lightning_hpo.records import Row
from lightning_hpo.samplers.adapter import SamplerAdapter, model_rung
from lightning_hpo.schedulers import AsyncHyperband

SPACE = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(1e-4, 1.0, log=True)}


class Witness(BaseSampler):
    """Keeps what it is shown."""

    seen: list | None = None

    def infer_relative_search_space(self, study, trial):
        type(self).seen = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        return 0.5


class PartialWitness(Witness):
    learns_from_partial_runs = True


def shown(witness, rows):
    adapter = SamplerAdapter(witness(), SPACE, mode="min", seed=0)
    adapter.ask(rows, [{}] * len(rows), 1)
    return witness.seen


def row(number, values, **kind):
    return Row(number, {"x": number / 100, "y": 0.1}, values, **kind)


class TestModelRung:
    def test_the_highest_rung_with_enough_values(self):
        rows = [Row(n, values={1: 0.0} | ({3: 0.0} if n < 10 else {}) | ({9: 0.0} if n < 3 else {})) for n in range(30)]
        assert [model_rung(rows, least) for least in (3, 4, 10, 11, 30)] == [9, 3, 3, 1, 1]

    def test_too_few_everywhere(self):
        assert model_rung([], 3) is None
        assert model_rung([Row(0)], 3) is None
        assert model_rung([Row(0, values={1: 0.0, 3: 0.0}), Row(1, values={1: 0.0})], 3) == 1

    def test_full_budget_is_one_rung(self):
        assert model_rung([Row(n, values={9: 0.0}) for n in range(2)], 10) == 9


class TestWhatASamplerSees:
    ROWS = (
        *(row(n, {1: 1.0 + n}) for n in range(10)),
        row(10, {1: 0.5, 3: 0.25}),
        row(11, {1: 0.5, 3: 0.2}, target=9),
        row(12, {}, target=1),
        row(13, {}, state="failed"),
        row(14, {1: 0.1}, state="pruned"),
    )

    def test_values_of_one_rung(self):
        trials = shown(Witness, self.ROWS)
        assert [trial.value for trial in trials] == [*(1.0 + n for n in range(10)), 0.5, 0.5, None, None, 0.1]
        assert [trial.state for trial in trials[12:]] == [TrialState.RUNNING, TrialState.FAIL, TrialState.COMPLETE]

    def test_trials_below_the_rung_are_left_out(self):
        rows = [row(n, {1: 0.0, 3: 1.0}) for n in range(10)] + [row(10, {1: -5.0}), row(11, {1: -5.0}, target=3)]
        trials = shown(Witness, rows)
        assert [trial.value for trial in trials] == [1.0] * 10 + [None] * 2
        assert [trial.state for trial in trials[10:]] == [TrialState.FAIL, TrialState.RUNNING]

    def test_a_sampler_that_models_steps_sees_all(self):
        trials = shown(PartialWitness, self.ROWS)
        assert [trial.state for trial in trials[10:]] == [
            TrialState.PRUNED, TrialState.RUNNING, TrialState.RUNNING, TrialState.FAIL, TrialState.PRUNED
        ]  # fmt: skip
        assert trials[10].intermediate_values == {1: 0.5, 3: 0.25}

    def test_the_view_follows_when_the_rung_changes(self):
        adapter = SamplerAdapter(Witness(), SPACE, mode="min", seed=0)
        low = [row(n, {1: float(n)}) for n in range(12)]
        adapter.ask(low, [{}] * 12, 1)
        assert [trial.value for trial in Witness.seen] == [float(n) for n in range(12)]
        high = [row(n, {1: float(n), 3: 100.0 + n}) if n < 10 else low[n] for n in range(12)]
        adapter.ask(high, [{}] * 12, 1)
        assert [trial.value for trial in Witness.seen] == [100.0 + n for n in range(10)] + [None] * 2
        fresh = SamplerAdapter(Witness(), SPACE, mode="min", seed=0)
        kept = Witness.seen
        fresh.ask(high, [{}] * 12, 1)
        assert kept == Witness.seen


def play(sampler, trials, *, seed=0, workers=1, **options):
    """A search on a bowl at (0.3, 0.01), higher in short runs; returns rows, and CPU seconds of each suggestion."""
    scheduler = AsyncHyperband(27, iterations=None)
    adapter = SamplerAdapter(sampler, SPACE, mode="min", seed=seed, **options)
    rows, notes, seconds = [], [], []
    working = []
    while len(rows) < trials:
        while len(working) < workers:
            job = scheduler.next(rows)
            if job.trial is None:
                began = time.process_time()
                params, note = adapter.ask(rows, notes, job.max_steps)
                seconds.append(time.process_time() - began)
                rows.append(Row(len(rows), params))
                notes.append(note)
            number = len(rows) - 1 if job.trial is None else job.trial
            rows[number] = Row(number, rows[number].params, rows[number].values, target=job.max_steps)
            working.append(number)
        number = working.pop(0)
        done = rows[number]
        value = (done.params["x"] - 0.3) ** 2 + (math.log10(done.params["y"]) + 2) ** 2 + 1 / done.target
        state = "complete" if done.target == 27 else "running"
        rows[number] = Row(number, done.params, {**done.values, done.target: value}, state=state)
    return rows, seconds


SAMPLERS = [TPESampler, GPSampler, RandomSampler]


class TestAnySampler:
    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_a_model_asks_near_the_best_of_the_rung(self, sampler):
        rows, _ = play(RandomSampler(), 150)
        step = model_rung(rows, 50)
        rows = [Row(row.number, row.params, {step: row.values[step]}) for row in rows if step in row.values]
        rows = [Row(number, one.params, one.values) for number, one in enumerate(rows)]
        asked = [
            SamplerAdapter(sampler(), SPACE, mode="min", seed=seed).ask(rows, [{}] * len(rows), 1)[0]
            for seed in range(30)
        ]
        near = sum(abs(params["x"] - 0.3) < 0.2 and abs(math.log10(params["y"]) + 2) < 0.8 for params in asked)
        assert near < 12 if sampler is RandomSampler else near > 15

    @pytest.mark.parametrize("sampler", [lambda: TPESampler(constant_liar=True), GPSampler, RandomSampler])
    def test_parallel_questions_give_distinct_points(self, sampler):
        rows, notes = list(play(sampler(), 30)[0]), [{}] * 30
        adapter = SamplerAdapter(sampler(), SPACE, mode="min", seed=0)
        for _ in range(8):
            params, note = adapter.ask(rows, notes, 1)
            rows.append(Row(len(rows), params, target=1))
            notes.append(note)
        assert len({tuple(row.params.values()) for row in rows[30:]}) == 8

    def test_a_share_is_random_by_the_steps_at_which_a_trial_is_judged_first(self):
        def drawn(share, trials=400):
            rows, _ = play(Witness(), trials, random_share=lambda steps: share if steps == 1 else 0.0)
            short = [row.params["x"] != 0.5 for row in rows if 1 in row.values]
            long = [row.params["x"] != 0.5 for row in rows if 1 not in row.values and row.values]
            assert long
            assert not any(long)
            return sum(short) / len(short)

        assert 0.4 < drawn(0.5) < 0.6
        assert drawn(0.0, 60) == 0
        assert drawn(1.0, 60) == 1

    def test_a_suggestion_depends_on_rows_and_seed_only(self):
        rows, _ = play(TPESampler(), 40, random_share=third)
        for seed in (0, 1):
            one, other = (
                SamplerAdapter(TPESampler(), SPACE, mode="min", seed=seed, random_share=third).ask(rows, [{}] * 40, 1)
                for _ in range(2)
            )
            assert one == other


def third(steps):
    return 1 / 3


def test_a_suggestion_costs_less_than_a_view_of_500_trials():
    """In CPU time: the view is brought up to date from one suggestion to the next, and not made anew."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows, seconds = play(RandomSampler(), 500, workers=4)
    began = time.process_time()
    for _ in range(5):
        SamplerAdapter(RandomSampler(), SPACE, mode="min", seed=0).ask(rows, [{}] * 500, 1)
    assert statistics.median(seconds[450:]) < (time.process_time() - began) / 5 / 3
