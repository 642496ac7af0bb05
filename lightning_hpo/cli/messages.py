"""What the parser says of a wrong ``--tuner`` option, in one sentence: the option, its value, what is accepted."""

import re

import lightning_hpo
from lightning_hpo.text import hide_passwords
from lightning_hpo.tuners.options import arguments_of
from lightning_hpo.tuners.remedies import unknown_argument

_KEY = re.compile(r"Parser key \"(?P<name>\w+)\":\s+(?P<why>(?!Does not validate against any of the Union subtypes\s+"
                  r"Subtypes: \[<class 'lightning_hpo).*)", re.DOTALL)  # fmt: skip
_UNKNOWN = re.compile(r"given class_path '(?P<kind>[\w.]+)':\s+Option '(?P<name>\w+)' is not accepted")


def plain(message: str) -> str:
    """Return jsonargparse's message, in short if it is about an option of the tuner."""
    message = hide_passwords(message)
    if not message.startswith('Parser key "tuner"'):
        return message
    if unknown := _UNKNOWN.search(message):
        kind, name = unknown["kind"].rpartition(".")[2], unknown["name"]
        known = arguments_of(getattr(lightning_hpo, kind)) if kind in lightning_hpo.__all__ else []
        what = unknown_argument(kind, name, known).partition(f" {name!r}")[2].removesuffix(".")
        return f"--tuner.{name} is no option of {kind}{what}.".replace("?.", "?")
    wrong = _KEY.search(message, len("Parser key"))
    if wrong is None:
        return message
    *accepted, _ = re.findall(r"Expected an? (.+?)(?:\. Got value|$)", wrong["why"], re.MULTILINE)  # the last: no tuner
    value = re.search(r"(?:Got|Given) value: (.*)", wrong["why"])
    if not accepted or value is None:
        return message
    return f"--tuner.{wrong['name']} must be {' or '.join(map(_type_name, accepted))}, got {value[1]}."


def _type_name(text: str) -> str:
    """A type for people."""
    if literal := re.fullmatch(r"typing\.Literal\[(.*)\]", text):
        return f"one of {literal[1]}"
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("NoneType", "None")
