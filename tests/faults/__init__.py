"""Real processes, real signals, real damage. ``python -m tests.faults --kills 200`` is the long run."""
