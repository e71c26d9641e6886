"""How fast a folder of `export.py --format web` is in Chromium here: its own measurement, for a terminal.

    python -m tests.speed_browser runs/export/exp/micro-yolo-voc5_web --seconds 30 --out browser.json

--threads: served with the headers that isolate the page, so that WASM may use threads. --picture: measured on
this picture instead of made-up ones.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))


def main() -> None:
    """Opens the folder, presses the button, prints the figures, writes the JSON."""
    from tests.helpers.browser_cases import CHROMIUM, Page, chromium, served
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--threads", action="store_true")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if CHROMIUM is None or not (args.folder / "card.json").is_file():
        parser.error(f"needs Chromium ({CHROMIUM}) and a folder of export.py --format web, not {args.folder}")
    with served(args.folder, isolated=args.threads) as address, chromium() as browser:
        page = Page(browser, f"{address}?seconds={args.seconds}").ready()
        if args.picture:
            page.boxes(args.picture)
        page.page.click("#bench-start")
        page.page.locator("#bench-save").wait_for(timeout=1000 * (4 * args.seconds + 600))
        report = json.loads(page.page.text_content("#bench-result"))
        page.close()
    device, artifact = report["device"], report["artifact"]
    print(f"{device['provider']}, threads {device['threads']}; {artifact['precision']}, {artifact['imgsz']}",
          *(f"; doubtful: {why}" for why in report["tainted"]))
    for scope in ("network_ms", "end_to_end_ms"):
        row = report[scope]
        print(f"{scope:14} p50 {row['p50']:.1f}  p90 {row['p90']:.1f}  p99 {row['p99']:.1f}  n {row['n']}")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
