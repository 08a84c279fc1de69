"""From a config, a site and flags to what a job asks for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from itwinai.cli.main import main
from itwinai.errors import ConfigurationError
from itwinai.slurm.plan import plan_job
from itwinai.slurm.script import JobScript
from itwinai.slurm.site import Site, find_site, site_files
from itwinai.slurm.site_proposal import proposal
from itwinai.slurm.times import seconds_of

CONFIG = """\
trainer: {devices: 2, strategy: %s}
model: {class_path: tests.support.tuned.Regression}
slurm:
  account: me
  time: 12:00:00
  modules: [CUDA/12.4]
  sbatch: {nice: 7}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG % "ddp")
    return path


def planned(config: Path, *arguments: str, command: str = "fit", **given: Any) -> JobScript:
    options = {name: given.pop(name) for name in ("site", "axes") if name in given}
    return plan_job(command, ["-c", str(config), *arguments], given, **options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"time": "2"}, "the time limit 2 is too short for the signal to save, which SLURM sends 120 s before it"),
        ({"time": "00:03:00"}, "the time limit 00:03:00 is too short"),
        ({"time": "00:03:01"}, ""),
        ({"time": "2", "signal": "B:USR1@30"}, ""),
        ({"time": "00:30:00", "signal": "B:USR1@1800"}, "which SLURM sends 1800 s before it"),
        ({"time": "2", "max_requeues": 0}, ""),  # nothing is signalled
    ],
)
def test_a_time_limit_that_leaves_no_time_is_told(
    config: Path, options: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    caveat = planned(config, **options).caveat()
    assert told in caveat and bool(told) == bool(caveat)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert main(["slurm", "-c", str(config), *flags]) == 0
    printed = capsys.readouterr()
    assert ("itwinai: warning: the time limit" in printed.err) == bool(told) and printed.out.startswith("#!/bin/bash")


def test_flags_win_over_the_config_which_wins_over_the_site(config: Path) -> None:
    (config.parent / "sites").mkdir()
    (config.parent / "sites" / "ours.yaml").write_text(
        "gpus_per_node: 4\ncpus_per_node: 64\nmax_time: 1-00:00:00\naccount: theirs\nmodules: [GCC]\nmem: 8G\n"
        "environment: {NCCL_SOCKET_IFNAME: ib0}\nsbatch: {exclusive: true, nice: 1}\n"
    )
    text = planned(config, site="ours", nodes=2, account="flag", mem="16G").text()
    directives = re.findall(r"^#SBATCH (.*)", text, re.MULTILINE)
    assert set(directives) >= {
        *("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=16", "--account=flag"),
        *("--time=12:00:00", "--nice=7", "--exclusive", "--mem=16G", "--requeue", "--signal=B:USR1@120"),
    }
    assert "module load CUDA/12.4 || exit" in text and "export NCCL_SOCKET_IFNAME=ib0" in text
    assert "srun --nodes=2 --ntasks=8 --ntasks-per-node=4 --cpus-per-task=16" in text
    assert "--trainer.devices=4 --trainer.num_nodes=2" in text
    assert "--requeue" not in planned(config, site="ours", max_requeues=0).text().replace("--max-requeues", "")


def test_one_script_for_each_kind(config: Path) -> None:
    kinds = {
        strategy: planned(config, "--strategy", strategy, nodes=2, tasks_per_node=2, cpus_per_task=3)
        for strategy in ("ddp", "deepspeed_stage_3", "horovod", "ray", "ray_horovod")
    }
    assert [one.kind for one in kinds.values()] == ["srun", "srun", "srun", "ray", "ray"]
    ray = kinds["ray"].text()
    assert "srun" not in ray and "--ntasks-per-node=1" in ray and "--cpus-per-task=6" in ray
    assert planned(config, "--strategy", "ray", nodes=1).kind == "single"
    tune = planned(config, command="tune", nodes=2)
    assert tune.kind == "single" and tune.max_requeues == 0 and "--trainer.devices" not in tune.text()
    script = plan_job("python", ["my train.py", "--a", "$(b)"], {"nodes": 2})
    assert script.name == "itwinai-my train" and "'my train.py' --a $'\\x24(b)'" in script.text()


def test_a_container_and_the_gpus_of_its_vendor(config: Path) -> None:
    text = planned(config, site="amd-slingshot", nodes=2, container="/images/a b.sif", bind=["/data"]).text()
    assert "apptainer exec --rocm --bind /data '/images/a b.sif' python -m itwinai.cli.main fit" in text
    with pytest.raises(ConfigurationError, match="within a container"):
        planned(config, "--strategy", "ray", nodes=2, container="image.sif")


def test_an_array_has_a_job_for_each_combination(config: Path) -> None:
    script = planned(config, axes={"model.lr": [0.1, 0.2], "model.width": [4, 8]}, nodes=1)
    assert len(script.variants) == 4 and "#SBATCH --array=0-3" in script.text()
    assert script.variants[2][:2] == ["--model.lr=0.2", "--model.width=4"]
    assert len({words[-1] for words in script.variants}) == 4  # each has its own folder
    with pytest.raises(ConfigurationError, match="an array of their own"):
        planned(config, axes={"trainer.strategy": ["ddp", "ray"]})


@pytest.mark.parametrize(
    ("arguments", "given", "told"),
    [
        (["--devices", "4"], {"tasks_per_node": 2}, "--trainer.devices 4 does not fit the job, which has 2 workers"),
        (["--trainer.accelerator=gpu"], {}, "the job asks for no GPUs"),
        ([], {"nodse": 2}, "there is no option 'nodse'. Did you mean 'nodes'?"),
        ([], {"nodes": 0}, "nodes must be a whole number of at least 1; got 0"),
        ([], {"sbatch": {"ntasks": 4}}, "ntasks is set from tasks_per_node"),
        ([], {"site": "workstation", "nodes": 2}, "allows 1 nodes"),
        ([], {"site": "workstation", "gpus_per_node": 3}, "has 2 GPUs on each node"),
        ([], {"site": "workstation", "time": "8-00:00:00"}, "allows jobs of 7-00:00:00"),
        ([], {"site": "cpu-clster"}, "Did you mean 'cpu-cluster'?"),
        ([], {"environment": {"A B": "c"}}, "'A B' is not a name of an environment variable"),
    ],
)
def test_what_contradicts_itself_is_told_before_anything_is_queued(
    config: Path, arguments: list[str], given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        planned(config, *arguments, **given)


def test_sites_are_found_beside_the_config_among_yours_and_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    yours, beside = tmp_path / "home" / "itwinai" / "sites", tmp_path / "sites"
    for folder, account in ((yours, "yours"), (beside, "beside")):
        folder.mkdir(parents=True)
        (folder / "ours.yaml").write_text(f"account: {account}\nscratch: $SCRATCH/jobs\n")
    assert set(site_files()) == {"amd-slingshot", "cpu-cluster", "nvidia-infiniband", "workstation", "ours"}
    assert find_site("ours").options == {"account": "yours"}
    found = find_site("ours", tmp_path)
    assert found.options == {"account": "beside"} and found.scratch == "/scratch/me/jobs"
    (beside / "ours.yaml").write_text("accuont: x\n")
    with pytest.raises(ConfigurationError, match=r"ours.yaml: a site has no key 'accuont'. Did you mean 'account'\?"):
        find_site("ours", tmp_path)
    (beside / "ours.yaml").write_text("partitions: {long: {max_tiem: 1}}\n")
    with pytest.raises(ConfigurationError, match="Did you mean 'max_time'"):
        find_site("ours", tmp_path)


def test_a_plugin_brings_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "machines/__init__.py": "",
        "machines/large.yaml": "nodes: 7\n",
        "machines-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: machines\nVersion: 1\n",
        "machines-1.dist-info/entry_points.txt": "[itwinai.sites]\nmachines = machines\nbroken = no_such_package\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(UserWarning, match="The site 'broken' of machines 1 cannot be used"):
        assert find_site("large").options == {"nodes": 7}


@pytest.mark.parametrize(
    ("listed", "kind", "expected"),
    [
        ("a*|up|2-00:00:00|128|(null)|90|x\n", "cpu-cluster", ("a", "2-00:00:00", 0, 128)),
        (
            "cpu|up|1:00:00|64|(null)|9|x\ngpu*|up|1-00:00:00|72|gpu:a100:4(S:0-1),nvme:1|40|x\n",
            *("nvidia-infiniband", ("gpu", "1-00:00:00", 4, 72)),
        ),
        ("gpu|up|infinite|128+|gpu:mi250:8|99|x\n", "amd-slingshot", ("gpu", "UNLIMITED", 8, 128)),
        ("local*|up|infinite|16|gpu:2|1|x\n", "workstation", ("local", "UNLIMITED", 2, 16)),
    ],
)
def test_a_site_is_proposed_from_what_sinfo_lists(listed: str, kind: str, expected: tuple[Any, ...]) -> None:
    site = proposal(listed, has_infiniband=True)
    assert site.name == kind
    assert (site.options["partition"], site.max_time, site.gpus_per_node, site.cpus_per_node) == expected
    again = Site.from_mapping(site.name, yaml.safe_load(site.text()))  # what is printed is a site
    assert again.options == site.options and again.partitions == site.partitions


def test_times_are_read_as_slurm_reads_them() -> None:
    times = {"30": 1800, "1:30": 90, "12:00:00": 43200, "2-12": 216000, "1-00:30": 88200, "1-00:00:01": 86401}
    assert {text: seconds_of(text) for text in times} == times
    assert seconds_of("UNLIMITED") == float("inf")
    with pytest.raises(ConfigurationError, match="'an hour' is not a time"):
        seconds_of("an hour")


def test_the_command_prints_the_script_and_refuses_flags_that_no_command_has(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["slurm", "-c", str(config), "--nodes", "2", "--tasks-per-node", "2", "--env", "A=b=c"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("#!/bin/bash\n#SBATCH") and "export A=b=c" in printed
    assert main(["slurm", "-c", str(config), "--nods", "2"]) == 1
    assert "Did you mean '--nodes'?" in capsys.readouterr().err
    assert main(["slurm", "sites"]) == 0
    assert "nvidia-infiniband  nodes with 4 NVIDIA GPUs" in capsys.readouterr().out
