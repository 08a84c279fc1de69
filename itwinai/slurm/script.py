"""The text of a job script."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from itwinai.slurm.options import JobOptions
from itwinai.slurm.quoting import bash_word, bash_words, sbatch_line
from itwinai.slurm.requeue import CHAIN
from itwinai.slurm.result import RESULT
from itwinai.slurm.site import NO_SITE, Site
from itwinai.slurm.times import seconds_of

JobKind = Literal["srun", "ray", "single"]
"""How a job starts its workers: by srun, a task for each; by a Ray cluster on its nodes; or its command does so."""

NOTICE = 120
"""Seconds before the time limit when SLURM signals a run to save: it may signal up to 60 s earlier than asked."""

_EARLIER = 60


@dataclass(frozen=True)
class JobScript:
    """A job script, and what it is made from.

    Attributes:
        name: of the job.
        kind: how its workers are started.
        command: arguments of Python.
        options: what the job asks for.
        site: where it runs.
        variants: further arguments of each task of an array; empty for a job that is not one.
        max_requeues: how often the job is queued again when it was interrupted.
        chain: number of jobs that follow each other, each resuming where the one before was interrupted.
        checks_nodes: whether the nodes are checked before the workers start.
        only_checks: check the nodes, and start no workers.
    """

    name: str
    kind: JobKind
    command: Sequence[str]
    options: JobOptions
    site: Site = NO_SITE
    variants: Sequence[Sequence[str]] = ()
    max_requeues: int = 0
    chain: int = 1
    checks_nodes: bool = True
    only_checks: bool = False

    @property
    def is_array(self) -> bool:
        """Whether it is an array."""
        return bool(self.variants) or "array" in self.options.sbatch

    def caveat(self) -> str:
        """Return what to say of a time limit that leaves no time between the start and the signal to save; or nothing.

        SLURM may signal 60 s earlier than asked.
        """
        given = self.options.sbatch
        saves = bool(self.max_requeues or self.chain > 1 or given.get("signal"))
        signal, time = given.get("signal") or f"B:USR1@{NOTICE}", given.get("time")
        lead = int(found[1]) if (found := re.search(r"@(\d+)", signal)) else 60
        if not saves or time is None or seconds_of(time) > lead + _EARLIER:
            return ""
        return (
            f"the time limit {time} is too short for the signal to save, which SLURM sends {lead} s before it, or up "
            f"to {_EARLIER} s earlier: the run is stopped while it starts. Give more time (--time), or a later "
            "signal (--signal B:USR1@30)."
        )

    def text(self) -> str:
        """Return the script.

        Raises:
            ConfigurationError: a line of options cannot hold a value.
        """
        parts = [
            "#!/bin/bash",
            *self._directives(),
            "",
            "# Arguments, which may be left out: the folder for the results, and the place of the job in a chain.",
            "# shellcheck disable=SC1090,SC1091,SC2288,SC2289",
            *self._results(),
            "",
            *self._environment(),
            "",
            *self._variants(),
            *self._start(),
        ]
        return "\n".join(parts) + "\n"

    def _directives(self) -> Iterator[str]:
        options, tasks, cpus = self.options, self.options.workers_per_node, self.options.cpus_per_task
        given = dict(options.sbatch)
        yield sbatch_line("job-name", given.pop("job-name", None) or self.name)
        yield sbatch_line("nodes", str(options.nodes))
        if self.kind == "srun":
            yield sbatch_line("ntasks-per-node", str(tasks))
        else:  # one process, whose workers share what a node has for them
            yield sbatch_line("ntasks-per-node", "1")
            cpus = tasks * (cpus or 1)
        if cpus is not None:
            yield sbatch_line("cpus-per-task", str(cpus))
        if options.gpus_per_node:
            kind = f"{self.site.gpu_type}:" if self.site.gpu_type else ""
            if self.site.gpu_option == "gres":
                yield sbatch_line("gres", f"gpu:{kind}{options.gpus_per_node}")
            else:
                yield sbatch_line("gpus-per-node", f"{kind}{options.gpus_per_node}")
        array = given.pop("array", None) or (f"0-{len(self.variants) - 1}" if self.variants else None)
        if array is not None:
            yield sbatch_line("array", array)
        yield sbatch_line("output", "%x-%A_%a.out" if array else "%x-%j.out")
        yield sbatch_line("open-mode", "append")
        if "requeue" not in given:
            given["requeue" if self.max_requeues else "no-requeue"] = None
        if self.max_requeues or self.chain > 1:
            given.setdefault("signal", f"B:USR1@{NOTICE}")
        for name, value in given.items():
            yield sbatch_line(name, value)

    def _environment(self) -> Iterator[str]:
        options = self.options
        if options.modules:
            yield "command -v module > /dev/null || source /etc/profile"
            yield f"module load {bash_words([*options.modules])} || exit"
        if options.venv:
            yield f"source {bash_word(options.venv.rstrip('/') + '/bin/activate')} || exit"
        if options.conda:
            yield 'eval "$(conda shell.bash hook)" || exit'
            yield f"conda activate {bash_word(options.conda)} || exit"
        if self.kind == "srun" and "OMP_NUM_THREADS" not in options.environment:
            yield f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{options.cpus_per_task or 1}}}"'
        if self.site.address_suffix:
            yield 'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
            yield f'export MASTER_ADDR="$first{self.site.address_suffix}"'
        for name, value in options.environment.items():
            yield f"export {name}={bash_word(value)}"
        yield from options.setup

    def _results(self) -> Iterator[str]:
        yield 'folder="${1:-}"'
        yield 'if [ -n "$folder" ]; then'
        yield f'    export {RESULT}="$folder/result${{SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}}.json"'
        yield '    rm -f "$folder/exit-code${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}"'
        yield "fi"
        yield f'export {CHAIN}="${{2:-}}"'

    def _variants(self) -> Iterator[str]:
        if not self.variants:
            return
        yield 'case "$SLURM_ARRAY_TASK_ID" in'
        for number, words in enumerate(self.variants):
            yield f"    {number}) own=({bash_words([*words])}) ;;"
        yield '    *) echo "there is no trial $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;'
        yield "esac"
        yield ""

    def _start(self) -> Iterator[str]:
        if self.checks_nodes and self.options.container is None:
            workers = self.options.workers_per_node
            tasks = f" --tasks-per-node {workers}" if self.kind == "srun" else ""
            check = f"{self._python()} -m itwinai.slurm.preflight{tasks} --devices-per-node {workers}"
            again = f" --max-requeues {self.max_requeues}" if self.max_requeues else ""
            if self.only_checks:
                yield f"exec {check}"
                return
            # When the check queues the job again, SLURM ends it at once, and the sick nodes are not yet left out.
            yield "trap '' TERM"
            yield f"{check}{again} || exit"
            yield "trap - TERM"
        # In the place of this shell, which would not hand on the signals that SLURM sends before the time limit.
        supervisor = f"-m itwinai.slurm.requeue --max-requeues {self.max_requeues} --"
        yield f"exec {self._python(is_outside=True)} {supervisor} \\"
        if self.kind == "srun":
            yield f"    {self._srun()} \\"
        around = "-m itwinai.slurm.ray_cluster " if self.kind == "ray" else ""
        own = ' "${own[@]}"' if self.variants else ""
        yield f"    {self._python()} {around}{bash_words(list(self.command))}{own}"

    def _srun(self) -> str:
        nodes, tasks, cpus = self.options.nodes, self.options.workers_per_node, self.options.cpus_per_task
        words = ["srun", f"--nodes={nodes}", f"--ntasks={nodes * tasks}", f"--ntasks-per-node={tasks}"]
        if cpus is not None:  # which srun does not take from sbatch any more
            words.append(f"--cpus-per-task={cpus}")
        return " ".join([*words, "--kill-on-bad-exit=1", "--export=ALL"])

    def _python(self, is_outside: bool = False) -> str:
        """Return the words that start Python; outside of the container for what needs SLURM's commands."""
        options = self.options
        if options.container is not None and is_outside:
            return bash_word(sys.executable)
        if options.container is None:
            others = options.venv or options.conda
            return bash_word(options.python or ("python" if others else sys.executable))
        words = ["apptainer", "exec"]
        if options.gpus_per_node:
            words.append("--nv" if self.site.gpu_vendor == "nvidia" else "--rocm")
        for folder in (*options.bind, *([self.site.scratch] if self.site.scratch else [])):
            words += ["--bind", folder]
        return bash_words([*words, options.container, options.python or "python"])
