"""One job as ``Trainer.fit``: what is built, how its hyperparameters take effect, what is copied."""
