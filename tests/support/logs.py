"""What loggers have written of each trial, read by each tool's own reader."""

import csv
import json
import struct

import pytest
import yaml

from lightning_hpo.reporting.run_view import read_run

EVERY = 5  # steps between two rows


def trials_of(run, count):
    rows = read_run(run).rows
    assert len(rows) == count
    assert {row.state for row in rows} <= {"complete", "pruned"}
    return rows


def check(rows, runs):
    """Each trial has one run: every row once and in order, the parameters, the final score."""
    assert len(runs) == len(rows)
    for row in rows:
        steps, params, score, status = runs[f"r-{row.number:04d}"]
        assert steps == list(range(EVERY - 1, row.step, EVERY)), row
        assert float(params["model.lr"]) == pytest.approx(row.params["model.lr"])
        assert params.get("model.api_key", "***") == "***"
        assert score == pytest.approx(row.score)
        assert status == row.state


def read_csv(parent):
    runs = {}
    for folder in parent.iterdir():
        with (folder / "metrics.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        params = yaml.safe_load((folder / "hparams.yaml").read_text())
        steps = [int(line["step"]) for line in lines if line["train_loss"]]
        runs[folder.name] = steps, params, params["hp_metric"], params["status"]
    return runs


def read_tensorboard(parent):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    runs = {}
    for folder in parent.iterdir():
        events = EventAccumulator(str(folder)).Reload()
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        given = HParamsPluginData.FromString(content).session_start_info.hparams
        params = {name: value.number_value or value.string_value for name, value in given.items()}
        (metric,) = events.Scalars("hp_metric")
        (status,) = events.Tensors("status/text_summary")
        seconds = [file.name.split(".")[3] for file in folder.glob("events.out.tfevents.*")]
        assert len(seconds) == len({*seconds})  # files of the same second have any order
        steps = [event.step for event in events.Scalars("train_loss")]
        runs[folder.name] = steps, params, metric.value, status.tensor_proto.string_val[0].decode()
    return runs


def read_mlflow(place, experiment):
    from mlflow import MlflowClient

    client, runs = MlflowClient(place), {}
    for found in client.search_runs([client.get_experiment_by_name(experiment).experiment_id]):
        steps = sorted(metric.step for metric in client.get_metric_history(found.info.run_id, "train_loss"))
        (score,) = client.get_metric_history(found.info.run_id, "hp_metric")
        assert found.info.status == {"complete": "FINISHED", "pruned": "KILLED"}[found.data.tags["status"]]
        runs[found.info.run_name] = steps, found.data.params, score.value, found.data.tags["status"]
    return runs


def logged(content, block=32768):
    """Records of a ``.wandb`` file, which is a log of LevelDB after 7 bytes; wandb itself reads it in Go only."""
    assert content[:4] == b":W&B"
    at, parts = 7, []
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4) and at <= len(content):  # whole, or the last part; a kill can leave half a record
            yield b"".join(parts)
            parts = []


def read_wandb(parent):
    from wandb.proto import wandb_internal_pb2

    runs = {}
    for file in sorted((parent / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime):
        name, steps, params, summary = "", [], {}, {}
        for data in logged(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("run"):
                name = record.run.display_name
                params |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            params |= {item.key: json.loads(item.value_json) for item in record.config.update}
            for item in record.summary.update:
                summary[item.key or item.nested_key[0]] = json.loads(item.value_json)
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            if "train_loss" in items:
                steps.append(items["trainer/global_step"])
        if not name:  # killed before the run had its name
            assert not steps
            continue
        before = runs.get(name, ([], {}, None, None))
        runs[name] = (
            before[0] + steps, before[1] | params,
            summary.get("hp_metric", before[2]), summary.get("status", before[3]),
        )  # fmt: skip
    return runs
