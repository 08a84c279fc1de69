"""One run per strategy with everything that watches: what is written is read back, and is that of one run."""

from __future__ import annotations

import csv
import gzip
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import wandb
from mlflow.tracking import MlflowClient
from PIL import Image
from prov.model import ProvDocument
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from itwinai.profiling.step_timer import Phase
from tests.support import wandb_files, watched
from tests.support.mlflow_server import Server
from tests.support.watched import BATCH, EPOCHS, SECRET, SLOWER, STEPS, Watched

STRATEGIES = {"ddp": "ddp", "deepspeed_stage_2": "deepspeed", "horovod": "horovod", "ray": "ray_ddp"}
SPEED = {"speed/step_ms", "speed/step_ms_p50", "speed/step_ms_p95", "speed/data_wait_share", "speed/samples_per_second"}

LOG_STEPS = list(range(1, STEPS * EPOCHS, 2))
RECORDED = (3, 5)  # by torch's profiler, which makes them longer: their speed is nobody's

Curve = list[tuple[int, float]]


@pytest.fixture(scope="module", params=STRATEGIES)
def run(request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    torch.manual_seed(3)
    if request.param == "ray":
        request.getfixturevalue("local_ray")
    code = tmp_path_factory.mktemp("code")
    git(code, "init", "--quiet")
    git(code, "commit", "--quiet", "--allow-empty", "-m", "first")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(code)
            patch.setattr(sys, "argv", ["itwinai"])  # of a command, the code is that of the current folder
            made = watched.run(tmp_path_factory.mktemp(request.param), request.param, server.address)
        return replace(made, commit=git(code, "rev-parse", "HEAD"))
    finally:
        wandb.finish()  # lightning's logger begins it in this process, and would go on in it in the next fit


def git(folder: Path, *arguments: str) -> str:
    command = [
        "git",
        "-C",
        str(folder),
        "-c",
        "user.name=Somebody",
        "-c",
        "user.email=somebody@example.org",
        *arguments,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def client(server: Server) -> MlflowClient:
    return MlflowClient(server.address)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def curve(run: Watched, name: str) -> Curve:
    """Return the values of a metric in the CSV file."""
    found = [
        (int(row["step"]), float(row[name])) for row in rows(Path(run.csv.log_dir, "metrics.csv")) if row.get(name)
    ]
    return sorted(found)


def same(one: Curve, other: Curve) -> bool:
    """Tell whether two curves are the same but for rounding to single precision."""
    assert one and [step for step, _ in one] == [step for step, _ in other]
    return [value for _, value in one] == pytest.approx([value for _, value in other], rel=1e-6)


# ------------------------------------------------------------------------------------------------- CSV, JSONL


def test_speed_rates_and_gradients_are_logged_at_log_steps(run: Watched) -> None:
    for name in {"train_loss", "lr", "gradient_norm"} | SPEED - {"speed/data_wait_share"}:
        logged = curve(run, name)
        steps = [step for step in LOG_STEPS if not (name in SPEED and step in RECORDED)]
        assert [step for step, _ in logged] == steps, name
        assert all(math.isfinite(value) and value >= 0 for _, value in logged), name
    assert {value for _, value in curve(run, "lr")} == {0.05}
    for (_, rate), (_, milliseconds) in zip(
        curve(run, "speed/samples_per_second"), curve(run, "speed/step_ms"), strict=True
    ):
        assert rate == pytest.approx(2 * BATCH * 1e3 / milliseconds)
    shares = curve(run, "speed/data_wait_share")  # only some steps are split into parts
    assert len(shares) >= 3 and all(0 <= share <= 1 for _, share in shares)
    for (_, p50), (_, p95) in zip(curve(run, "speed/step_ms_p50"), curve(run, "speed/step_ms_p95"), strict=True):
        assert 0 < p50 <= p95


def test_gradients_are_those_of_the_global_batch(run: Watched) -> None:
    torch.manual_seed(3)
    module = watched.Classifier()
    x, y = next(iter(watched.loader(STEPS * 8, batch_size=8)))
    optimizer = module.configure_optimizers()
    loader = iter(watched.loader(STEPS * 8, batch_size=8))
    for _ in range(2):  # the first log step is the second step
        x, y = next(loader)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
        optimizer.step()
    assert curve(run, "gradient_norm")[0] == (1, pytest.approx(float(norm), rel=1e-4))


def test_jsonl_has_what_csv_has(run: Watched) -> None:
    lines = [json.loads(line) for line in Path(run.jsonl.log_dir, "metrics.jsonl").read_text().splitlines()]
    logged = [(line["step"], line["train_loss"]) for line in lines if "train_loss" in line]
    assert same(logged, curve(run, "train_loss"))


def test_there_is_one_run_and_one_folder_for_each_worker_in_it(run: Watched) -> None:
    assert [path.name for path in Path(run.folder, "csv").iterdir()] == ["version_0"]
    folders = sorted(path for path in Path(run.csv.log_dir).iterdir() if path.name.startswith("rank_"))
    assert [path.name for path in folders] == ["rank_0", "rank_1"]
    for folder in folders:
        logged = rows(folder / "metrics.csv")
        assert [int(row["step"]) for row in logged] == LOG_STEPS
        assert logged[0].keys() >= SPEED


def test_figures_are_kept_per_epoch(run: Watched) -> None:
    figures = {path.relative_to(run.csv.log_dir).as_posix() for path in Path(run.csv.log_dir).rglob("*.png")}
    confusion = {name for name in figures if "val_confusion" in name}
    own = {name for name in figures if "mine/weights" in name}
    assert len(confusion) == len(own) == EPOCHS
    assert not any("val_accuracy" in name for name in figures)  # a single number has a curve


# ------------------------------------------------------------------------------------------------- MLflow


def mlflow_runs(client: MlflowClient, run: Watched) -> tuple[Any, list[Any]]:
    experiment = client.get_experiment_by_name(run.mlflow.name and f"watched {run.strategy}")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    whole = [one for one in found if "mlflow.parentRunId" not in one.data.tags]
    nested = [one for one in found if "mlflow.parentRunId" in one.data.tags]
    assert len(whole) == 1
    return whole[0], sorted(nested, key=lambda one: one.data.tags["rank"])


def test_mlflow_has_one_run_with_what_csv_has(run: Watched, client: MlflowClient) -> None:
    whole, _ = mlflow_runs(client, run)
    assert whole.info.status == "FINISHED"
    for name in ("train_loss", "lr", "gradient_norm", "val_accuracy", "speed/step_ms"):
        history = sorted((point.step, point.value) for point in client.get_metric_history(whole.info.run_id, name))
        assert same(history, curve(run, name)), name
    assert whole.data.tags["launch.strategy"] == STRATEGIES[run.strategy]
    assert whole.data.tags["launch.world_size"] == "2"
    assert whole.data.tags["versions.torch"] == torch.__version__
    assert whole.data.tags["mlflow.source.git.commit"] == run.commit
    assert whole.data.params["width"] == "16"


def test_mlflow_has_a_nested_run_for_each_worker(run: Watched, client: MlflowClient) -> None:
    whole, nested = mlflow_runs(client, run)
    assert [one.data.tags["rank"] for one in nested] == ["0", "1"]
    for one in nested:
        assert one.data.tags["mlflow.parentRunId"] == whole.info.run_id
        assert one.info.status == "FINISHED"
        history = client.get_metric_history(one.info.run_id, "train_loss")
        assert [point.step for point in history] == LOG_STEPS


def test_mlflow_has_the_model_with_its_signature(run: Watched, client: MlflowClient, server: Server) -> None:
    whole, _ = mlflow_runs(client, run)
    files = {item.path for item in client.list_artifacts(whole.info.run_id)}
    assert {"resolved-config.yaml", "model", "figures", "run.html", "profile"} <= files
    kept = {item.path for item in client.list_artifacts(whole.info.run_id, "profile")}
    assert {"profile/rank-0.1.pt.trace.json.gz", "profile/steps.png"} <= kept
    mlflow.set_tracking_uri(server.address)
    model = mlflow.pytorch.load_model(f"runs:/{whole.info.run_id}/model")
    for name, weights in run.module.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weights)
    signature = mlflow.models.get_model_info(f"runs:/{whole.info.run_id}/model").signature
    assert signature.inputs.inputs[0].shape == (-1, 6)
    assert signature.outputs.inputs[0].shape == (-1, 3)


# ------------------------------------------------------------------------------------------ TensorBoard, W&B


def test_tensorboard_has_scalars_facts_and_figures(run: Watched) -> None:
    events = EventAccumulator(run.tensorboard.log_dir, size_guidance={"scalars": 0}).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert same(logged, curve(run, "train_loss"))
    assert {"validation/val_confusion", "mine/weights"} <= set(events.Tags()["images"])
    assert {"facts/text_summary", "resolved-config/text_summary"} <= set(events.Tags()["tensors"])
    of_rank = EventAccumulator(str(Path(run.tensorboard.log_dir, "rank_1"))).Reload()
    assert "speed/step_ms" in of_rank.Tags()["scalars"]


def test_wandb_has_one_run_and_a_group_of_the_workers(run: Watched) -> None:
    found = [wandb_files.read(path) for path in sorted(Path(run.folder, "wandb").glob("offline-run-*/*.wandb"))]
    (whole,) = [one for one in found if one.run.job_type != "rank"]
    workers = [one for one in found if one.run.job_type == "rank"]
    assert len(workers) == 2
    logged = [(row["trainer/global_step"], row["train_loss"]) for row in whole.history if "train_loss" in row]
    assert same(logged, curve(run, "train_loss"))
    assert any("validation/val_confusion/path" in row for row in whole.history)
    assert {one.run.run_group for one in workers} == {whole.run.run_id}
    for one in workers:
        assert sum("train_loss" in row for row in one.history) == len(LOG_STEPS)


# ------------------------------------------------------------------------------------------------ provenance


def test_provenance_is_valid_and_has_the_run(run: Watched) -> None:
    (path,) = run.folder.rglob("provenance.json")
    document = ProvDocument.deserialize(path, format="json")
    text = path.read_text()
    assert '"wasGeneratedBy"' in text and '"used"' in text and '"wasAssociatedWith"' in text
    assert "train_loss" in text and "success" in text
    assert len(list(document.get_records())) > 8


# --------------------------------------------------------------------------------------- profile, monitor, page


def test_steps_of_both_workers_are_split(run: Watched) -> None:
    profile = run.profiling.profile
    assert profile is not None and len(profile.splits) == 2
    for split in profile.splits:
        assert split.steps < STEPS * EPOCHS  # those of torch's profiler do not count
        assert {Phase.DATA, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER, Phase.CALLBACKS} <= split.phases.keys()
        whole = sum(split.phases.values()) + split.rest
        assert 0.1 * split.step < whole < 10 * split.step  # not all steps were split
        assert split.rest < 0.2 * whole
        assert split.communication is not None and split.communication > 0
    fast, slow = (split.phases for split in profile.splits)
    assert slow[Phase.FORWARD] >= SLOWER > fast[Phase.FORWARD]
    assert fast[Phase.COMMUNICATION] > 0.7 * SLOWER  # it waits for the other one
    traces = sorted(path.name for path in profile.folder.glob("*.pt.trace.json.gz"))
    assert traces == ["rank-0.1.pt.trace.json.gz", "rank-1.1.pt.trace.json.gz"]
    with gzip.open(profile.folder / traces[1]) as file:
        assert json.load(file)["traceEvents"]
    assert profile.recorded is not None and profile.recorded.operators
    workers, operators = (rows(profile.folder / name) for name in ("workers.csv", "operators.csv"))
    assert [row["rank"] for row in workers] == ["0", "1"]
    assert float(workers[1]["forward_ms"]) == pytest.approx(slow[Phase.FORWARD] * 1e3)
    assert {row["name"] for row in operators} == {one.name for one in profile.recorded.operators}
    with Image.open(profile.folder / "steps.png") as picture:
        assert picture.width > 500


def test_one_sampler_watched_both_workers(run: Watched) -> None:
    summary = run.monitor.summary
    assert summary is not None and len(summary.nodes) == 1
    assert summary.nodes[0].workers == 2
    assert summary.samples == STEPS * EPOCHS * 8


def test_page_stands_alone_and_shows_everything(run: Watched, tmp_path: Path) -> None:
    assert run.summary.page is not None
    text = run.summary.page.read_text()
    for word in ("Classifier", "train_loss", "Training step", "Operators", "System", "versions/torch", "other workers"):
        assert word in text
    for loading in ("<script", "<link", "src=", "@import", "url("):
        assert loading not in text.replace("url(#", "")
    picture = tmp_path / "page.png"
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,3000"]
        + [f"--screenshot={picture}", run.summary.page.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with Image.open(picture) as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 30  # text, bars and curves, and not a blank page


# ------------------------------------------------------------------------------------------------- secrets


def test_no_secret_is_in_any_file(run: Watched, server: Server) -> None:
    files = [path for folder in (run.folder, server.folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
