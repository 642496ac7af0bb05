"""The folder that members of a population share: damaged files, members that died or disagree."""

from pathlib import Path

import pytest
import torch

from lightning_hpo import checkpoints
from lightning_hpo.callbacks.population import PopulationBasedTraining
from lightning_hpo.schedulers.population import Rules
from lightning_hpo.space import parse_space
from lightning_hpo.study.member_files import read_record
from lightning_hpo.study.shared_folder import SharedFolder
from tests.training.test_population_callback import INTERVAL, SPACE, Data, Net, good_donor, member, trainer


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def torn(file, tmp_path):
    file.write_bytes(file.read_bytes()[:-200])


def flipped(file, tmp_path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def malicious(file, tmp_path):
    torch.save({"state": Bomb(tmp_path / "exploded")}, file)


def malicious_and_sealed(file, tmp_path):
    checkpoints.save({"state": Bomb(tmp_path / "exploded")}, file)


@pytest.mark.parametrize("damage", [torn, flipped, malicious, malicious_and_sealed])
def test_a_damaged_donor_is_left_alone_and_named(tmp_path, damage):
    good_donor(tmp_path)
    damage(tmp_path / "pbt" / "member_001" / "state.ckpt", tmp_path)
    trainer(tmp_path, member(tmp_path)).fit(Net(), datamodule=Data())
    record = read_record(tmp_path / "pbt", 0)
    assert record.status == "finished"
    assert [segment.parent for segment in record.segments] == [None]
    assert any("did not copy member 1" in event for event in record.events)
    assert not (tmp_path / "exploded").exists()


def test_a_damaged_record_counts_as_missing(tmp_path):
    good_donor(tmp_path)
    record = tmp_path / "pbt" / "member_001" / "record.json"
    record.write_text(record.read_text().replace('"step": 20', '"step": 90'))
    assert read_record(tmp_path / "pbt", 1) is None
    trainer(tmp_path, member(tmp_path)).fit(Net(), datamodule=Data())
    assert read_record(tmp_path / "pbt", 0).status == "finished"


def test_a_dead_member_does_not_block_a_synchronous_population(tmp_path):
    good_donor(tmp_path)  # never comes back after step 20
    trainer(tmp_path, member(tmp_path, synchronous=True, timeout=1.0)).fit(Net(), datamodule=Data())
    record = read_record(tmp_path / "pbt", 0)
    assert record.status == "finished"
    assert any("member 1 gave no sign of life" in event for event in record.events)


def test_only_donors_keep_a_state_on_disk(tmp_path):
    rules = Rules(parse_space({"lr": "loguniform(1e-3, 1)"}), quantile=0.2)
    folders = [
        SharedFolder(tmp_path, rules, member=number, population_size=5, agreed={}, synchronous=False, timeout=60.0)
        for number in range(5)
    ]
    for folder in folders:
        folder.join(0, None)
    for step in (10, 20):
        for score, folder in enumerate(folders if step == 10 else folders[::-1]):
            folder.report(step, float(score) - step, lambda: {"w": torch.zeros(3)})
    assert [file.parent.name for file in tmp_path.glob("member_*/state.ckpt")] == ["member_004"]


def test_members_must_agree(tmp_path):
    holder = member(tmp_path).folder
    holder.join(0, None)
    with pytest.raises(ValueError, match=r"seed was 0, now 1"):
        member(tmp_path, 1, seed=1).folder.join(0, None)
    with pytest.raises(RuntimeError, match="at work in another process"):
        member(tmp_path).folder.join(0, None)
    holder.leave("finished", "done")
    member(tmp_path).folder.join(0, None)


@pytest.mark.parametrize(
    ("argument", "value"), [("population_size", 1), ("member", 2), ("interval", 0), ("timeout", 0.0), ("quantile", 0.0)]
)
def test_wrong_arguments_fail_at_construction(tmp_path, argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        PopulationBasedTraining(
            tmp_path, SPACE, **{"member": 0, "population_size": 2, "interval": INTERVAL, argument: value}
        )
