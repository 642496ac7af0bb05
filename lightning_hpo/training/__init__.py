"""One job as ``Trainer.fit``: build, restore, train to a step, validate there, save."""
