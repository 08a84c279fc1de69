"""Install Horovod, from the cache or built here, or print what would be done."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from itwinai.cli.install.build import build_command, build_wheel
from itwinai.cli.install.cache import cached_wheel
from itwinai.cli.install.environment import build_settings
from itwinai.cli.install.packages import check_python_packages, install_python_packages, pip_install
from itwinai.cli.install.plan import Plan
from itwinai.cli.install.prerequisites import check_prerequisites
from itwinai.cli.install.progress import format_duration
from itwinai.cli.install.toolchain import CXX_STANDARD, compiler_command
from itwinai.cli.install.verify import Loaded, load_horovod, verify_wheel
from itwinai.errors import InstallError


def install(plan: Plan, force: bool = False, wheel_only: bool = False, verbose: bool = False) -> None:
    """Build or fetch the wheel, install it, and check that it loads.

    Args:
        plan: what is wanted.
        force: build even if a wheel is cached.
        wheel_only: stop once the wheel is in the cache.
        verbose: show the whole build output.

    Raises:
        InstallError: it could not be built or installed, or does not load.
    """
    began = time.monotonic()
    wheel, loaded, build_seconds = obtain_wheel(plan, force, verbose)
    if not wheel_only:
        pip_install(["--no-deps", "--no-index", "--force-reinstall", str(wheel)])
        loaded = load_horovod()
        if loaded.version.partition("+")[0] != plan.version:
            raise InstallError(
                f"Horovod {plan.version} was installed into {sys.prefix}, but Python loads {loaded.version} "
                f"from {loaded.file}.\n  Look for it in PYTHONPATH and in the user site folder."
            )
    how = f"built in {format_duration(build_seconds)}" if build_seconds else "from the cache"
    print(f"Horovod {loaded.version} {'is ready' if wheel_only else 'is installed'} ({how})")
    print(f"  backends: {', '.join(loaded.backends)}")
    print(f"  time:     {format_duration(time.monotonic() - began)}")
    print(f"  wheel:    {wheel}", flush=True)


def obtain_wheel(plan: Plan, force: bool = False, verbose: bool = False) -> tuple[Path, Loaded, float]:
    """Get the wheel from the cache, or build it; one that does not load is built again, once.

    Args:
        plan: what is wanted.
        force: build even if a wheel is cached.
        verbose: show the whole build output.

    Returns:
        The wheel, what it loads as, and the seconds its build took (0 when it was cached).

    Raises:
        InstallError: it could not be built, or does not load.
    """
    wheel = None if force else cached_wheel(plan)
    if wheel:
        install_python_packages(check_python_packages())
        try:
            return wheel, verify_wheel(wheel), 0.0
        except InstallError as error:
            print(f"The cached wheel is of no use here, building it again.\n  {error}", flush=True)
            force = True
    return build_wheel(plan, force, verbose)


def print_dry_run(plan: Plan, force: bool = False, env: Mapping[str, str] = os.environ) -> int:
    """Print what would be done and what is missing; change nothing.

    Args:
        plan: what is wanted.
        force: whether a cached wheel would be passed over.
        env: the environment of the build.

    Returns:
        0 if the command would go ahead, 1 if something is missing that it cannot install itself.
    """
    python = f"{platform.python_implementation()} {platform.python_version()}"
    wheel = cached_wheel(plan)
    use_cached = wheel is not None and not force
    print(f"Horovod {plan.version} for torch {plan.torch.version}, {python} on {platform.machine()}")
    print(f"  plan:     {'install the cached wheel' if use_cached else 'build a wheel, cache it, install it'}")
    if plan.note:
        print(f"  for:      {plan.note}")
    print(f"  wheel:    {wheel or plan.folder}")
    print(f"  command:  {shlex.join(['pip', *build_command(plan, Path('DIR'))[3:]])}")
    compiler = compiler_command(env)
    print(f"  compiler: {shlex.join(compiler) if compiler else 'none found'} ... {CXX_STANDARD}")
    settings = {**plan.options, **build_settings(env)}
    print("  settings: " + "\n            ".join(f"{name}={value}" for name, value in settings.items()))
    print("  checks:")
    checks = check_prerequisites(plan, env)
    for check in checks:
        if check.found is not None:
            print(f"    ok       {check.name}: {check.found}")
        elif check.pip_name:
            print(f"    to come  {check.name}: {check.problem}; this command installs it with pip")
        else:
            print(f"    missing  {check.name}: {check.problem}\n               {check.fix}")
    blocked = any(check.found is None and check.pip_name is None for check in checks)
    return 1 if blocked and not use_cached else 0
