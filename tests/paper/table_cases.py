"""Made run records for the tests of tables, and scripts that stand in for the project's own."""
from __future__ import annotations

import json
from pathlib import Path

from models.records import to_json
from models.zoo.tiny import micro_yolo_pruned

# Writes what a training leaves; cut short on its first run where `cut` exists. Every call is noted.
FAKE_TRAIN = '''
import json, sys
from pathlib import Path
words = sys.argv[1:]
with open("calls.txt", "a") as log:
    log.write("train " + " ".join(words) + "\\n")
resume = "--resume" in words
after = lambda flag: words[words.index(flag) + 1]
folder = Path(after("--resume")) if resume else Path(after("--project")) / after("--name")
(folder / "weights").mkdir(parents=True, exist_ok=True)
(folder / "weights" / "last.pt").write_text("last")
if Path("cut").exists() and not resume:
    sys.exit(130)
(folder / "weights" / "best.pt").write_text("best")
(folder / "metrics.json").write_text(json.dumps({"map50": 0.5, "confusion": [[1]]}))
'''
FAKE_VAL = '''
import json, sys
from pathlib import Path
words = sys.argv[1:]
with open("calls.txt", "a") as log:
    log.write("val " + " ".join(words) + "\\n")
if Path("broken").exists():
    sys.exit(3)
folder = Path(words[words.index("--project") + 1]) / words[words.index("--name") + 1]
folder.mkdir(parents=True, exist_ok=True)
found = Path(words[words.index("--weights") + 1]).read_text()
(folder / "metrics.json").write_text(json.dumps({"map50": 0.25, "read": found}))
'''
# Counts the signals it gets in half a second after the first, then ends as a run that saved.
FAKE_SLOW = '''
import signal, sys, time
from pathlib import Path
got = []
signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
Path("started").touch()
while not got:
    time.sleep(0.02)
time.sleep(0.5)
Path("signals.txt").write_text(str(len(got)))
sys.exit(143)
'''


def made_records() -> dict[str, dict]:
    """A record of every job of a profile, with made figures."""
    def val(map50: float) -> dict:
        return {"map50": map50, "ms_per_image": {"network": 20.0},
                "settings": {"device": "cpu", "threads": 2, "precision": "fp32", "imgsz": 160,
                             "batch_size": 1}, "environment": {"cpu": "A CPU", "gpu": ""}}
    rows = ("conv", "dsconv", "mbconv", "mixed-3", "micro-yolo", "yolo-lite", "yolo-nano", "pruned")
    trials = [{"label": f"{a}{b}", "kernels": {"conv9": a, "conv11": b}, "ops": {}, "seed": seed,
               "map50": 0.3 + 0.01 * a - 0.02 * b + 0.01 * seed,
               "parameters": 2_370_000 + 1000 * a + 2000 * b,
               "macs": 1_000, "loose_macs": 1_100} for a in (3, 5) for b in (3, 5) for seed in (0, 1)]
    network = {"parameters": 2_000, "macs": 3_000_000, "loose_macs": 4_000_000}
    steps = [{"step": n, "layer": "conv13", "sixteenths": n, "width": 1024 - 64 * n, "epochs": 1,
              "map50": 0.4 - 0.01 * n, "drop": 1.0, "interval": None, "accepted": n < 3, "seconds": 1.0,
              "parameters": 1_900, "macs": 2_900_000} for n in (1, 2, 3)]
    prune = {"kind": "prune", "parent": {**network, "map50": 0.4}, "child": {**network, "map50": 0.38},
             "choices": {"order": "front", "until": {}, "tolerance": 0.5}, "steps": steps, "epochs": 3,
             "layers": [{"layer": "conv13", "original": 1024, "width": 896, "sixteenths": 2, "stopped": "-"},
                        {"layer": "conv9", "original": 256, "width": 240, "sixteenths": 1, "stopped": "-"}],
             "net": to_json(micro_yolo_pruned(10))}
    search = {"kind": "search", "layers": ["conv9", "conv11"], "kernels": [3, 5], "epochs": 1, "imgsz": 160,
              "trials": trials, "best": 5}
    vals = {f"val-{row}": val(0.1 + 0.05 * n) for n, row in enumerate(rows)}
    return {"search": search, "prune": prune, **vals}


def write_records(folder: Path) -> None:
    """Writes the made records as a profile's."""
    folder.mkdir(parents=True)
    for name, record in made_records().items():
        (folder / f"{name}.json").write_text(json.dumps(record))
