"""``lightning-hpo show|report|best runs/<name>`` (or ``python -m lightning_hpo``): look at a run, finished or at work.

``show --watch`` follows a search, ``show runs/<name> 7`` shows one trial, ``show --json`` is for scripts.
Nothing that the run's config names is imported. ``lightning-hpo slurm`` prints the script of an array job.
"""

import argparse
import sys
from pathlib import Path

from lightning_hpo.cli.slurm import add_arguments, slurm_script
from lightning_hpo.errors import STORAGE
from lightning_hpo.reporting.outside import running_lines, show_trial, to_json, view_of, watch
from lightning_hpo.reporting.report import keep_report, write_report
from lightning_hpo.reporting.run_view import read_best, read_run
from lightning_hpo.reporting.summary import show
from lightning_hpo.text import HIDDEN, lost, say


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parser = argparse.ArgumentParser(prog="lightning-hpo", description="Look at a run, finished or at work.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in [
        ("show", "print states, the best trials and the failures"),
        ("report", "write report.html into the run folder: one file that needs nothing else"),
        ("best", "print best.yaml"),
    ]:
        command = commands.add_parser(name, help=words, description=words)
        command.add_argument("run", help="folder of the run, runs/<name>")
        if name == "show":
            command.add_argument("trial", nargs="?", type=int, help="number of one trial")
            how = command.add_mutually_exclusive_group()
            how.add_argument("--watch", action="store_true", help="follow the search while it is at work")
            how.add_argument("--json", action="store_true", help="print everything as JSON (docs/watching.md)")
        command.add_argument("--storage", help="URL of the study, if it is not in the folder")
        if name == "report":
            command.add_argument("--live", action="store_true", help="write it again and again while the search runs")
    words = "print the script of a SLURM array job whose elements share one study: ... slurm train.py ... --workers 8"
    add_arguments(commands.add_parser("slurm", help=words, description=words))
    given, rest = parser.parse_known_args(arguments)
    if rest and given.command != "slurm":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if given.command == "slurm":
            say(slurm_script(given.script, rest, given.workers, given.grace, given.sbatch).rstrip("\n"))
            if not Path(given.script).is_file():
                say(f"lightning_hpo: {given.script} is no file here; call sbatch where it is one", sys.stderr)
            return 0
        _act(given)
    except KeyboardInterrupt:  # of a watch; the search goes on
        return 0
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        say(f"lightning_hpo: {error}", sys.stderr)
        return STORAGE
    # Whoever has closed the pipe has seen enough.
    return 0 if isinstance(lost(sys.stdout), BrokenPipeError | None) else STORAGE


def _act(given: argparse.Namespace) -> None:
    """Carry out a command."""
    run = read_run(given.run, given.storage)
    match given.command:
        case "show" if given.json:
            say(to_json(run))
        case "show" if given.trial is not None:
            show_trial(run, given.trial)
        case "show":
            run = watch(lambda: read_run(given.run, given.storage)) if given.watch else run
            show(run)
            for line in running_lines(view_of(run)):
                say(line)
        case "report":
            if given.live and run.owner is not None:
                say(f"{run.path / 'report.html'} follows the search; Ctrl-C ends this and not the search")
            say(str(keep_report(run, given.storage) if given.live else write_report(run)))
        case "best":
            text = read_best(run)
            say(text.rstrip("\n"))
            if HIDDEN in text:
                say(f"secrets are shown as {HIDDEN}; they are in {run.path / 'best.yaml'}", sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
