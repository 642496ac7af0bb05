"""The script of an array job of SLURM whose elements work on one study, as text."""

import argparse
import shlex
import sys
from collections.abc import Sequence

_SHARED = "--tuner.shared"
_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=lightning_hpo
#SBATCH --array=0-{last}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@{grace}
{more}
# {workers} elements make the planned trials of one study together. {grace} s before the time limit (SIGUSR1), and when
# it is preempted (SIGTERM), an element saves, leaves its trial to the others, and is queued again.
cd "${{SLURM_SUBMIT_DIR:-.}}" || exit 1
pause() {{ paused=yes; kill -TERM "$search" 2>/dev/null; }}
trap pause USR1 TERM
{command} &
search=$!
wait "$search"; code=$?
while kill -0 "$search" 2>/dev/null; do wait "$search"; code=$?; done  # a signal ends `wait`, not the search
if [ -n "$paused" ] && [ "$code" -ne 0 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of ``lightning-hpo slurm``."""
    command.allow_abbrev = False  # others are the script's own
    command.add_argument("script", help="your script, which calls a tuner with shared=True, and its own arguments")
    command.add_argument("--workers", type=int, default=4, help="elements of the array job; default 4")
    command.add_argument("--grace", type=int, default=120, help="seconds before the time limit to pause; default 120")
    command.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="more of sbatch: --sbatch=--gres=gpu:1"
    )


def slurm_script(script: str, arguments: Sequence[str], workers: int, grace: int, sbatch: Sequence[str]) -> str:
    """Return the script of an array job.

    Args:
        script: of Python, which calls a tuner with ``shared=True``.
        arguments: of the script. Those of ``HPOCLI``'s ``tune`` get ``--tuner.shared true``.
        workers: elements.
        grace: seconds before the time limit at which an element pauses.
        sbatch: more options of sbatch.

    Raises:
        ValueError: for a wrong argument.
    """
    for name, value in (("--workers", workers), ("--grace", grace)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    for option in sbatch:
        if not option.startswith("-") or not option.isprintable():
            raise ValueError(f"`--sbatch` must be an option of sbatch, such as --sbatch=--gres=gpu:1, got {option!r}.")
    told = any(argument.partition("=")[0] == _SHARED for argument in arguments)
    shared = [_SHARED, "true"] if arguments[:1] == ["tune"] and not told else []
    return _SCRIPT.format(
        last=workers - 1,
        workers=workers,
        grace=grace,
        more="".join(f"#SBATCH {option}\n" for option in sbatch),
        command=shlex.join([sys.executable, script, *arguments, *shared]),
    )
