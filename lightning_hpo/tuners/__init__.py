"""Tuners: a scheduler and a sampler over a LightningModule or a function, in one loop."""
