"""Search spaces: what a person types, parsed once; conditions; values of any type; the unit interval.

A space maps a *dotted name* to what the value may be. The name says where the value goes: ``model.lr`` and its short
form ``lr`` are arguments of the model, ``data.batch_size`` of the data module, ``trainer.accumulate_grad_batches`` of
the Trainer; ``model.cfg.opt.lr`` is a value inside an argument. What stands behind a name is described in
:mod:`lightning_hpo.space.grammar`.
"""

from lightning_hpo.space.grammar import GRAMMAR, format_distribution, when
from lightning_hpo.space.names import nested_config, part, replaced, split_name
from lightning_hpo.space.search_space import Define, SearchSpace, Space, parse_space, suggest
from lightning_hpo.space.unit import from_unit, joined, to_unit
from lightning_hpo.space.values import choice

__all__ = [
    "GRAMMAR",
    "Define",
    "SearchSpace",
    "Space",
    "choice",
    "format_distribution",
    "from_unit",
    "joined",
    "nested_config",
    "parse_space",
    "part",
    "replaced",
    "split_name",
    "suggest",
    "to_unit",
    "when",
]
