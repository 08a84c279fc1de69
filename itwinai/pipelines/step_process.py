"""``python -m itwinai.pipelines.step_process REQUEST``: run a step in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from itwinai.launchers.failure_order import report_failure
from itwinai.launchers.worker import exit_soon
from itwinai.pipelines.commands import CommandError
from itwinai.pipelines.execution import Request, locked, perform, write_outcome


def main(argv: list[str]) -> int:
    """Run the step of a request, and leave its outputs.

    Args:
        argv: the path of the request.

    Returns:
        The exit code, which is that of the command for a built-in step.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    request = Request.read(Path(argv[0]))
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        # A process of an interrupted run may still save its checkpoint.
        with locked(Path(request.part).parent / ".locks" / f"{request.step}.process", request.step, waits=True):
            write_outcome(request, perform(request))
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 128 - error.code if error.code < 0 else error.code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        report_failure(error)
        return 1
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _end_with_parent() -> None:
    """End this process when the one that has started it is gone, which closes its end of the pipe."""
    while os.read(sys.stdin.fileno(), 1 << 10):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    exit_soon()
    sys.exit(main(sys.argv[1:]))
