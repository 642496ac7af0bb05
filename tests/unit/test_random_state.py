"""The global random numbers, as a checkpoint holds them."""

import torch

from lightning_hpo.training.random_state import rng_state, set_rng_state


def test_the_state_of_an_older_checkpoint_is_put_back():
    state = rng_state()
    numbers = torch.rand(4)
    del state["devices"]
    set_rng_state({**state, "cuda": []})
    torch.testing.assert_close(torch.rand(4), numbers, rtol=0, atol=0)


def test_the_state_of_a_gpu_that_this_machine_lacks_is_ignored():
    state = rng_state()
    numbers = torch.rand(4)
    state["devices"] = {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 64, "mps": [torch.zeros(44, dtype=torch.uint8)]}
    set_rng_state(state)
    torch.testing.assert_close(torch.rand(4), numbers, rtol=0, atol=0)
