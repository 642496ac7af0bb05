"""Assertions of the contract classes are rewritten by pytest, so that a failure shows its values."""

import pytest

pytest.register_assert_rewrite("lightning_hpo.testing")
