"""Mutate sound inputs by a seed and see that nothing but the project's own errors comes out.

    python -m tests.fuzz --kind coco --count 2000 --seed 0

A failing input is kept in runs/fuzz/KIND-SEED-NUMBER with what happened; --first NUMBER --count 1 does it
again.
"""
import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

from tqdm import tqdm

from tests.fuzz.guard import Guard, limit_memory, peak
from tests.fuzz.kinds import KINDS
from tests.fuzz.runner import Fuzz


def main() -> int:
    """Return 1 where an input failed, and say how many did."""
    out = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    out.add_argument("--kind", choices=[*KINDS, "all"], default="all")
    out.add_argument("--count", type=int, default=2000, help="mutations of each kind")
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--first", type=int, default=0, help="number of the first mutation")
    out.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="where failing inputs go")
    args = out.parse_args()
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True                         # which would be a write outside the folder
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        guard = Guard(Path(place))
        for kind in KINDS if args.kind == "all" else [args.kind]:
            fuzz, start, faults, slowest = Fuzz(kind, Path(place), guard), time.perf_counter(), 0, 0.0
            limit_memory()
            for number in tqdm(range(args.first, args.first + args.count), desc=kind, file=sys.__stderr__):
                before = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    fault = fuzz.one(args.seed, number)
                slowest = max(slowest, time.perf_counter() - before)
                if fault:
                    faults += 1
                    fuzz.keep(args.keep / f"{kind}-{args.seed}-{number}", fault)
            failed += faults
            print(json.dumps({"kind": kind, "mutations": args.count, "seed": args.seed, "failed": faults,
                              "refused": fuzz.refused, "seconds": round(time.perf_counter() - start, 1),
                              "slowest_s": round(slowest, 2), "peak_mib": round(peak())}), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
