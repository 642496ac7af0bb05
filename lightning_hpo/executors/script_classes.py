"""Names of the classes that a process elsewhere has been sent from the user's script."""

import sys


def name_classes_of_script() -> None:
    """Give classes that cloudpickle has sent by value the names in ``__main__`` that they have in the user's script.

    Without its name, an object of such a class is in no checkpoint: Lightning leaves it out of the hyperparameters.
    """
    main = sys.modules["__main__"]
    for name in ("cloudpickle.cloudpickle", "ray.cloudpickle.cloudpickle"):
        known = getattr(sys.modules.get(name), "_DYNAMIC_CLASS_TRACKER_BY_CLASS", {})  # there is no public name
        for kind in list(known):
            if kind.__module__ == "__main__" and not hasattr(main, kind.__name__):
                setattr(main, kind.__name__, kind)
