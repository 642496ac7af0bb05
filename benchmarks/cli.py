"""What a trial costs before its first step when it comes from a LightningCLI config: CPU milliseconds.

``python benchmarks/cli.py`` prints the median of parsing the trial's values and making model, data, optimizer and the
arguments of the Trainer, beside a new ``LightningCLI`` for each trial. Asked: under 60 ms.
"""

import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "cli"))
from digits import DigitsData, DigitsNet
from lightning.pytorch.cli import LightningCLI

from lightning_hpo.training.config_builder import ConfigBuilder


def median_ms(action, count):
    seen = []
    for index in range(count):
        start = time.process_time()
        action(index)
        seen.append(time.process_time() - start)
    return 1e3 * statistics.median(seen)


def main():
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    args = ["-c", str(Path(sys.path[0]) / "fit.yaml"), "--seed_everything", "false"]

    def whole(_index=0):
        return LightningCLI(DigitsNet, DigitsData, run=False, args=args, save_config_callback=None)

    builder = ConfigBuilder(whole())

    def params(index):
        return {"optimizer.lr": 0.01 + index / 1e4, "model.hidden": 16 + index, "data.batch_size": 32}

    ours = median_ms(lambda index: builder.build(params(index)), 40)
    print(f"parse and instantiate {ours:.1f} ms; a new LightningCLI {median_ms(whole, 5):.1f} ms")
    if ours > 60:
        sys.exit("missed: asked under 60 ms")


if __name__ == "__main__":
    main()
