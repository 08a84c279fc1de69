"""Stop at every step of every combination: ``python -m tests.stops [--share 1/4] [--only LOADER ...]``."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.stops.cover import product
from tests.stops.runs import LOADERS, TRIGGERS, WORKERS, Case, Seen, check_case, fit, quiet


def main() -> None:
    """Run, print each difference when it is found, and how many stops there were at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", default="1/1", help="which part of the combinations, such as 1/4")
    parser.add_argument("--loaders", nargs="*", default=list(LOADERS), choices=list(LOADERS))
    parser.add_argument("--triggers", nargs="*", default=list(TRIGGERS), choices=list(TRIGGERS))
    parser.add_argument("--workers", nargs="*", type=int, default=list(WORKERS), choices=list(WORKERS))
    chosen = parser.parse_args()
    share, shares = map(int, chosen.share.split("/"))
    cases = [
        case
        for case in product()
        if case.loader in chosen.loaders and case.trigger in chosen.triggers and case.workers in chosen.workers
    ][share - 1 :: shares]
    begun, stops, different = time.monotonic(), 0, 0
    references: dict[Case, Seen] = {}
    with quiet():
        for number, case in enumerate(cases, start=1):
            plain = Case(case.accumulate, case.validation, "", case.workers, case.loader)
            if plain not in references:
                references[plain] = fit(plain, [])
            with tempfile.TemporaryDirectory() as folder:
                for stop, found in check_case(case, Path(folder), references[plain]):
                    stops += 1
                    different += bool(found)
                    if found:
                        print(f"{case}, batch {stop}: {found}", flush=True)
            if number % 20 == 0:
                print(f"{number} of {len(cases)}: {stops} stops, {different} differ", flush=True)
    seconds = time.monotonic() - begun
    print(f"{len(cases)} combinations, {stops} stops, {different} differ, {seconds:.0f} s")
    raise SystemExit(different > 0)


if __name__ == "__main__":
    main()
