"""Searches in processes of their own, forked from one that has imported everything: so each costs a second only."""

import ctypes
import functools
import gc
import logging
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import lightning_hpo.cli  # noqa: F401  # what a script imports is here already
from lightning_hpo import RandomTuner
from tests.support.small import Data, Net

HEAD = """
import os, signal, sys, time, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from lightning_hpo import *
from tests.support.small import Data, Net

ROOT = sys.argv[1]
X = {"x": "uniform(0, 1)"}
CPU = {"accelerator": "cpu", "logger": False}
def f(job, params):
    return params["x"]
"""
_NEW_MOUNTS, _NEW_USER = 0x00020000, 0x10000000  # of unshare(2)
_READ_ONLY, _AGAIN = 1, 32  # of mount(2)


class Script:
    """A script at work.

    Args:
        tmp_path: for its files.
        code: of the script, which begins with HEAD; or its file.
        arguments: of the script; that of code alone is ``root``.
        cwd: where it works.
        env: more environment variables.
        root: of its runs. Default: ``tmp_path/runs``.
        disk: bytes of a file system of its own that is mounted at ``root``; what is on it at the end is copied to
            ``<root>.kept``.
        read_only: mount it so, with an empty run folder "r".
    """

    def __init__(self, tmp_path, code, *arguments, cwd=None, env=(), root=None, disk=None, read_only=False):
        root = tmp_path / "runs" if root is None else root
        self._files = [tmp_path / f"{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        for file in self._files:
            file.touch()
        self.returncode, self._seen = None, 0
        warm()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            for number, file in enumerate(self._files, start=1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
            become(code, root, arguments, cwd=cwd, env=env, mounted=disk and (disk, read_only))

    def wait_for(self, text, timeout=120):
        """Wait until it has printed a text after what was waited for before, and return the line."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            lines = self._files[0].read_text().splitlines(keepends=True)
            for index in range(self._seen, len(lines)):
                if text in lines[index] and lines[index].endswith("\n"):
                    self._seen = index + 1
                    return lines[index]
            if self.poll() is not None:
                break
            time.sleep(0.005)
        raise AssertionError(self._files[1].read_text())

    def poll(self):
        """Exit code, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number):
        """Send a signal to the process, not to its group."""
        os.kill(self.pid, number)

    def end(self, timeout=120):
        """Wait for the end: exit code, output, errors."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(self._files[1].read_text())
            time.sleep(0.005)
        return self.returncode, *(file.read_text() for file in self._files)

    def kill(self):
        """SIGKILL."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@functools.cache
def warm():
    """Import all that a search imports, before anything is forked."""
    options = {"monitor": "val_loss", "trainer": {"accelerator": "cpu", "logger": False}, "verbose": False}
    with tempfile.TemporaryDirectory() as root:
        RandomTuner({"lr": "uniform(0.1, 0.2)"}, max_steps=1, n_trials=1, root=root, **options).fit(
            Net, datamodule=Data
        )


def run(tmp_path, code, *arguments, **options):
    """Run such a script to its end: exit code, output, errors."""
    return Script(tmp_path, code, *arguments, **options).end()


def become(code, root, arguments=(), *, cwd=None, env=(), mounted=None):
    """Turn a forked process, whose descriptors 0 to 2 are set, into one that runs a script; it never returns."""
    number = 99
    try:
        gc.freeze()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        os.environ.update(env)
        os.chdir(cwd or ".")
        if isinstance(code, Path):
            sys.path.insert(0, str(code.parent))
            sys.argv = [str(code), *map(str, arguments)]
        else:
            sys.argv = ["script", str(root), *map(str, arguments)]
        sys.stdout, sys.stderr = (os.fdopen(handle, "w", buffering=1, closefd=False) for handle in (1, 2))
        sys.__stderr__, sys.stdin = sys.stderr, os.fdopen(0, closefd=False)
        logging.getLogger().handlers.clear()  # the ones of pytest
        warnings.simplefilter("ignore")  # in place of its filters
        if mounted:
            mount(root, mounted[0], read_only=mounted[1])
        try:
            number = interpret(code)
        finally:
            if mounted:
                shutil.copytree(root, f"{root}.kept")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(number)


def interpret(code):
    """What the interpreter does with a main script: run it, show an error by the hook, and say the exit code."""
    try:
        if isinstance(code, Path):
            runpy.run_path(str(code), run_name="__main__")
        else:
            exec(compile(HEAD + code, "<script>", "exec"), {"__name__": "__main__"})
    except SystemExit as left:
        return left.code or 0
    except BaseException:
        try:
            sys.excepthook(*sys.exc_info())
        except SystemExit as left:
            return left.code or 0
        return 1
    return 0


def mount(folder, size, *, read_only=False):
    """Mount a small file system that only this process and its children see."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(exist_ok=True)
    flags = _NEW_MOUNTS if os.geteuid() == 0 else _NEW_MOUNTS | _NEW_USER
    options = [(0, f"size={size}".encode())]
    if read_only:
        options.append((_READ_ONLY | _AGAIN, f"size={size}".encode()))
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")
    libc.mount(b"none", b"/", None, 1 << 18 | 1 << 14, None)  # private, so that nobody else sees what is mounted
    for flag, text in options:
        if libc.mount(b"none", str(folder).encode(), b"tmpfs", flag, text):
            raise OSError(ctypes.get_errno(), "mount")
        if not flag:
            (folder / "r").mkdir()


def mount_works(folder):
    """Whether this process may mount a file system of its own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            mount(folder, 100_000)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
