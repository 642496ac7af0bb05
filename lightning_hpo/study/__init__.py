"""The durable record of a run: its folder, its study, its trials, and who may write to them."""
