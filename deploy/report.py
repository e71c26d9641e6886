"""Every format of an export has its turn; what became of each, as a table and as the exit code."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.export import Export, export
from utils.errors import Interrupted, ModelError
from utils.text import aligned


def attempt(job: Export, form: str, folder: Path, name: str) -> dict:
    """The row of `export`, or one with the error it raised: the other formats are to have their turn.

    Raises Interrupted.
    """
    try:
        return export(job, form, folder, name)
    except Interrupted:
        raise
    except Exception as error:                             # whatever a library raises
        return {"format": form, "faults": [], "error": error}


def verdict(row: dict) -> str:
    """What became of a format, in a word."""
    return "failed" if "error" in row else "refused" if row["faults"] else "kept"


def conclude(rows: Sequence[dict], weights: str) -> None:
    """Raises what the exit code should tell: the first error, in whose words all formats are that failed."""
    lost = [row for row in rows if verdict(row) != "kept"]
    if not lost:
        return
    said = ". ".join(f"{row['format']}: {row.get('error') or '; '.join(row['faults'])}" for row in lost)
    text = f"{len(lost)} of {len(rows)} exports of {weights} were not kept. {said}"
    first = lost[0].get("error", ModelError(text))
    raise type(first)(text) if hasattr(first, "exit_code") else first


def table(rows: Sequence[dict]) -> str:
    """The exports as an aligned table."""
    def cells(row: dict) -> list[str]:
        if verdict(row) == "failed":
            return [row["format"], *[""] * 6, "failed"]
        matched, moved = row["matched"], row.get("map50_diff")
        moved = "" if moved is None else f"{round(100 * moved, 2) + 0.0:+.2f}"     # no negative zero
        return [row["format"], row["file"], f"{row['bytes']:,}", f"{row['max_diff']:.2g}",
                f"{100 * row['mean_share']:.2g} %", "no boxes" if matched is None else
                f"{100 * matched:.1f} % of {row['boxes']}", moved,
                verdict(row)]
    columns = ("format", "file", "bytes", "largest difference", "mean / spread", "boxes found again",
               "AP50 points", "verdict")
    return aligned(columns, [cells(row) for row in rows])
