import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_hpo.space import format_distribution, from_unit, parse_space, split_name, to_unit

DISTRIBUTIONS = st.one_of(
    st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e6)).map(lambda t: FloatDistribution(t[0], t[0] + t[1])),
    st.tuples(st.floats(1e-9, 1e3), st.floats(1, 1e6)).map(lambda t: FloatDistribution(t[0], t[0] * t[1], log=True)),
    st.tuples(st.integers(-1000, 1000), st.integers(0, 1000)).map(lambda t: IntDistribution(t[0], t[0] + t[1])),
    st.tuples(st.integers(1, 1000), st.integers(0, 1000)).map(lambda t: IntDistribution(t[0], t[0] + t[1], log=True)),
    st.tuples(st.integers(-50, 50), st.integers(0, 9), st.integers(1, 7)).map(
        lambda t: IntDistribution(t[0], t[0] + t[1] * t[2], step=t[2])
    ),
    st.integers(1, 8).map(lambda n: FloatDistribution(0, n * 0.25, step=0.25)),
    st.lists(st.one_of(st.integers(), st.text(), st.none()), min_size=1, max_size=6, unique=True).map(
        CategoricalDistribution
    ),
)


class TestGrammar:
    @pytest.mark.parametrize(
        ("text", "distribution"),
        [
            ("uniform(0, 0.5)", FloatDistribution(0, 0.5)),
            ("uniform(low=-1, high=1, step=0.5)", FloatDistribution(-1, 1, step=0.5)),
            ("loguniform(1e-5, 1e-1)", FloatDistribution(1e-5, 1e-1, log=True)),
            ("int(1, 8)", IntDistribution(1, 8)),
            ("int(16, 128, step=16)", IntDistribution(16, 128, step=16)),
            (" logint(16, 512) ", IntDistribution(16, 512, log=True)),
            ("choice(16, 32, 64)", CategoricalDistribution([16, 32, 64])),
            (
                "choice(relu, 'gelu', None, True, 1.5, -2)",
                CategoricalDistribution(["relu", "gelu", None, True, 1.5, -2]),
            ),
        ],
    )
    def test_text_becomes_a_distribution(self, text, distribution):
        assert parse_space({"x": text}) == {"x": distribution}
        assert parse_space({"x": format_distribution(distribution)}) == {"x": distribution}

    def test_distributions_pass_and_order_is_kept(self):
        space = {"b": FloatDistribution(0, 1), "data.a": "int(1, 2)", "trainer.c": "choice(1, 2)"}
        assert list(parse_space(space)) == list(space)
        assert parse_space(space)["b"] is space["b"]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("loguniforn(1e-5, 1)", ["'loguniforn'", "Did you mean 'loguniform'", "choice(a, b, ...)"]),
            ("loguniform(0, 1)", ["low > 0", "got 0"]),
            ("uniform(1, 0)", ["low 1 is above high 0"]),
            ("uniform(-1e308, 1e308)", ["high - low must be finite"]),
            ("uniform(0)", ["(low, high, step=...)"]),
            ("uniform(0, 1, 0.1)", ["uniform takes"]),
            ("uniform(0, 1, low=2)", ["uniform takes"]),
            ("logint(1, 8, step=2)", ["logint takes (low, high)"]),
            ("int(1, 8.5)", ["high must be an integer", "8.5"]),
            ("int(1, True)", ["high must be an integer"]),
            ("uniform(0, 1e999)", ["finite"]),
            ("uniform(0, 1, step=0)", ["step must be above 0"]),
            ("uniform(0, __import__('os').getpid())", ["not a plain number"]),
            ("choice()", ["one or more"]),
            ("choice(1, 1)", ["twice"]),
            ("choice({1}, {2})", ["{1}"]),
            ("0.1", ["is not uniform(low, high)"]),
            ("uniform(0, 1", ["is not uniform(low, high)"]),
        ],
    )
    def test_errors_name_key_value_and_grammar(self, text, words):
        with pytest.raises(ValueError) as caught:
            parse_space({"optimizer.lr": text})
        message = str(caught.value)
        assert "space['optimizer.lr']" in message
        assert repr(text) in message
        assert all(word in message for word in words)

    def test_wrong_spaces(self):
        with pytest.raises(ValueError, match="empty"):
            parse_space({})
        with pytest.raises(ValueError, match=r"'model.lr' twice: as 'lr' and as 'model.lr'"):
            parse_space({"lr": "uniform(0, 1)", "model.lr": "uniform(0, 1)"})
        with pytest.raises(TypeError, match=r"space\['lr'\] = \(0.1, 0.2\)"):
            parse_space({"lr": (0.1, 0.2)})
        with pytest.raises(TypeError, match="must map names"):
            parse_space(["lr"])
        for name in ("", "a..b", ".a", "a.", " a"):
            with pytest.raises(ValueError, match="words joined by dots"):
                split_name(name)


class TestUnitInterval:
    @given(DISTRIBUTIONS, st.floats(0, 1))
    @example(FloatDistribution(9.0, 9.000000000000002, log=True), 0.0)  # with equal logarithms
    def test_every_point_is_a_value_and_maps_back_to_itself(self, distribution, unit):
        value = from_unit(distribution, unit)
        assert distribution._contains(distribution.to_internal_repr(value))
        again = from_unit(distribution, to_unit(distribution, value))
        if isinstance(distribution, FloatDistribution) and distribution.step is None:
            span = max(abs(distribution.low), abs(distribution.high), 1e-300)
            assert again == pytest.approx(value, rel=1e-6, abs=1e-9 * span)
        else:
            assert again == value

    @given(DISTRIBUTIONS)
    def test_ends(self, distribution):
        for unit in (-0.5, 0.0, 1.0, 1.5):
            value = from_unit(distribution, unit)
            assert distribution._contains(distribution.to_internal_repr(value))

    def test_each_integer_and_choice_has_its_share(self):
        counts = dict.fromkeys(range(1, 5), 0)
        for index in range(1000):
            counts[from_unit(IntDistribution(1, 4), (index + 0.5) / 1000)] += 1
        assert set(counts.values()) == {250}

    def test_logarithmic(self):
        assert math.isclose(from_unit(FloatDistribution(1e-4, 1e-2, log=True), 0.5), 1e-3)
