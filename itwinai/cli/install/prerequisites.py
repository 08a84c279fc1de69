"""All that the build needs, checked before it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping

from itwinai.cli.install.check import Check, missing_report
from itwinai.cli.install.cuda import check_nccl, check_nvcc
from itwinai.cli.install.packages import check_pip, check_python_packages, install_python_packages
from itwinai.cli.install.plan import Plan
from itwinai.cli.install.toolchain import (
    check_c_compiler,
    check_cmake,
    check_compiler,
    check_make,
    check_mpi,
    check_python_headers,
)
from itwinai.errors import InstallError


def check_prerequisites(plan: Plan, env: Mapping[str, str] = os.environ) -> list[Check]:
    """Check everything the build needs, before it starts.

    Args:
        plan: what is to be built.
        env: the environment of the build.

    Returns:
        One entry per requirement, found or not.
    """
    checks = [check_compiler(env), check_c_compiler(env), check_cmake(env), check_make(env)]
    checks += [check_python_headers(), check_pip()]
    if plan.options.get("HOROVOD_WITH_MPI") == "1":
        checks.append(check_mpi(env))
    if plan.torch.cuda and plan.for_gpus:
        checks.append(check_nvcc(env, plan.torch))
        if plan.uses_nccl:
            checks.append(check_nccl(env, plan.torch))
    return checks + check_python_packages()


def ensure_prerequisites(plan: Plan) -> None:
    """Install missing Python packages; stop if anything else is missing.

    Args:
        plan: what is to be built.

    Raises:
        InstallError: something is missing; the message lists all of it with install lines.
    """
    missing = [check for check in check_prerequisites(plan) if check.found is None]
    if any(check.pip_name is None for check in missing):
        raise InstallError(missing_report(missing))
    if missing:
        install_python_packages(missing)
        missing = [check for check in check_prerequisites(plan) if check.found is None]
        if missing:
            raise InstallError(missing_report(missing))
