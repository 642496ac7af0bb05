"""Call a function in a forked copy of this process, so that none of its changes stay here."""

import contextlib
import gc
import io
import multiprocessing
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from lightning_hpo.interrupts import act_here

Answer = TypeVar("Answer")


class _InCopy(Exception):  # noqa: N818  # shown as the cause of an error, with its place in the other process
    pass


def call_apart(function: Callable[[], Answer]) -> Answer:
    """Call a function whose answer can be pickled in a forked process; in this process where a fork is not safe.

    The copy starts with this memory, and its changes stay there: counters and lists of a user's module stay as they
    are here. Its output is not shown. A fork is not safe once CUDA is in use or with a process group, and not every
    system has it.

    Raises:
        Exception: of the function; a RuntimeError with its text if it cannot be pickled.
        RuntimeError: if the process is killed.
    """
    if not _can_fork():
        with contextlib.redirect_stdout(io.StringIO()):
            return function()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    sys.stdout.flush()
    sys.stderr.flush()
    process = context.Process(target=_answer, args=(function, sender), daemon=False)
    process.start()
    sender.close()
    try:
        kind, content = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended its process with code {code}"
        raise RuntimeError(f"the check before training {how}") from None
    except BaseException:  # a second Ctrl-C: this process no longer waits for the copy
        process.kill()
        raise
    finally:
        receiver.close()
    process.join()
    if kind == "answer":
        answer: Answer = content
        return answer
    text, pickled, name = content
    error = RuntimeError(f"{name}") if pickled is None else pickle.loads(pickled)  # noqa: S301  # of our own process
    raise error from _InCopy(f"\n{text}")


def _can_fork() -> bool:
    return (
        sys.platform.startswith("linux")
        # Before its first use CUDA survives a fork, and the copy frees its GPU memory when it ends.
        and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        and not (torch.distributed.is_available() and torch.distributed.is_initialized())
        and "LOCAL_RANK" not in os.environ
        and not multiprocessing.current_process().daemon
    )


def _answer(function: Callable[[], Any], connection: Connection) -> None:
    act_here()
    gc.freeze()  # objects of the parent, so that the collection below is short and copies no memory
    torch.set_num_threads(1)  # pools of threads do not survive a fork
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with threadpool_limits(1), contextlib.redirect_stdout(io.StringIO()):
        try:
            answer = ("answer", function())
        except BaseException as error:  # noqa: BLE001  # raised again in the calling process
            answer = ("error", (traceback.format_exc(), _pickled(error), f"{type(error).__name__}: {error}"))
    gc.collect()  # ends the workers of loaders
    connection.send(answer)


def _pickled(error: BaseException) -> bytes | None:
    try:
        content = pickle.dumps(error)
        pickle.loads(content)  # noqa: S301  # of this process
    except Exception:  # noqa: BLE001  # a class of the user's may raise anything
        return None
    return content
