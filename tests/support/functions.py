"""Functions that tests search over in worker processes: nothing is imported here, so that a worker starts at once."""

import os
import signal
import sys
import time


def loss(job, params):
    return (params["x"] - 0.3) ** 2 + 1 / job.max_steps


def where(job, params):
    time.sleep(0.05)
    return float(os.getpid())


def torch_is_loaded(job, params):
    return float("torch" in sys.modules or "lightning" in sys.modules)


def accident(job, params):
    match job.trial:
        case 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case 2:
            sys.exit(3)
        case 3:
            os._exit(5)
        case 4:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 5:
            raise ValueError("no luck")
    return loss(job, params)


def pruning(job, params):
    import optuna

    if job.trial == 1:
        raise optuna.TrialPruned("no use")
    return loss(job, params)


def slow(job, params):
    time.sleep(0.2)
    return params["x"]
