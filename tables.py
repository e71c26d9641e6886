"""The paper's tables and figures beside what this project measures: `python tables.py --profile smoke`.

Runs the missing jobs of a profile (train.py, val.py, search.py, prune.py), then writes Tables 1-4, Figure 4
and the pruning figure into results/PROFILE/. Stopped, the same command goes on. `--check` holds the marked
tables of the pages against results/, `--write` fills them.
"""
from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paper.profiles import PROFILES, TABLES, Profile
from utils import cli
from utils.errors import EnvironmentFault

if TYPE_CHECKING:
    from paper.claims import Form, Table
    from paper.jobs import Job, Plan

ROOT = Path(__file__).resolve().parent
PAGES = ("README.md", "README.zh-CN.md", "docs/results.md")


def parse() -> argparse.Namespace:
    """The checked command line."""
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


def open_plan(args: argparse.Namespace, profile: Profile) -> tuple[Plan, dict[Path, str]]:
    """The profile's jobs, and the net.json files they need: networks without a name in the zoo."""
    from models.records import to_json
    from paper.jobs import Place, Plan, digest
    from paper.nets import table2_nets
    from paper.profiles import profile_jobs
    texts = {row: to_json(net) for row, net in table2_nets().items() if row != "micro-yolo"}
    folder = Path("runs") / "tables" / "nets"
    files = {row: folder / f"{row}-{digest(text)[:8]}.json" for row, text in texts.items()}
    values = {"data": args.data or "COCO", "weights": args.weights or "",
              **{f"net-{row}": str(file) for row, file in files.items()}}
    place = Place(ROOT, Path("results") / profile.name, Path("runs") / "tables" / profile.name, values)
    return Plan(profile_jobs(profile, texts), place), {file: texts[row] for row, file in files.items()}


def refuse_what_cannot_run(args: argparse.Namespace, profile: Profile, estimate: str) -> None:
    """Raises EnvironmentFault, with the estimate, where data, weights or the GPU of a profile are missing."""
    missing = []
    if args.data != "scenes" and not (args.data and Path(args.data).expanduser().exists()):
        missing.append(f"{profile.on} on this disk (--data {args.data or 'PATH'})")
    if profile.weights and not Path(args.weights).is_file():
        missing.append(f"{args.weights} (weights/README.md says how to get it; or --weights PATH)")
    if profile.gpu:
        import torch
        missing += [] if torch.cuda.is_available() else ["a CUDA GPU"]
    if missing:
        raise EnvironmentFault(f"--profile {profile.name} needs {' and '.join(missing)}; it would run "
                               f"{estimate}. --dry-run shows the plan, --no-run makes the tables of the "
                               "records that exist")


def show_plan(plan: Plan, left: list[tuple[Job, str]], estimate: str) -> None:
    """Prints what would be run, each command as it stands."""
    states = {job.name: state for job, state in left}
    for job in plan.jobs.values():
        state = states.get(job.name, "")
        if state:
            command = shlex.join(plan.command(job.name, state))
            print(f"{job.name:18} {state:10} {job.epochs:4} epochs  {command}")
    print(f"to do: {estimate}" if left else "nothing to do: every record is there")


def make_tables(profile: Profile, records: dict[str, dict], names: Sequence[str]) -> list[Table]:
    """The named tables of a profile's records."""
    from paper.claims import read_claims
    from paper.nets import count_rows, layer_weights
    from paper.tables import Source, build
    claims = read_claims((ROOT / "results" / "paper.json").read_text(encoding="utf-8"))
    widths = layer_weights() if "table1" in names else {}
    return build(Source(claims, count_rows(records), profile, records), widths, names)


def write_tables(tables: list[Table], folder: Path, records: dict[str, dict]) -> None:
    """Writes each table as Markdown, CSV, LaTeX and PNG, the two figures as pictures of their own."""
    from compress.search.plots import figure4_png
    from compress.search.rows import front
    from paper.claims import LONG, long_form, verdicts
    from paper.plots import pruning_png, table_png
    from paper.tables import kernel_points
    from utils.text import csv_text, latex, page
    folder.mkdir(parents=True, exist_ok=True)
    points, best = kernel_points(records.get("search", {}))
    figures = {"figure4": lambda path: figure4_png(points, best, front(points, ("map50", "params")), path),
               "pruning": lambda path: pruning_png(records["prune"], path)}
    drawn = {"figure4": bool(points), "pruning": "prune" in records}
    for table in tables:
        picture = folder / f"{table.name}.png"
        figures[table.name](picture) if drawn.get(table.name) else table_png(table, picture)
        for suffix, text in ((".md", page(table, picture.name)), (".csv", csv_text(table)),
                             (".tex", latex(LONG, long_form(table), table.title))):
            (folder / f"{table.name}{suffix}").write_text(text, encoding="utf-8")
        print(f"{folder / table.name}.md .csv .tex .png: {verdicts(table)}")


def page_table(results: Path) -> Callable[[str, str], Form]:
    """A function of (name, option) that gives header and rows of a marked table from what `results` holds."""
    def make(name: str, option: str) -> Form:
        from models.zoo.build import ZOO
        from paper.claims import LONG, long_form, read_claims, wide_form
        from paper.jobs import Place, Plan
        from paper.nets import count
        from paper.profiles import profile_jobs
        from paper.tables import paper_rows
        if name == "paper":
            claims = read_claims((ROOT / "results" / "paper.json").read_text(encoding="utf-8"))
            return paper_rows(claims, {zoo: count(net(), 416) for zoo, net in ZOO.items()})
        profile, _, table = name.partition("/")
        if profile not in PROFILES or table not in TABLES:
            raise KeyError(name)
        jobs = profile_jobs(PROFILES[profile], {})
        plan = Plan(jobs, Place(ROOT, results / profile, results, {}))
        [made] = make_tables(PROFILES[profile], plan.records(), [table])
        return (LONG, long_form(made)) if option == "long" else wide_form(made)
    return make


def visit_pages(pages: list[Path], write: bool) -> int:
    """The exit code of comparing, or of filling, the marked tables of the pages."""
    from paper.pages import fill
    errors, differences, tables, results = [], [], 0, ROOT / "results"
    for path in pages:
        text = path.read_text(encoding="utf-8")
        filled = fill(text, str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path), results,
                      page_table(results))
        tables += filled.tables
        errors, differences = errors + filled.errors, differences + filled.differences
        if write and filled.text != text:
            path.write_text(filled.text, encoding="utf-8")
    print("\n".join([*errors, *differences, f"{tables} marked tables, {len(differences)} rows "
                     f"{'filled' if write else 'differ'}, {len(errors)} errors"]))
    return 1 if errors or (differences and not write) else 0


def main() -> int:
    """Checks pages, prints the plan, or runs what is missing and writes the tables."""
    args = parse()
    if args.check or args.write:
        sys.exit(visit_pages(args.pages, args.write))
    from paper.profiles import duration_text, wanted
    profile = PROFILES[args.profile]
    plan, nets = open_plan(args, profile)
    jobs = wanted(tuple(args.only))
    left = [] if args.no_run else plan.missing(jobs)
    estimate = duration_text([job for job, _ in left], profile, plan.rate())
    if args.dry_run:
        return show_plan(plan, left, estimate)
    if left:
        refuse_what_cannot_run(args, profile, estimate)
        print(f"profile {profile.name}: {estimate}", flush=True)
        for file, text in nets.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        plan.run(jobs, lambda line: print(line, flush=True))
    records = plan.records()
    print(f"profile {profile.name}: {profile.note}")
    write_tables(make_tables(profile, records, args.only), Path("results") / profile.name, records)


if __name__ == "__main__":
    cli.run(main)
