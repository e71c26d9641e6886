"""What a search leaves: the best network, all trials as CSV and JSON, Figure 4, its record and last words."""
from __future__ import annotations

from compress.search import rows as trials
from compress.search.config import TRAINED_BY
from compress.search.plots import figure4_png
from compress.search.search import Search, choice_of, cut, train_supernet
from compress.search.storage import alone
from models import checkpoint as checkpoints
from models.records import to_json
from training.finetune import RECALIBRATION
from utils import runs
from utils.errors import NumericError

TOLD = ("method", "layers", "ops", "epochs", "imgsz", "data", "seed", "weights", "cfg", "separate",
        "objectives")
FIGURE = ("map50", "params")                       # Figure 4's axes


def write_answer(search: Search, rows: list[dict], failed: list[dict], against: dict | None) -> None:
    """Write and print the record of the search and all that belongs to it; NumericError where all failed."""
    folder = search.tuner.folder
    if not rows:
        raise NumericError("all trials failed: " + "; ".join(f"{r['label']}: {r['error']}" for r in failed))
    record = make_record(search, rows, failed, against)
    best = rows[record["best"]]
    found = best_network(search, best)
    if not search.tuner.world.main:
        return
    with alone(folder / ".answer.lock"):           # workers that end together write the same
        (folder / "best").mkdir(exist_ok=True)
        if found is not None:
            checkpoints.save(folder / "best" / "best.pt", found)
        runs.write_text(folder / "best" / "net.json", to_json(search.net(choice_of(best))))
        runs.write_text(folder / "trials.csv", trials.trials_csv(rows))
        runs.write_json(folder / "trials.json", rows)
        figure4_png(rows, record["best"], trials.front(rows, FIGURE), folder / "figure4.png")
        if search.config.save_json:
            runs.save_record(search.config.save_json, record)
        runs.write_json(folder / "result.json", record)    # last: it says that the search is finished
    print("\n".join(lines(search, record)))


def make_record(search: Search, rows: list[dict], failed: list[dict], against: dict | None) -> dict:
    """Return the search as JSON: how it was done, all trials, the best, the front, what it cost."""
    config, score, networks = search.config, search.config.score, search.config.random + 2
    # A step of the supernet is as many forward and backward passes as it trains networks, and counts as such.
    cost = config.epochs * networks if config.one_shot else sum(row["epochs"] for row in rows)
    record = {
        "kind": "search", **{name: getattr(config, name) for name in TOLD}, "kernels": sorted(config.kernels),
        "training": {key: getattr(config, key) for key in TRAINED_BY}, "trials": rows, "failed": failed,
        "best": trials.best_of(rows, score), "front": trials.front(rows, config.objectives),
        "repeats": trials.spread(rows, score), "between_seeds": trials.between_seeds(rows, score),
        "cost_epochs": cost}
    if config.one_shot:
        record |= {"networks_a_step": networks, "recalibration_pictures":
                   len(rows) * min(RECALIBRATION, len(search.tuner.train_set))}
    if against is not None:
        theirs, by = against["trials"], ("map50", score) if score != "map50" else ("map50",)
        record["rank"] = {**trials.rank_agreement(rows, theirs), "against": str(config.against),
                          "by": {name: trials.rank_agreement(rows, theirs, name, "map50") for name in by},
                          "ceiling": trials.ceiling(theirs, "map50"),
                          "cost_epochs": cost, "against_cost_epochs": against["cost_epochs"]}
    return {**record, "environment": runs.environment()}


def best_network(search: Search, row: dict) -> checkpoints.Checkpoint | None:
    """Return the checkpoint of a row, None where another machine holds it."""
    tuner, choice = search.tuner, choice_of(row)
    extra = {"map50": row["map50"], "map50_95": row["map50_95"], "search": choice.label}
    if search.config.one_shot:
        net, state = cut(search, train_supernet(search), choice)
        return checkpoints.Checkpoint(net, state, tuner.names, search.config.imgsz,
                                      tuner.train_set.coco.class_map, extra)
    file = tuner.folder / "trials" / f"k{choice.label}-s{row['seed']}" / "weights" / "best.pt"
    return checkpoints.load(file) if file.is_file() else None


def lines(search: Search, record: dict) -> list[str]:
    """Return what a search prints at its end."""
    rows, folder, config, score = record["trials"], search.tuner.folder, search.config, search.config.score
    best, several = rows[record["best"]], len(record["objectives"]) > 1
    marked = record["front"] if several else ()
    out = ["", *trials.table_lines(rows, score, record["best"], marked), ""]
    out += [f"failed: {row['label']} seed {row['seed']}: {row['error']}" for row in record["failed"]]
    out += [f"{e['label']}: {score} {e['mean']:.4f} +- {e['std']:.4f} over seeds "
            + ", ".join(f"{s} ({v:.4f})" for s, v in zip(e["seeds"], e["values"])) for e in record["repeats"]]
    if found := record["between_seeds"]:
        out.append(f"between two seeds of {found['n']} choices: Spearman rho {number(found['spearman'])}; "
                   f"{100 * found['explained']:.0f} % of what the choices differ by is theirs, the rest is "
                   "the seed's chance: a ranking free of chance can be expected to agree with one seed's by "
                   f"{found['explained'] ** 0.5:.2f}, no better")
    if several:
        out.append(f"{len(marked)} on the front of {', '.join(record['objectives'])}: "
                   + ", ".join(rows[i]["label"] for i in marked))
    cost = f"{record['cost_epochs']} epochs"
    if config.one_shot:
        cost += f" ({config.epochs} of the supernet x {config.random + 2} networks a step)"
    out.append(f"best: {best['label']}  {score} {best[score]:.4f}  "
               f"{best['parameters']:,} parameters; cost: {cost}")
    if "rank" in record:
        rank = record["rank"]
        out += [f"ranks by {name} against {rank['against']} by map50: Kendall tau {number(by['kendall'])}, "
                f"Spearman rho {number(by['spearman'])}, n {by['n']}; {rank['cost_epochs']} epochs against "
                f"{rank['against_cost_epochs']}" for name, by in rank["by"].items()]
        out.append("rho that a ranking free of chance can be expected to have with it: "
                   + ("unknown, it has one seed" if rank["ceiling"] is None else number(rank["ceiling"])))
    if not (folder / "best" / "best.pt").is_file():
        out.append("the best trial's weights are not here: another machine trained it, or --known told it; "
                   f"there they are in the run folder, trials/k{best['label']}-s{best['seed']}")
    return [*out, str(folder / "best")]


def number(value: float | None) -> str:
    """Return a correlation as text."""
    return "undefined" if value is None else f"{value:.3f}"
