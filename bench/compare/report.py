"""What a comparison leaves: figures, the table as text, CSV and JSON, and one page that holds all of it."""
from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.compare.judge import AP_DRAWS, DRAWS
from bench.compare.plots import MEASURES, figure_words, front_png, measure_png
from bench.compare.words import WORDS
from bench.profile.latency import NOISY
from evaluation.report import write_report
from utils import runs as files
from utils.text import aligned

Row = Mapping[str, object]
SAID = 12                                                  # networks whose differences the page lists


def write(record: Mapping, runs: Sequence[Mapping], folder: Path, lang: str = "en") -> list[str]:
    """Write figures, table.txt, table.csv, comparison.json and report.html; return the lines to print.

    record: "budgets" of `record.make_record`, and what `facts` shows. Raises as write_report.
    """
    words, out = WORDS[lang], []
    files.write_json(folder / "comparison.json", {
        **record, "runs": [{k: v for k, v in run.items() if k != "matches"} for run in runs]})
    files.write_text(folder / "table.csv", table_csv(record["budgets"]))
    tables, images = [], []
    summary = facts(record, lang)
    for budget, found in record["budgets"].items():
        title = words[f"budget-{budget}"]
        summary[words["conclusion"].format(budget=title)] = said = conclusion(found, words)
        header, body = table(found["rows"])
        out += ["", title, *(line.rstrip() for line in aligned(header, body).split("\n")), said]
        tables.append((words["table"].format(title=title), header, body))
        judged = _judged(found, title, words)
        tables += judged
        images += _figures([run for run in runs if run["budget"] == budget], found, budget, folder, lang)
        for caption, head, rows in judged[:len(found["limits"])]:
            out += ["", caption, *(line.rstrip() for line in aligned(head, rows).split("\n"))]
    if (worst := max((row["ms_spread"] or 0 for row in found["rows"]), default=0)) > NOISY:
        summary[words["warning"]] = noisy = words["noisy"].format(worst=worst)
        out += ["", f"{words['warning']}: {noisy}"]
    files.write_text(folder / "table.txt", "\n".join(out).lstrip() + "\n")
    machine = [[key, value] for key, value in record["environment"].items() if key != "command" and value]
    tables.append((words["machine"], (words["what"], words["value"]), machine))
    page = write_report(folder, words["title"].format(**record), summary, tables, images, lang)
    return [*out, "", str(page)]


def facts(record: Mapping, lang: str) -> dict[str, object]:
    """Return the page's first lines."""
    words = WORDS[lang]
    shown = {key: record.get(key) for key in ("nets", "runs_done", "failed", "seeds", "epochs", "minutes")}
    shown["nets"] = len(record["nets"])
    found = {words[key.removesuffix("_done")]: value for key, value in shown.items() if value}
    if record.get("minutes_of"):
        found[words["minutes"]] = words["minutes-of"].format(**record)
    if figure_words(lang) is not words:
        found[words["figures"]] = words["no-font"]
    return {**found, words["note"]: words["notes"].format(threads=record["latency_threads"]),
            words["command"]: record["environment"].get("command", "")}


def conclusion(found: Mapping, words: Mapping[str, str]) -> str:
    """Return the conclusion of a budget in one sentence or two."""
    rows = {row["net"]: row for row in found["rows"]}
    text = _ahead(found, rows, "map50", words)
    level = [rows[net] for net in (found["best"], *found["ties"])]
    small = min((row for row in level if row["parameters"]), key=lambda row: row["parameters"], default=None)
    fast = min((row for row in level if row["ms"]), key=lambda row: row["ms"], default=None)
    if found["ties"] and small and fast:
        text += words["light"].format(net=small["net"], fast=fast["net"])
    if found["by_ap"]:
        text += words["stop"] + _ahead(found["by_ap"], rows, "map50_95", words)
    return text + (words["one-seed"] if found["seed_deviation"] is None else "")


def _ahead(judged: Mapping, rows: Mapping[str, Row], score: str, words: Mapping[str, str]) -> str:
    """Return who has the highest mean of a score, and who ties with it."""
    text = words["best"].format(best=judged["best"], measure=words[score], value=rows[judged["best"]][score])
    return text + (words["ties"].format(ties=", ".join(judged["ties"])) if judged["ties"] else
                   words["alone"] if len(rows) > 1 else "")


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of the table of a budget, the best AP50 first."""
    timed = [key for key in dict.fromkeys(k for row in rows for k in row) if str(key).startswith("ms_")
             and key != "ms_spread"]
    header = ["network", "seeds", "parameters", "MMACs", "MB", "MB moved",
              *(k.replace("_", " ") for k in timed), "AP50", "+-", "AP", "+-", "AP small", "medium", "large",
              "P", "R", "F1", "epochs", "minutes"]

    def number(value: object, digits: int, scale: float = 1.0) -> str:
        return "-" if value is None else f"{value / scale:,.{digits}f}"
    body = [[row["net"], str(row["seeds"]), number(row["parameters"], 0), number(row["macs"], 1, 1e6),
             number(row["bytes"], 2, 1e6), number(row["moved"], 1, 1e6),
             *(number(row.get(key), 2) for key in timed),
             number(row["map50"], 3), number(row["map50_sd"], 3), number(row["map50_95"], 3),
             number(row["map50_95_sd"], 3),
             *(number(row[key], 3) for key in ("map_small", "map_medium", "map_large", "precision", "recall",
                                               "f1")),
             number(row["epochs"], 0), number(row["minutes"], 1)] for row in rows]
    return header, body


def table_csv(budgets: Mapping[str, Mapping]) -> str:
    """Return the rows of all budgets as CSV text, a figure a column."""
    rows = [{"budget": budget, **row} for budget, found in budgets.items() for row in found["rows"]]
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def _judged(found: Mapping, title: str, words: Mapping[str, str]) -> list[tuple]:
    """Return the tables of budgets kept, and of differences, of the first networks alone."""
    names = {"ms": words["ms"], "parameters": words["parameters"], "minutes": words["training"]}
    tables = []
    for cost, rows in found["limits"].items():
        body = [[f"{row['limit']:,.4g}" if row["limit"] < 1e4 else f"{row['limit']:,.0f}",
                 row["best"] or words["none"], f"{row['map50']:.3f}" if row["best"] else "-",
                 ", ".join(row["ties"]) or "-", str(row["of"])] for row in rows]
        head = [words["limit"], words["winner"], "AP50", words["tied"], words["of"]]
        tables.append((words["limits"].format(title=title, cost=names[cost]), head, body))
    first = [row["net"] for row in found["rows"][:SAID]]
    head = ["", words["versus"], words["difference"], words["error"], words["tie"]]
    for score, judged, draws in (("map50", found, DRAWS), ("map50_95", found["by_ap"], AP_DRAWS)):
        body = [[one["first"], one["other"], f"{one['difference']:.4f}", f"{one['error']:.4f}",
                 words["yes"] if one["tie"] else words["no"]]
                for one in (judged or {}).get("verdicts", ())
                if one["first"] in first and one["other"] in first]
        if judged:
            tables.append((words["verdicts"].format(title=title, measure=words[score], draws=draws), head,
                           body))
    return tables


def _figures(runs: Sequence[Mapping], found: Mapping, budget: str, folder: Path,
             lang: str) -> list[tuple[str, Path]]:
    """Draw a figure a measure and the front; return captions and paths of those that show something."""
    words, drawn_in = WORDS[lang], figure_words(lang)
    title, drawn_title = words[f"budget-{budget}"], drawn_in[f"budget-{budget}"]
    drawn = [(words["against"].format(measure=words[key], title=title),
              measure_png(runs, key, drawn_title, folder / f"{key}-{budget}.png", drawn_in))
             for key in MEASURES]
    drawn.append((f"{words['front']}, {title}. {words['front-is']}: {', '.join(found['front'])}",
                  front_png(found["rows"], found["front"], drawn_title, folder / f"front-{budget}.png",
                            drawn_in)))
    return [(caption, path) for caption, path in drawn if path]
