"""How the doctor's findings are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from itwinai.cli.doctor.strategy_check import Trial
from itwinai.cli.doctor.strategy_check_worker import LARGE, STEPS, WORKERS

GIB = 2**30
SMALL_SHM = GIB  # containers often have 64 MiB, too little for Ray and for DataLoader workers

_HEADER = f"{'works':<5}{'latency':>11}{'bandwidth':>13}{'start':>10}"


def format_installed(installed: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the section "Installed"."""
    rows: list[tuple[str, str]] = []
    for name, package in installed.items():
        if package["version"] is None:
            rows.append((name, f"not installed: {package['install']}"))
            continue
        parts = [package["version"]]
        if "error" in package:
            parts.append(f"DOES NOT WORK: {package['error']}")
        elif name == "torch" and "cuda" in package:
            parts.append(_torch_build(package["cuda"], package["rocm"]))
        elif name == "horovod" and "controllers" in package:
            parts += [f"{part} {', '.join(package[part]) or 'none'}" for part in ("controllers", "operations")]
        rows.append(("Python" if name == "python" else name, "; ".join(parts)))
        gpus = package.get("gpus", [])
        rows += [(f"  GPU {index}", f"{gpu['name']}, {_size(gpu['bytes'])}") for index, gpu in enumerate(gpus)]
        if name == "torch" and (package.get("cuda") or package.get("rocm")) and not gpus:
            rows.append(("  GPUs", "none is visible to torch"))
    return _format_section("Installed", rows)


def format_machine(machine: Mapping[str, Any]) -> str:
    """Return the section "This machine"."""
    cores, memory, slurm = machine["cores"], machine["memory"], machine["slurm"]
    part = f" usable of {cores['total']}" if cores["usable"] != cores["total"] else ""
    available = f", {_size(memory['available'])} available" if memory["available"] is not None else ""
    rows = [
        ("host", _host(machine["host"])),
        ("cores", f"{cores['usable']}{part}"),
        ("memory", f"{_size(memory['total'])}{available}"),
        ("/dev/shm", _shared_memory(machine["shm"])),
        ("launcher", _launcher(machine["launcher"])),
        ("SLURM", f"job {slurm['job_id']}, nodes {slurm['nodelist'] or '?'}" if slurm else "no allocation"),
    ]
    return _format_section("This machine", rows)


def name_width(strategies: Sequence[str]) -> int:
    """Return the width of the table's first column."""
    return max(len(name) for name in (*strategies, "strategy"))


def format_header(width: int) -> str:
    """Return the head of the table; its rows are printed one by one, as they become known."""
    return f"  {'strategy':<{width}}  {_HEADER}\n  {'-' * (width + 2 + len(_HEADER))}"


def format_trial(trial: Trial, width: int) -> str:
    """Return a row of the table."""
    if trial.install:
        row = f"not installed: {trial.install}"
    elif trial.measured is None:
        row = f"{'NO':<7}{trial.error if len(trial.error) <= 70 else trial.error[:67] + '...'}"
    else:
        measured = trial.measured
        bandwidth = f"{measured.bandwidth_gb_s:.2f} GB/s"
        row = f"{'yes':<5}{measured.latency_us:>8.0f} us{bandwidth:>13}{measured.start_s:>8.1f} s"
    return f"  {trial.strategy:<{width}}  {row}"


def format_end(trials: Sequence[Trial], broken: Sequence[str]) -> str:
    """Return the text after the table: the meaning of its numbers, causes of failures, and the conclusion.

    Args:
        trials: the strategies that were tried.
        broken: installed packages that cannot be imported.
    """
    lines = [""]
    measured = [trial.measured for trial in trials if trial.measured is not None]
    if measured:
        lines += [
            # For two workers the factor 2 (n - 1) / n is 1.
            "  latency    all-reduce of one number",
            f"  bandwidth  all-reduce of {LARGE // 2**20} MiB; the bus bandwidth of {WORKERS} workers is the same",
            "  start      from fit() to the first step",
        ]
        if same := [one.weight_difference for one in measured if not one.deviation]:
            lines.append(
                f"  weights    after {STEPS} steps as with one process: they differ by {max(same):.0e} at most"
            )
        lines.append("")
    for trial in trials:
        if trial.measured is not None and trial.measured.deviation:
            lines += [
                f"{trial.strategy}: {trial.measured.deviation}, and differs from one process by "
                f"{trial.measured.weight_difference:.0e}",
                "",
            ]
        if trial.error:
            lines += [f"{trial.strategy}: {trial.error}", *(f"    {line}" for line in trial.cause), ""]
    failed = [*broken, *(trial.strategy for trial in trials if trial.error and trial.strategy not in broken)]
    lines.append(f"Does not work: {', '.join(failed)}." if failed else "All that was tried works.")
    return "\n".join(lines)


def _format_section(title: str, rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows), ""])


def _torch_build(cuda: str | None, rocm: str | None) -> str:
    if cuda:
        return f"CUDA {cuda}"
    return f"ROCm {rocm}" if rocm else "built for the CPU only"


def _host(host: Mapping[str, Any]) -> str:
    if host.get("address"):
        return f"{host['name']}, resolves to {host['address']}"
    reason = host.get("unresolved") or host.get("error", "not asked")
    return f"{host['name']}, DOES NOT RESOLVE ({reason}): runs on several nodes need it, see /etc/hosts"


def _shared_memory(shm: Mapping[str, int] | None) -> str:
    if shm is None:
        return "there is none"
    small = "; small: Ray and DataLoader workers may fail (docker: --shm-size=2g)" if shm["total"] < SMALL_SHM else ""
    return f"{_size(shm['total'])}, {_size(shm['free'])} free{small}"


def _launcher(launcher: Mapping[str, Any]) -> str:
    if "error" in launcher:
        return launcher["error"]
    if launcher["name"]:
        return f"{launcher['name']}, {launcher['workers']} workers; what is tried below launches its own"
    return "none: a trainer launches its own workers"


def _size(number: int) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / 2**20:.0f} MiB"
