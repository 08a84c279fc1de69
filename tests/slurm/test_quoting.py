"""Values in job scripts execute nothing and arrive unchanged."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itwinai.errors import ConfigurationError, SlurmError
from itwinai.slurm.commands import ask, check_script, submit_script
from itwinai.slurm.options import JobOptions
from itwinai.slurm.quoting import bash_word, sbatch_line
from itwinai.slurm.script import JobScript
from itwinai.slurm.site import Site
from tests.conftest import require_programs
from tests.support.slurm import missing_programs, slurm_cluster

NASTY = [
    "$(touch owned)",
    "`touch owned`",
    "'",
    '"',
    "\\",
    "\n",
    "\r\n",
    "a b",
    "#x",
    "*",
    "~",
    "!!",
    "é",
    "%j",
    "-n",
    "",
]
TEXTS = st.lists(
    st.sampled_from(NASTY) | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=4
).map("".join)
LINES = TEXTS.filter(lambda text: text.isprintable())


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    require_programs(missing_programs(), "apt-get install slurm-wlm munge")
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@given(st.lists(TEXTS, min_size=1, max_size=20))
@settings(max_examples=60)
def test_words_of_bash_are_the_texts(texts: list[str]) -> None:
    script = "printf '%s\\0' " + " ".join(bash_word(text) for text in texts)
    printed = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C"}).stdout
    assert printed.decode().split("\0")[:-1] == texts


@given(st.lists(TEXTS, max_size=5), TEXTS, st.lists(TEXTS, max_size=3), TEXTS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_script_executes_nothing_and_hands_on_all(
    tmp_path: Path, command: list[str], value: str, variant: list[str], folder: str
) -> None:
    python = tmp_path / "a $(touch owned)" / "python"
    python.parent.mkdir(exist_ok=True)
    python.write_text('#!/bin/bash\nprintf "%s\\0" "$@" "$VALUE" "$ITWINAI_JOB_RESULT"\n')
    python.chmod(0o755)
    options = JobOptions(python=str(python), environment={"VALUE": value})
    script = JobScript("job", "srun", command, options, variants=[[], variant], checks_nodes=False)
    (tmp_path / "job.sh").write_bytes(script.text().encode())
    variables = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    job = ["bash", "job.sh", f"no such {folder}"]
    ran = subprocess.run(job, capture_output=True, check=True, cwd=tmp_path, env=variables)
    printed = ran.stdout.decode().split("\0")[:-1]
    words = printed[printed.index(str(python)) + 1 :]
    assert words == [*command, *variant, value, f"no such {folder}/result-1.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"job.sh", "a $(touch owned)"}


@given(
    st.fixed_dictionaries(
        {
            "command": st.lists(TEXTS, min_size=1, max_size=4),
            "modules": st.lists(TEXTS, max_size=2),
            "environment": st.dictionaries(st.sampled_from(["A", "NCCL_SOCKET_IFNAME", "_b"]), TEXTS),
            "python": st.sampled_from(["venv", "conda", "container", "python"]),
            "of_python": TEXTS.map("/opt/{}/python".format),
            "kind": st.sampled_from(["srun", "ray", "single"]),
            "variants": st.lists(st.lists(TEXTS, max_size=2), max_size=2),
            "requeues": st.sampled_from([0, 3]),
            "sbatch": st.fixed_dictionaries(
                {}, optional={"comment": LINES, "job-name": LINES, "time": st.just("1:00")}
            ),
        }
    )
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@pytest.mark.usefixtures("slurm")
def test_every_script_is_accepted_by_bash_shellcheck_and_slurm(tmp_path: Path, drawn: dict[str, Any]) -> None:
    require_programs([name for name in ("shellcheck",) if shutil.which(name) is None], "apt-get install shellcheck")
    options = JobOptions(
        nodes=2,
        tasks_per_node=2,
        modules=drawn["modules"],
        environment=drawn["environment"],
        sbatch=drawn["sbatch"],
        **{drawn["python"]: drawn["of_python"]},
    )
    site = Site("drawn", address_suffix="-ib")
    script = JobScript("drawn", drawn["kind"], drawn["command"], options, site, drawn["variants"], drawn["requeues"])
    path = tmp_path / "job.sh"
    path.write_bytes(script.text().encode())
    for command in (["bash", "-n"], ["shellcheck"]):
        checked = subprocess.run([*command, str(path)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert checked.returncode == 0, checked.stdout + checked.stderr + script.text()
    check_script(str(path))


@pytest.mark.usefixtures("slurm")
def test_what_slurm_reads_from_a_script_is_what_was_given(tmp_path: Path) -> None:
    path = tmp_path / "job.sh"
    for value in (text for text in [*NASTY, 'x\\"', "--nodes=7", "a;b|c", "ends\\"] if text.isprintable() and text):
        name, comment = sbatch_line("job-name", value), sbatch_line("comment", value)
        path.write_text(f"#!/bin/bash\n{name}\n{comment}\n{sbatch_line('output', '/dev/null')}\ntrue\n")
        job = submit_script(["--hold"], str(path))
        try:
            assert [ask("squeue", "-h", "-j", job, "-o", form).rstrip("\n") for form in ("%j", "%k")] == [value, value]
        finally:
            ask("scancel", job)


def test_line_breaks_are_refused_where_a_line_cannot_hold_them() -> None:
    with pytest.raises(ConfigurationError, match="option comment holds a line break"):
        sbatch_line("comment", "a\n#SBATCH --nodes=9")
    with pytest.raises(ConfigurationError, match="at most 8000"):
        sbatch_line("comment", "a" * 9000)


@pytest.mark.usefixtures("slurm")
def test_unknown_options_are_found_before_anything_is_queued(tmp_path: Path) -> None:
    path = tmp_path / "job.sh"
    for options, told in (
        ({"no-such-option": "1"}, "unrecognized option '--no-such-option=1'"),
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"time": "soon"}, "Invalid --time"),
    ):
        path.write_text(JobScript("job", "srun", ["x"], JobOptions(sbatch=options)).text())
        with pytest.raises(SlurmError, match=told):
            check_script(str(path))
    assert ask("squeue", "-h") == ""
