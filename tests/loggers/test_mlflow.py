"""What is logged to MLflow is what lightning's logger logs, and it arrives, whatever the server goes through."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import mlflow as mlflow_api
import pytest
import requests
import torch
from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlowLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from itwinai import Predictor
from itwinai.callbacks import LoggingCallback, ModelCheckpoint
from itwinai.errors import CheckpointError, MissingCheckpointError
from itwinai.loggers import async_queue, mlflow
from itwinai.loggers.adapters.files import hand_over, within
from itwinai.loggers.adapters.mlflow import _pickled
from itwinai.loggers.mlflow import LoggerError, MLFlowLogger, resend
from itwinai.loggers.mlflow_client import AwayError, Point, send, write_unsent
from tests.conftest import REPOSITORY, assert_no_process_left
from tests.support.cases import Regression, loader, make_trainer
from tests.support.mlflow_server import Server, free_port
from tests.support.predicted import Transferred

pytestmark = pytest.mark.usefixtures("no_mlflow_address")

PASSWORD = "very-secret"

Points = dict[str, list[tuple[int, float]]]


def points(logger: LightningMLFlowLogger) -> Points:
    """Return all that MLflow has of a run, by key: steps and values, in the order of steps."""
    client, run_id = logger.experiment, logger.run_id
    return {
        key: sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))
        for key in client.get_run(run_id).data.metrics
    }


class Talkative(Regression):
    """Logs at every step."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("step/loss", loss)
        self.log_dict({"step/index": float(batch_idx), "step/double": 2.0 * batch_idx})
        return loss


# ------------------------------------------------------------------------------------------ the same as lightning's


def test_fit_logs_what_lightning_logs(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with_login = server.address.replace("http://", f"http://me:{PASSWORD}@")
    ours = MLFlowLogger("fit", tracking_uri=with_login, save_dir=str(tmp_path), prefix="try")
    theirs = LightningMLFlowLogger("fit", tracking_uri=server.address, prefix="try")
    options = {"log_every_n_steps": 1, "max_epochs": 2, "default_root_dir": tmp_path}
    trainer = make_trainer("auto", 1, logger=[ours, theirs], **options)
    trainer.fit(Talkative(), loader(8), loader(8))
    logged = points(ours)
    assert logged == points(theirs)
    assert [step for step, _ in logged["try-step/loss"]] == list(range(26))
    assert len(logged["try-val_loss"]) == 2
    assert ours.experiment.get_run(ours.run_id).info.status == "FINISHED"

    trainer.test(Talkative(), loader(8), verbose=False)  # goes on in the same run
    assert points(ours) == points(theirs)
    assert len(points(ours)["try-val_loss"]) == 3
    printed = capfd.readouterr()
    assert PASSWORD not in printed.out + printed.err
    assert f"http://me:***@{server.host}" in printed.out  # where the run can be seen


def test_names_values_and_parameters_are_those_of_lightning(server: Server) -> None:
    ours = MLFlowLogger("values", tracking_uri=server.address)
    theirs = LightningMLFlowLogger("values", tracking_uri=server.address)
    values = {
        "tensor": torch.tensor(0.1),
        "bool": True,
        "nan": math.nan,
        "infinite": math.inf,
        "minus": -math.inf,
        "text": "is left out",
        "odd [name]": 1,
        "a/b.c-d_e f": torch.tensor(3),
    }
    parameters = {f"group/{number}": number for number in range(250)} | {"long": "x" * 1000, "nested": {"a": None}}
    before = int(time.time() * 1000)
    for logger in (ours, theirs):
        logger.log_hyperparams(parameters)
        logger.log_metrics(values)
        logger.log_metrics({"a/b.c-d_e f": 4}, step=7)
    after = int(time.time() * 1000)
    assert ours.flush()
    assert repr(points(ours)) == repr(points(theirs))  # nan is not equal to itself
    assert len(points(ours)) == 7
    client = ours.experiment
    assert client.get_run(ours.run_id).data.params == client.get_run(theirs.run_id).data.params
    (logged,) = client.get_metric_history(ours.run_id, "tensor")
    assert before <= logged.timestamp <= after  # when it was logged, not when it was sent
    for logger in (ours, theirs):
        logger.finalize("failed")
    assert client.get_run(ours.run_id).info.status == client.get_run(theirs.run_id).info.status == "FAILED"


def test_synchronous_call_waits_for_the_server(server: Server) -> None:
    logger = MLFlowLogger("values", tracking_uri=server.address, synchronous=True)
    logger.log_metrics({"a": 1.0})
    assert points(logger) == {"a": [(0, 1.0)]}
    logger.finalize()


def test_same_point_twice_is_one(server: Server) -> None:
    """So that a batch of which nobody knows whether it has arrived can be sent again."""
    logger = MLFlowLogger("values", tracking_uri=server.address)
    twice = [Point("a", value, 1000, 1) for value in (0.1, math.nan, math.inf)]
    for _ in range(2):
        send(server.address, logger.run_id, twice)
    assert [len(history) for history in points(logger).values()] == [3]


def test_two_workers_log_one_run(server: Server) -> None:
    logger = MLFlowLogger("workers", tracking_uri=server.address)
    trainer = make_trainer("ddp", 2, logger=logger, log_every_n_steps=1, max_epochs=1)
    trainer.fit(Talkative(), loader(4), loader(4))
    client = LightningMLFlowLogger(tracking_uri=server.address).experiment
    experiment = client.get_experiment_by_name("workers")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == logger.run_id  # the caller's logger knows it, and would go on with it
    assert run.info.status == "FINISHED"
    assert [step for step, _ in points(logger)["step/loss"]] == list(range(13))


# --------------------------------------------------------------------------------------------- when the server fails


@dataclass(frozen=True)
class Outage:
    """Three runs during which the server was killed.

    The patient one had nothing to do until it was back, the ending one ended meanwhile, the hasty one before.
    """

    patient: MLFlowLogger
    ending: MLFlowLogger
    hasty: MLFlowLogger
    arrived: bool
    messages: list[str]
    warnings: list[str]
    file: Path


STEPS, KEYS = 100, 20


def log_half(logger: MLFlowLogger, first: int) -> None:
    for step in range(first, first + STEPS // 2):
        logger.log_metrics({f"metric {key}": step / 7 + key for key in range(KEYS)}, step)


EXPECTED: Points = {f"metric {key}": [(step, step / 7 + key) for step in range(STEPS)] for key in range(KEYS)}


@pytest.fixture(scope="module")
def outage(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    folder = tmp_path_factory.mktemp("outage")
    with_login = server.address.replace("http://", f"http://me:{PASSWORD}@")
    patient = MLFlowLogger("outage", tracking_uri=with_login, save_dir=str(folder))
    ending = MLFlowLogger("outage", tracking_uri=with_login, save_dir=str(folder))
    hasty = MLFlowLogger("outage", tracking_uri=with_login, save_dir=str(folder), flush_timeout=2)
    messages = Messages()
    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning) as warned:
        for module in (async_queue, mlflow):
            patch.setattr(module, "LONGEST_PAUSE", 1.0)
        async_queue.log.addHandler(messages)
        for logger in (patient, ending, hasty):
            log_half(logger, 0)
            assert logger.flush()
        server.freeze()
        for logger in (patient, ending, hasty):
            log_half(logger, STEPS // 2)
        server.kill()  # while the second halves are on their way
        hasty.log_metrics({"last": math.inf}, STEPS)
        hasty.finalize()
        patch.setattr(mlflow, "SAFE_AFTER", 0.1)
        starting = threading.Thread(target=server.start)
        starting.start()
        ending.finalize()
        starting.join()
        arrived = patient.flush(60)
        async_queue.log.removeHandler(messages)
    patient.finalize()
    (file,) = folder.glob("*.jsonl")
    yield Outage(patient, ending, hasty, arrived, messages.texts, [str(warning.message) for warning in warned], file)


class Messages(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def test_everything_arrives_once_when_the_server_is_started_again(outage: Outage) -> None:
    assert outage.arrived
    assert points(outage.patient) == EXPECTED
    assert outage.patient.experiment.get_run(outage.patient.run_id).info.status == "FINISHED"


def test_run_that_ends_meanwhile_has_everything_in_a_file_until_it_has_arrived(outage: Outage) -> None:
    assert points(outage.ending) == EXPECTED
    assert outage.ending.experiment.get_run(outage.ending.run_id).info.status == "FINISHED"
    warned = [text for text in outage.warnings if f"run {outage.ending.run_id} could not be sent" in text]
    assert len(warned) == 1  # a run may be killed any time
    assert outage.file.name == f"mlflow-unsent-{outage.hasty.run_id}.jsonl"  # the only one that is left


def test_outage_is_said_once_and_without_the_password(outage: Outage, server: Server) -> None:
    shown = f"MLflow at http://me:***@{server.host}"
    away = [text for text in outage.messages if text.startswith(f"{shown} is away: ")]
    back = [text for text in outage.messages if text.startswith(f"{shown} is back after ")]
    assert (len(away), len(back)) == (3, 1)  # three loggers; two of them have ended meanwhile
    assert len(outage.messages) == 4
    assert PASSWORD not in "".join(outage.messages + outage.warnings) + outage.file.read_text()


def test_what_was_not_sent_can_be_sent_later(outage: Outage, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    (warning,) = [text for text in outage.warnings if f"run {outage.hasty.run_id} could not be sent" in text]
    assert f'python -c "from itwinai.loggers.mlflow import resend; resend({str(outage.file)!r})"' in warning
    status = outage.hasty.experiment.get_run(outage.hasty.run_id).info.status
    assert status == "RUNNING"
    with pytest.raises(LoggerError, match="whose secret was not written .* MLFLOW_TRACKING_URI"):
        resend(outage.file)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    unsent = outage.file.read_text().count('"key"')
    assert resend(outage.file) == resend(outage.file) == unsent > 0
    assert points(outage.hasty) == {**EXPECTED, "last": [(STEPS, sys.float_info.max)]}  # as MLflow stores infinity
    assert outage.hasty.experiment.get_run(outage.hasty.run_id).info.status == "FINISHED"


def test_next_flush_takes_care_of_the_file_of_the_last(server: Server, tmp_path: Path) -> None:
    logger = MLFlowLogger("values", tracking_uri=server.address, save_dir=str(tmp_path))
    logger.log_metrics({"a": 1.0})
    assert logger.flush()
    server.freeze()
    logger.log_metrics({"a": 2.0}, 1)
    with pytest.warns(UserWarning, match="1 metrics .* could not be sent .*not sent within 0.1 s"):
        assert not logger.flush(0.1)
    assert len(list(tmp_path.iterdir())) == 1
    server.thaw()
    logger.log_metrics({"a": 3.0}, 2)
    assert logger.flush()
    assert points(logger) == {"a": [(0, 1.0), (1, 2.0), (2, 3.0)]}
    assert list(tmp_path.iterdir()) == []
    logger.finalize()


WAITING = """
import sys
from itwinai.loggers import mlflow
from itwinai.loggers.mlflow import MLFlowLogger

mlflow.SAFE_AFTER = 0.3
logger = MLFlowLogger("waiting", tracking_uri=sys.argv[1], save_dir=sys.argv[2])
logger.log_metrics({"before": 1.0})
assert logger.flush()
print("ready", flush=True)
input()
for step in range(7):
    logger.log_metrics({"a": 1.0}, step)
try:
    logger.finalize("success")
except KeyboardInterrupt:
    logger.finalize("failed")  # as lightning does then
"""


def test_wait_for_a_server_is_said_and_ctrl_c_ends_it(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WAITING, server.address, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdin is not None and process.stdout is not None
    lines: list[str] = []
    try:
        while "ready" not in lines:
            lines.append(process.stdout.readline().rstrip())
            assert process.poll() is None, lines
        server.freeze()
        process.stdin.write("\n")
        process.stdin.flush()
        while not lines[-1].startswith("Waiting up to "):
            lines.append(process.stdout.readline().rstrip())
            assert process.poll() is None, lines
        interrupted = time.monotonic()
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=60)
    finally:
        server.thaw()
        process.kill()
    (file,) = tmp_path.glob("mlflow-unsent-*.jsonl")
    assert process.returncode == 0, printed
    assert time.monotonic() - interrupted < 8  # not the 10 s of a run that has failed
    shown = f"for MLflow at {server.address} to take 7 metrics. To stop waiting, press Ctrl-C: they stay in {file}."
    assert lines[-1].endswith(shown)
    assert "7 metrics of run" in printed and "0 metrics" not in printed
    assert file.read_text().count('"key"') == 7
    assert resend(file) == 7


def test_folder_that_cannot_be_written_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = write_unsent(tmp_path / "file", "http://me:pw@host", "run", [Point("a", 1.0, 2, 3)])
    assert path.parent == tmp_path
    head, point = map(json.loads, path.read_text().splitlines())
    assert head == {"tracking_uri": "http://me:***@host", "run_id": "run"}
    assert point == {"key": "a", "value": 1.0, "timestamp": 2, "step": 3}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (503, "busy", AwayError),
        (429, '{"error_code": "REQUEST_LIMIT_EXCEEDED"}', AwayError),
        (404, "<html>default backend</html>", AwayError),  # of a proxy whose server is being started again
        (200, "<html>maintenance</html>", AwayError),
        (404, '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no run"}', LoggerError),
        (400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "name"}', LoggerError),
        (401, "You are not authenticated", LoggerError),
    ],
)
def test_which_answers_may_pass(status: int, body: str, expected: type[LoggerError]) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as answering:
        threading.Thread(target=answering.handle_request, daemon=True).start()
        with pytest.raises(LoggerError) as caught:
            send(f"http://127.0.0.1:{answering.server_port}", "run", [Point("a", 1.0, 0, 0)])
    assert type(caught.value) is expected


@pytest.mark.timeout(60)  # MLflow itself tries for minutes
def test_server_that_is_not_there_is_an_error_at_the_start() -> None:
    address = f"127.0.0.1:{free_port()}"
    logger = MLFlowLogger(tracking_uri=f"http://me:{PASSWORD}@{address}")
    with pytest.raises(LoggerError, match=f"answers at http://me:.*@{address}: .*refused.*mlflow server") as caught:
        make_trainer("auto", 1, logger=logger, max_epochs=1).fit(Regression(), loader(8))
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


@pytest.mark.timeout(60)  # MLflow itself tries for minutes
def test_files_are_not_waited_for_where_the_server_is_gone(server: Server, tmp_path: Path) -> None:
    logger = MLFlowLogger("files", tracking_uri=server.address, save_dir=str(tmp_path))
    files = [tmp_path / "run.html", tmp_path / "profile" / "steps.png"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text(file.name)
    hand_over([logger], files, tmp_path)
    artifacts = logger.experiment.list_artifacts(logger.run_id)
    assert {artifact.path for artifact in artifacts} == {"run.html", "profile"}
    began = time.monotonic()
    server.freeze()
    try:
        with pytest.warns(UserWarning, match=f"did not upload 2 files of {tmp_path}: MLflow at .* does not answer"):
            hand_over([logger], files, tmp_path)
    finally:
        server.thaw()
    assert time.monotonic() - began < 20
    logger.finalize()


def test_files_that_take_too_long_do_not_hold_up_the_run(tmp_path: Path) -> None:
    never = threading.Event()
    with pytest.raises(LoggerError, match=r"the store did not finish the upload within 0\.1 s"):
        within(0.1, lambda: never.wait() and None, "the store")
    never.set()
    with pytest.raises(ArithmeticError):
        within(10, lambda: print(1 / 0), "the store")


def test_run_that_was_deleted_is_an_error_of_the_fit(server: Server, tmp_path: Path) -> None:
    logger = MLFlowLogger("deleted", tracking_uri=server.address, save_dir=str(tmp_path))

    class Deleting(Talkative):
        def on_train_epoch_start(self) -> None:
            logger.experiment.delete_run(logger.run_id)

        def on_train_epoch_end(self) -> None:
            logger.flush()

    trainer = make_trainer("auto", 1, logger=logger, max_epochs=1, log_every_n_steps=1)
    with (
        pytest.warns(UserWarning, match="could not be sent .*must be in the 'active' state"),
        pytest.raises(LoggerError, match=f"rejects what run {logger.run_id} logs: .*'active' state"),
    ):
        trainer.fit(Deleting(), loader(8))
    (file,) = tmp_path.glob("*.jsonl")
    assert json.loads(file.read_text().splitlines()[1])["key"] == "step/loss"


def test_name_that_mlflow_refuses_is_an_error_of_the_next_call(server: Server, tmp_path: Path) -> None:
    logger = MLFlowLogger("values", tracking_uri=server.address, save_dir=str(tmp_path))
    logger.log_metrics({"x" * 300: 1.0})
    with pytest.raises(LoggerError, match="exceeds the maximum length"), pytest.warns(UserWarning):
        logger.flush()
    with pytest.raises(LoggerError, match="exceeds the maximum length"):
        logger.log_metrics({"a": 1.0})
    logger.finalize("failed")  # as the trainer does then; the error is on its way already


# ----------------------------------------------------------------------------------------------------- trained models


@pytest.fixture(scope="module")
def logged(server: Server) -> tuple[str, Transferred]:
    """The run of a short fit that has logged its module, and the module."""
    logger = MLFlowLogger("models", tracking_uri=server.address)
    module = Transferred(4, bias=0.5)
    data = DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4)
    make_trainer("auto", 1, logger=logger, callbacks=[LoggingCallback(model=True)], max_epochs=1).fit(module, data)
    return logger.run_id, module


X = torch.linspace(-1, 1, 12).reshape(3, 4)


def test_logged_model_is_served(logged: tuple[str, Transferred], server: Server, tmp_path: Path) -> None:
    run_id, module = logged
    port = free_port()
    command = [
        "mlflow",
        "models",
        "serve",
        "-m",
        f"runs:/{run_id}/model",
        "--env-manager",
        "local",
        "--port",
        str(port),
    ]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.address, "PYTHONPATH": str(REPOSITORY)}
    output = tmp_path / "serving.txt"
    with output.open("wb") as file:
        serving = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port)],
            cwd=tmp_path,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for_answer(f"{address}/ping", serving, output)
        answer = requests.post(f"{address}/invocations", json={"inputs": X.tolist()}, timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(serving.pid, signal.SIGKILL)
        serving.wait()
    assert answer.ok, answer.text + output.read_text()
    torch.testing.assert_close(torch.tensor(answer.json()["predictions"]), module(X).detach())
    assert_no_process_left(serving.pid)


def test_predictor_loads_what_was_logged(
    logged: tuple[str, Transferred], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the run, from the registry and from a folder; of the class that the model names, and nothing unpickled."""
    run_id, module = logged
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    registered = mlflow_api.register_model(f"runs:/{run_id}/model", "discharge")
    local = mlflow_api.artifacts.download_artifacts(artifact_uri=f"runs:/{run_id}/model", dst_path=str(tmp_path))
    for source in (f"runs:/{run_id}/model", f"models:/discharge/{registered.version}", local):
        with Predictor.load(source, method="forward") as predictor:
            torch.testing.assert_close(predictor(X), module(X).detach())
            assert predictor.module.hparams == {"width": 4, "bias": 0.5}


def test_model_that_is_pickled_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mlflow_api.pytorch.save_model(Transferred(4), tmp_path / "model", **_pickled())
    with pytest.raises(CheckpointError, match="can execute any code. .* pass weights_only=False"):
        Predictor.load(tmp_path / "model")
    with Predictor.load(tmp_path / "model", weights_only=False) as predictor:
        assert predictor((X,)).shape == (3, 3)
    with pytest.raises(MissingCheckpointError, match="models:/NAME/VERSION"):
        Predictor.load("models:/nothing/1")


def wait_for_answer(address: str, process: subprocess.Popen[bytes], output: Path) -> None:
    until = time.monotonic() + 120
    while True:
        with suppress(requests.ConnectionError):
            if requests.get(address, timeout=60).ok:
                return
        assert process.poll() is None and time.monotonic() < until, output.read_text()
        time.sleep(0.1)


# ---------------------------------------------------------------------------------------------------- without a server


def test_no_server_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = MLFlowLogger(log_model="all")
    checkpoints = ModelCheckpoint(save_top_k=-1, every_n_epochs=1)  # in the background
    options = {"callbacks": [checkpoints], "enable_checkpointing": True, "log_every_n_steps": 1, "max_epochs": 3}
    make_trainer("auto", 1, logger=logger, **options).fit(Talkative(), loader(8))
    assert "MLFLOW_TRACKING_URI" not in os.environ  # the next logger without an address has its own folder
    errors = capfd.readouterr().err
    assert not re.search("mlflow.store|alembic", errors), errors
    assert [step for step, _ in points(logger)["step/loss"]] == list(range(39))
    assert logger.experiment.get_run(logger.run_id).info.status == "FINISHED"
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlartifacts", "mlruns"}
    saved = sorted(path.name for path in (tmp_path / "mlruns").rglob("*.ckpt"))
    assert len(saved) == 3
    assert sorted(path.name for path in (tmp_path / "mlartifacts").rglob("*.ckpt")) == saved


def test_only_rank_0_touches_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun every worker makes the logger, and tables that two make at the same time are an error."""
    variables = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "run"}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    logger = MLFlowLogger(save_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert logger.save_dir == str(tmp_path / "mlruns")  # the same as on rank 0
