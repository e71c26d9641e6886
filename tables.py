"""The paper's tables and figures beside what this project measures: `python tables.py --profile smoke`.

Runs the missing jobs of a profile, then writes its tables into results/PROFILE/; stopped, the same command
resumes. `--check` compares the marked tables of the pages with results/, `--write` fills them.
"""
from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from models.records import to_json
from models.zoo.build import DETECTORS
from models.zoo.paper import table2_nets
from paper.claims import LONG, Form, Table, long_form, read_claims, table_png, wide_form, write_forms
from paper.jobs import Place, Plan, digest
from paper.pages import fill
from paper.profiles import NEEDS, PROFILES, TABLES, Profile, duration_text, profile_jobs
from paper.tables import MAKERS, Source, count, count_rows, kernel_points, layer_weights, paper_rows
from utils import cli
from utils.errors import EnvironmentFault

ROOT = Path(__file__).resolve().parent
PAGES = ("README.md", "README.zh-CN.md", "docs/results.md", "docs/devices.md")


def parse() -> argparse.Namespace:
    """Return the checked command line."""
    parser = cli.parser(__doc__.splitlines()[0], "data", "weights")
    add = parser.add_argument
    add("--profile", choices=PROFILES, help="how much is run, and on which data")
    add("--only", nargs="+", choices=TABLES, default=TABLES, metavar="TABLE", help=f"of {', '.join(TABLES)}")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="print the plan and its time, run nothing")
    mode.add_argument("--no-run", action="store_true", help="make the tables of whatever records exist")
    mode.add_argument("--check", action="store_true", help="fail where a marked table differs from results/")
    mode.add_argument("--write", action="store_true", help="fill the marked tables from results/")
    add("--pages", nargs="+", type=Path, default=[ROOT / page for page in PAGES],
        help="pages of --check and --write")
    args = parser.parse_args()
    if not (args.profile or args.check or args.write):
        parser.error(f"--profile is missing: one of {', '.join(PROFILES)}")
    if args.profile:
        profile = PROFILES[args.profile]
        args.weights, args.data = args.weights or profile.weights, args.data or profile.data
        if not (args.data or args.dry_run or args.no_run or args.check or args.write or profile.gpu):
            parser.error(f"--profile {args.profile} needs --data, the folder or YAML of that set")
    return args


def open_plan(profile: Profile, data: str, weights: str) -> tuple[Plan, dict[Path, str]]:
    """Return the profile's jobs, and the net.json files they need: networks without a name in the zoo."""
    texts = {row: to_json(net) for row, net in table2_nets().items() if row != "micro-yolo"}
    files = {row: Path("runs") / "tables" / "nets" / f"{row}-{digest(text)}.json"
             for row, text in texts.items()}
    values = {"data": data or "COCO", "weights": weights,
              **{f"net-{row}": str(file) for row, file in files.items()}}
    place = Place(ROOT, Path("results") / profile.name, Path("runs") / "tables" / profile.name, values)
    return Plan(profile_jobs(profile, texts), place), {file: texts[row] for row, file in files.items()}


def check_place(profile: Profile, data: str, weights: str, estimate: str) -> None:
    """Raise EnvironmentFault, with the estimate, where data, weights or the GPU of a profile are missing."""
    missing = []
    if data != "scenes" and not (data and Path(data).expanduser().exists()):
        missing.append(f"{profile.on} on this disk (--data {data or 'PATH'})")
    if profile.weights and not Path(weights).is_file():
        missing.append(f"{weights} (weights/README.md says how to get it; or --weights PATH)")
    if profile.gpu:
        import torch
        missing += [] if torch.cuda.is_available() else ["a CUDA GPU"]
    if missing:
        raise EnvironmentFault(f"--profile {profile.name} needs {' and '.join(missing)}; it would run "
                               f"{estimate}. --dry-run shows the plan, --no-run makes the tables of the "
                               "records that exist")


def make_tables(profile: Profile, records: dict[str, dict], names: Sequence[str]) -> list[Table]:
    """Return the named tables of a profile's records."""
    source = Source(read_claims(ROOT), count_rows(records), profile, records,
                    layer_weights() if "table1" in names else {})
    return [MAKERS[name](source) for name in names]


def write_tables(tables: list[Table], folder: Path, records: dict[str, dict]) -> None:
    """Write each table as Markdown, CSV, LaTeX and PNG, the two figures as plots of their own."""
    from compress.pruning.plots import steps_png
    from compress.search.plots import figure4_png
    from compress.search.rows import front
    folder.mkdir(parents=True, exist_ok=True)
    points, best = kernel_points(records.get("search", {}))
    prune = records.get("prune")
    for table in tables:
        image = folder / f"{table.name}.png"
        if table.name == "figure4" and points:
            figure4_png(points, best, front(points, ("map50", "params")), image)
        elif table.name == "pruning" and prune:
            steps_png(prune["steps"], prune["choices"]["tolerance"], image)
        else:
            table_png(table, image)
        write_forms(table, image)


def page_table(results: Path, name: str, option: str) -> Form:
    """Return the header and rows of a marked table. Raises KeyError for an unknown one."""
    if name == "paper":
        return paper_rows(read_claims(ROOT), {zoo: count(net(), 416) for zoo, net in DETECTORS.items()})
    profile, _, table = name.partition("/")
    if profile not in PROFILES or table not in TABLES:
        raise KeyError(name)
    plan = Plan(profile_jobs(PROFILES[profile], {}), Place(ROOT, results / profile, results, {}))
    [made] = make_tables(PROFILES[profile], plan.records(), [table])
    return (LONG, long_form(made)) if option == "long" else wide_form(made)


def visit_pages(pages: list[Path], write: bool) -> int:
    """Compare or fill the marked tables of the pages; return the exit code."""
    errors, differences, tables, results = [], [], 0, ROOT / "results"
    for path in pages:
        name = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
        filled = fill(path.read_text(encoding="utf-8"), name, results, partial(page_table, results))
        tables += filled.tables
        errors, differences = errors + filled.errors, differences + filled.differences
        if write:
            path.write_text(filled.text, encoding="utf-8")
    print("\n".join([*errors, *differences, f"{tables} marked tables, {len(differences)} rows "
                     f"{'filled' if write else 'differ'}, {len(errors)} errors"]))
    return 1 if errors or (differences and not write) else 0


def main() -> None:
    """Check pages, print the plan, or run what is missing and write the tables."""
    args = parse()
    if args.check or args.write:
        sys.exit(visit_pages(args.pages, args.write))
    profile = PROFILES[args.profile]
    plan, nets = open_plan(profile, args.data, args.weights)
    jobs = tuple(dict.fromkeys(job for table in args.only for job in NEEDS[table]))
    left = [] if args.no_run else plan.missing(jobs)
    estimate = duration_text([job for job, _ in left], profile, plan.rate())
    if args.dry_run:
        for job, state in left:
            print(f"{job.name:18} {state:10} {job.epochs:4} epochs  "
                  f"{shlex.join(plan.command(job.name, state))}")
        print(f"to do: {estimate}" if left else "nothing to do: every record is there")
        return
    if left:
        check_place(profile, args.data, args.weights, estimate)
        print(f"profile {profile.name}: {estimate}", flush=True)
        for file, text in nets.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        plan.run(jobs)
    records = plan.records()
    print(f"profile {profile.name}: {profile.note}")
    write_tables(make_tables(profile, records, args.only), Path("results") / profile.name, records)


if __name__ == "__main__":
    cli.run(main)
