"""``itwinai doctor`` with real trials; with packages that are broken, missing, or never come back."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import torch

import itwinai
from itwinai.cli import doctor
from itwinai.cli.doctor.child_process import Child, Outcome
from itwinai.cli.doctor.report import (
    format_end,
    format_header,
    format_installed,
    format_machine,
    format_trial,
    name_width,
)
from itwinai.cli.doctor.strategy_check import Trial, judge, last_lines, without_launcher
from itwinai.cli.doctor.strategy_check_worker import Measured, measure_all_reduce, weight_difference

REPOSITORY = Path(itwinai.__file__).parents[1]
COMMAND = [sys.executable, "-m", "itwinai.cli.main", "doctor"]

# A package that, when it is imported, starts a process with a session of its own that minds no SIGTERM, and hangs.
HANGING = """
import os, signal, subprocess, sys
code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
with open(os.environ["PIDS"], "a") as pids:
    pids.write(f"{os.getpid()} {child.pid}\\n")
signal.pause()
"""

# Hides a package as if it were not installed.
HIDING = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
sys.meta_path.insert(0, Hide())
"""

TORCHRUN = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "0",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29499",
    "TORCHELASTIC_RUN_ID": "none",
}


def package(folder: Path, name: str, code: str) -> None:
    """Write a package of one file."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """Return this process's environment with a folder of packages that come before the installed ones."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)]), **changes}


def run(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``itwinai doctor`` to its end."""
    return subprocess.run([*COMMAND, *arguments], env=env, capture_output=True, text=True)


def read_pids(file: Path) -> list[int]:
    """Return the processes that hanging packages have written down."""
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def assert_gone(pids: Sequence[int], limit: float = 10) -> None:
    """Check that processes have ended, or end within a moment: who adopted them has to reap them."""
    end = time.monotonic() + limit
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < end, [psutil.Process(pid).cmdline() for pid in pids if psutil.pid_exists(pid)]
        time.sleep(0.05)


# --- whole runs ---------------------------------------------------------------------------------------------


def test_working_strategies_are_measured_whoever_launched_the_command(tmp_path: Path) -> None:
    done = run("--strategies", "ddp,horovod", "--json", "--timeout", "250", env=environment(tmp_path, **TORCHRUN))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    record = json.loads(done.stdout)
    assert record["ok"] is True
    assert record["installed"]["torch"]["version"] == torch.__version__
    assert record["installed"]["horovod"]["controllers"]
    assert set(record["installed"]["horovod"]["controllers"]) <= set(record["installed"]["horovod"]["operations"])
    machine = record["machine"]
    assert machine["launcher"] == {"name": "torchrun", "workers": 4}
    assert machine["cores"]["usable"] == len(os.sched_getaffinity(0))
    assert 0 < machine["memory"]["available"] <= machine["memory"]["total"] * 1.01
    assert [trial["strategy"] for trial in record["strategies"]] == ["ddp", "horovod"]
    for trial in record["strategies"]:
        assert trial["status"] == "works"
        assert trial["workers"] == 2
        assert 1 < trial["latency_us"] < 1e6
        assert 1e-4 < trial["bandwidth_gb_s"] < 1e3
        assert trial["bus_bandwidth_gb_s"] == pytest.approx(trial["bandwidth_gb_s"])
        assert 0.1 < trial["start_s"] < 120
        assert 0 <= trial["weight_difference"] < 1e-6


def test_broken_package_fails_and_its_cause_is_shown(tmp_path: Path) -> None:
    package(tmp_path, "horovod", "raise ImportError('libmpi.so.40: cannot open shared object file')")
    package(tmp_path, "wandb", "raise RuntimeError('made for another Python')")
    done = run("--strategies", "horovod", env=environment(tmp_path))
    assert done.returncode == 1
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    row = next(line.split(maxsplit=2) for line in lines if line.startswith("  horovod") and " NO " in line)
    assert row == ["horovod", "NO", "ImportError: libmpi.so.40: cannot open shared object file"]
    cause = lines[lines.index("horovod: ImportError: libmpi.so.40: cannot open shared object file") + 1 :]
    assert any("in initialize" in line for line in cause)  # the worker's traceback
    assert "    ImportError: libmpi.so.40: cannot open shared object file" in cause
    assert any(line.startswith("  wandb") and "RuntimeError: made for another Python" in line for line in lines)
    assert lines[-1] == "Does not work: horovod, wandb."


def test_missing_package_is_not_a_failure_and_shows_its_install_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDING)
    done = run("--strategies", "ray", env=environment(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("  ray ")]
    assert rows == ["not installed: pip install 'itwinai[ray]'"] * 2  # as a package, and as a strategy


def test_hanging_trial_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    package(tmp_path, "torch", HANGING)
    pids, temporary = tmp_path / "pids", tmp_path / "tmp"
    temporary.mkdir()
    env = environment(tmp_path, PIDS=str(pids), TMPDIR=str(temporary))
    done = run("--strategies", "ddp", "--timeout", "4", env=env)
    assert done.returncode == 1
    assert "  ddp       NO     did not end within 4 s" in done.stdout.splitlines()
    assert "DOES NOT WORK: import torch: did not end within 4 s" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert len(read_pids(pids)) >= 4  # of the look at what is installed, and of the trial
    assert_gone(read_pids(pids))
    assert list(temporary.iterdir()) == []


def test_interrupted_trial_leaves_no_worker_behind(tmp_path: Path) -> None:
    package(tmp_path, "horovod", f"import os\nif 'LOCAL_RANK' in os.environ:\n    exec({HANGING!r})\n")
    pids, temporary = tmp_path / "pids", tmp_path / "tmp"
    temporary.mkdir()
    env = environment(tmp_path, PIDS=str(pids), TMPDIR=str(temporary))
    line = [*COMMAND, "--strategies", "horovod", "--timeout", "250"]
    process = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        end = time.monotonic() + 200
        while len(read_pids(pids)) < 4:  # both workers hang, each with a process of its own
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert output.endswith("error: interrupted; no process was left behind\n")
    assert "Traceback" not in output
    assert_gone(read_pids(pids))
    assert list(temporary.iterdir()) == []


# --- parts --------------------------------------------------------------------------------------------------


def test_import_and_check_of_names_load_nothing_heavy() -> None:
    code = (
        "import sys; from itwinai.cli.doctor import strategy_names; strategy_names('ddp'); "
        "print([name for name in ('torch', 'lightning', 'ray', 'horovod', 'deepspeed') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_unknown_strategy_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        doctor.main(["--strategies", "ddp,horovdo"])
    assert refused.value.code == 2
    assert "there is no strategy 'horovdo' to try. Did you mean 'horovod'?" in capsys.readouterr().err
    assert doctor.strategy_names("ray, DDP,ray") == ["ray", "ddp"]
    with pytest.raises(argparse.ArgumentTypeError, match="names no strategy"):
        doctor.strategy_names(",")
    for timeout in ("0", "-3", "nan", "soon"):
        with pytest.raises(SystemExit):
            doctor.main(["--timeout", timeout])


def test_crashed_child_is_told_from_one_without_a_result(tmp_path: Path) -> None:
    code = "import os, signal; print('it was at step 3', flush=True); {}"
    outcomes = {}
    for name, last in {"crash": "os.kill(os.getpid(), signal.SIGSEGV)", "exit": "os._exit(3)", "end": "pass"}.items():
        with Child([sys.executable, "-c", code.format(last)], tmp_path) as child:
            outcomes[name] = child.outcome(60, lambda: None)
    problems = {name: outcome.problem for name, outcome in outcomes.items()}
    assert problems == {
        "crash": "killed by SIGSEGV",
        "exit": "ended with exit code 3",
        "end": "ended without a result",
    }
    trial = judge("ddp", outcomes["crash"])
    assert (trial.status, trial.error, trial.cause[0]) == ("fails", "killed by SIGSEGV", "it was at step 3")


def test_weights_that_differ_from_one_process_fail() -> None:
    reference = {"a": torch.tensor([1.0, -4.0]), "b": torch.tensor([0.5])}
    assert weight_difference(reference, reference) == 0
    assert weight_difference({**reference, "a": torch.tensor([1.0, -3.0])}, reference) == pytest.approx(0.25)
    assert weight_difference({"a": reference["a"]}, reference) == float("inf")
    lost = weight_difference({**reference, "b": torch.tensor([torch.nan])}, reference)
    measured = {"workers": 2, "device": "cpu", "latency_us": 50.0, "bandwidth_gb_s": 1.0, "bus_bandwidth_gb_s": 1.0}
    for difference, status in {5e-8: "works", 2e-5: "fails", lost: "fails"}.items():
        record = {"measured": {**measured, "start_s": 4.0, "weight_difference": difference}}
        assert judge("ddp", Outcome(record, "", "")).status == status


def test_wrong_sum_fails() -> None:
    def tripled(tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        return tensor.mul_(3)

    device = torch.device("cpu")
    measured = measure_all_reduce(tripled, rank=0, workers=2, device=device)  # 1 + 2 = 3
    assert measured["seconds"] > measured["latency"] > 0
    with pytest.raises(RuntimeError, match="rank 1: 1 of 1 sums over 2 workers are wrong"):
        measure_all_reduce(tripled, rank=1, workers=2, device=device)


def test_table_of_all_outcomes() -> None:
    measured = Measured(2, "cpu", 87.4, 1.234, 1.234, 3.21, 6e-8)
    trials = [
        Trial("ddp", measured),
        Trial("deepspeed_stage_2", error="WorkerError: rank 1 " + "x" * 80, cause=("last words",)),
        Trial("horovod", install="itwinai install horovod"),
    ]
    width = name_width([trial.strategy for trial in trials])
    table = [format_header(width), *(format_trial(trial, width) for trial in trials)]
    assert "\n".join(table).splitlines() == [
        "  strategy           works    latency    bandwidth     start",
        "  ----------------------------------------------------------",
        "  ddp                yes        87 us    1.23 GB/s     3.2 s",
        f"  deepspeed_stage_2  NO     WorkerError: rank 1 {'x' * 47}...",
        "  horovod            not installed: itwinai install horovod",
    ]
    end = format_end(trials, ["wandb"]).splitlines()
    assert end[-4:] == [
        f"deepspeed_stage_2: WorkerError: rank 1 {'x' * 80}",
        "    last words",
        "",
        "Does not work: wandb, deepspeed_stage_2.",
    ]
    assert format_end(trials[::2], []).splitlines()[-1] == "All that was tried works."


def test_machine_with_gpus_in_a_job_without_a_resolvable_name() -> None:
    installed = {
        "torch": {
            "version": "2.13.0+cu130",
            "cuda": "13.0",
            "rocm": None,
            "gpus": [{"name": "NVIDIA H100 80GB HBM3", "bytes": 79 * 2**30}],
        }
    }
    assert format_installed(installed).splitlines()[1:3] == [
        "  torch    2.13.0+cu130; CUDA 13.0",
        "    GPU 0  NVIDIA H100 80GB HBM3, 79.0 GiB",
    ]
    machine = {
        "host": {"name": "node7", "address": None, "unresolved": "Name or service not known"},
        "cores": {"usable": 8, "total": 64},
        "memory": {"total": 64 * 2**30, "available": None},
        "shm": {"total": 64 * 2**20, "free": 63 * 2**20},
        "launcher": {"name": "srun", "workers": 4},
        "slurm": {"job_id": "123", "nnodes": "2", "nodelist": "node[7-8]"},
    }
    lines = format_machine(machine).splitlines()
    assert lines[1].startswith("  host      node7, DOES NOT RESOLVE (Name or service not known)")
    assert lines[2] == "  cores     8 usable of 64"
    assert lines[4].startswith("  /dev/shm  64 MiB, 63 MiB free; small")
    assert lines[5].startswith("  launcher  srun, 4 workers")
    assert lines[6] == "  SLURM     job 123, nodes node[7-8]"


def test_environment_of_a_trial_forgets_the_outer_launcher_only() -> None:
    outer = {
        **TORCHRUN,
        "HOROVOD_RANK": "0",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "PMI_RANK": "0",
        "SLURM_STEP_ID": "0",
    }
    own = {"HOROVOD_FUSION_THRESHOLD": "1", "SLURM_JOB_ID": "7", "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "head:6379"}
    assert without_launcher({**outer, **own}) == own


def test_last_lines_leave_out_colours_and_underlines() -> None:
    text = "first\n\x1b[36m(rank 0)\x1b[0m step\n\n    call()\n    ^^^^~~\nmany\rlast " + "x" * 300
    assert last_lines(text, limit=4, width=10) == ("(rank 0...", "    call()", "many", "last xx...")
