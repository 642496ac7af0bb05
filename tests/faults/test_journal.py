"""A journal in which bits flip, lines are damaged, processes die and disks are full."""

import errno
import json
import os
import random
import zlib

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from lightning_hpo.__main__ import main
from lightning_hpo.errors import StorageError
from lightning_hpo.study.journal import open_journal, read_journal


def begin(storage):
    return optuna.create_study(study_name="r", storage=storage)


def fill(storage, trials=12):
    study = optuna.load_study(study_name="r", storage=storage)
    study.set_user_attr("lightning_hpo", {"space": {"lr": "loguniform(1e-5, 1e-1)"}, "scheduler": {"max_steps": 9}})
    space = {"lr": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)}
    for number in range(trials):
        storage_id = storage.create_new_trial(
            study._study_id,
            template_trial=create_trial(
                state=TrialState.RUNNING, params={"lr": 1e-3 + number / 977}, distributions=space
            ),
        )
        storage.set_trial_intermediate_value(storage_id, 9, number / 7)
        storage.set_trial_state_values(storage_id, TrialState.COMPLETE, [number / 7])


@pytest.fixture
def journal(tmp_path):
    (tmp_path / "r").mkdir()
    file = tmp_path / "r" / "study.journal"
    fill(open_journal(file, begin))
    return file


def content(storage):
    study = optuna.load_study(study_name="r", storage=storage)
    return study.user_attrs, study.trials


def test_every_line_carries_the_checksum_of_its_rest_and_optuna_itself_reads_and_extends_it(journal):
    for line in journal.read_bytes().splitlines():
        rest = line.partition(b",")[2]
        assert json.loads(line)["crc32"] == f"{zlib.crc32(rest):08x}"
    plain = JournalStorage(JournalFileBackend(str(journal)))
    assert content(plain) == content(read_journal(journal))
    study = optuna.load_study(study_name="r", storage=plain)
    study.set_user_attr("note", "of a dashboard")
    study.enqueue_trial({"lr": 1e-2})
    again = open_journal(journal, begin)
    assert content(again) == content(plain)
    fill(again, 1)
    assert content(JournalStorage(JournalFileBackend(str(journal)))) == content(again)


def test_any_wrong_bit_is_found_and_the_whole_study_kept(journal, caplog):
    """Positions at random, and every kind of special place: line ends, checksums, the first and the last byte."""
    good = journal.read_bytes()
    expected = content(read_journal(journal))
    chance = random.Random(0)
    ends = [place for place, byte in enumerate(good) if byte == 10]
    places = [(place, bit) for place in (0, 2, 12, *ends[:2], len(good) - 1) for bit in range(8)]
    places += [((chance.choice(ends) + chance.randrange(25)) % len(good), chance.randrange(8)) for _ in range(52)]
    places += [(chance.randrange(len(good)), chance.randrange(8)) for _ in range(200)]
    for place, bit in places:
        flipped = bytearray(good)
        flipped[place] ^= 1 << bit
        journal.write_bytes(flipped)
        caplog.clear()
        assert content(read_journal(journal)) == expected, (place, bit)
        assert "was put right" in caplog.text
        assert journal.read_bytes() == flipped  # who only reads changes nothing
        open_journal(journal, begin)
        assert journal.read_bytes() == good


def test_a_bit_that_flips_during_a_run_is_put_right_when_it_is_read(journal, caplog):
    storage = read_journal(journal)
    good = journal.read_bytes()
    journal.write_bytes(good[:-1] + bytes([good[-1] ^ 4]))  # the end of the last line
    fill(storage, 1)
    assert journal.read_bytes().startswith(good)
    assert "was put right" in caplog.text
    assert len(content(read_journal(journal))[1]) == 13


@pytest.mark.parametrize("damage", ["two bits", "zeros", "cut", "doubled", "joined"])
def test_other_damage_is_named_with_its_line_and_the_lines_before_are_a_study(journal, damage, capsys):
    lines = journal.read_bytes().splitlines(keepends=True)
    line = lines[21]
    assert b'"trial_id":6' in line
    damaged = {
        "two bits": line.replace(b'"step":9', b'"step":5'),
        "zeros": bytes(len(line) - 1) + b"\n",
        "cut": line[:30] + b"\n",
        "doubled": line[:-1] + line,
        "joined": line[:-1],
    }[damage]
    assert damaged != line
    journal.write_bytes(b"".join([*lines[:21], damaged, *lines[22:]]))
    before = journal.read_bytes()
    for opened in (read_journal, lambda file: open_journal(file, begin)):
        with pytest.raises(StorageError, match=r"study.journal is damaged in line 22.*`head -n 21 study.journal"):
            opened(journal)
    assert main(["show", str(journal.parent)]) == 4
    assert ("about trial 6" in capsys.readouterr().err) == (damage not in {"zeros", "cut"})
    assert journal.read_bytes() == before
    journal.write_bytes(b"".join(lines[:21]))  # what the message says
    assert len(content(open_journal(journal, begin))[1]) == 7


def test_a_journal_of_before_the_checksums_goes_on(tmp_path):
    (tmp_path / "r").mkdir()
    file = tmp_path / "r" / "study.journal"
    old = JournalStorage(JournalFileBackend(str(file)))
    begin(old)
    fill(old, 2)
    fill(open_journal(file, begin), 2)
    assert [trial.value for trial in content(read_journal(file))[1]] == [0, 1 / 7, 0, 1 / 7]
    damaged = file.read_bytes().replace(b'"step":9', b'"step"\x009', 1)
    file.write_bytes(damaged)
    with pytest.raises(StorageError, match="is damaged in line 4, which is about trial 0"):
        read_journal(file)


def test_a_full_disk_leaves_no_part_of_a_line(journal, monkeypatch):
    storage = open_journal(journal, begin)
    good = journal.read_bytes()
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) + 40, before[1]))
        with pytest.raises(OSError) as caught:
            fill(storage, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.errno == errno.EFBIG
    assert journal.read_bytes() == good
    fill(storage, 1)
    assert len(content(read_journal(journal))[1]) == 13


def test_a_line_that_a_killed_process_left_unfinished_is_moved_away_by_the_next_that_writes(journal):
    storage = open_journal(journal, begin)
    with journal.open("ab") as opened:
        opened.write(b'{"crc32":"00000000","op_')
    fill(storage, 1)
    (aside,) = journal.parent.glob("study.journal.corrupt-*")
    assert aside.read_bytes() == b'{"crc32":"00000000","op_'
    assert len(content(read_journal(journal))[1]) == 13


def test_several_processes_append_whole_lines(journal):
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            number = 1
            try:
                fill(read_journal(journal), 20)
                number = 0
            finally:
                os._exit(number)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    trials = content(read_journal(journal))[1]
    assert sorted(trial.value for trial in trials) == sorted(n / 7 for n in [*range(12), *range(20)] + 2 * [*range(20)])
