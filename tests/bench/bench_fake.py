"""A process that answers as a benchmark's worker does, with planted times, at once: `python bench_fake.py`.

By its account loading takes 3 CPU seconds and every slice half a one. What it does is in the artifact's name,
words between dashes: ms10 (a call takes that long), killed or silent (from the second slice on), refused,
broken (when loaded), broken64 (at that side alone), unread (an image is torn), blind (it has no accuracy),
bf16 (what it runs in, whatever was asked for), unsteady.
"""
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

FAKE = Path(__file__).resolve()


def noise(folder: Path) -> Path:
    """The folder, with three images of noise in three sizes."""
    import cv2
    import numpy as np
    folder.mkdir(exist_ok=True)
    for at, side in enumerate((60, 90, 120)):
        image = np.random.default_rng(at).integers(0, 255, (side, 100, 3), np.uint8)
        cv2.imwrite(str(folder / f"{at}.jpg"), image)
    return folder


def empty_set(folder: Path) -> Path:
    """The folder, with an annotation file that nobody reads where workers are planted."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "instances_val.json").write_text("{}")
    return folder


def running(capsys, monkeypatch, tmp_path: Path) -> Callable:
    """Runs benchmark.py with planted workers: f(names, flag, ...) -> (code, out, err, report)."""
    import benchmark
    from bench import run
    from tests.helpers.scripts import call
    monkeypatch.setattr(run, "SCRIPT", FAKE)
    monkeypatch.setattr(run, "machine_taints", lambda *_: [])    # other tests may run beside this

    def go(names: list[str], *flags: object) -> tuple[int, str, str, dict]:
        for name in names:
            (tmp_path / name).write_bytes(b"12345")
        code = call(monkeypatch, benchmark.main, [
            "benchmark.py", "--weights", *(tmp_path / n for n in names),
            "--source", noise(tmp_path / "pictures"), "--device", "cpu", "--project", tmp_path / "out",
            *flags])
        folder = max((tmp_path / "out").glob("exp*"), key=lambda p: p.stat().st_mtime_ns, default=tmp_path)
        path, said = folder / "benchmark.json", capsys.readouterr()
        return code, said.out, said.err, json.loads(path.read_text()) if path.is_file() else {}
    return go


def main() -> None:
    """Answers until standard input ends."""
    slices, spec, rng = 0, {}, random.Random(os.getpid())
    for line in sys.stdin:
        message = json.loads(line)
        spec = message if message["do"] == "load" else spec
        words = spec["name"].split("-")
        ms = float(next((w[2:] for w in words if w.startswith("ms")), 10))
        if message["do"] == "load":
            answer = {"import_seconds": 1.0, "load_seconds": 0.5, "first_ms": 30.0, "warm_up_rounds": 7,
                      "warm_up_seconds": 0.1, "steady": "unsteady" not in words, "kind": spec["runtime"],
                      "precision": "bf16" if "bf16" in words else spec["precision"], "note": "",
                      "device": spec["device"],
                      "parameters": 1000, "macs": 10 ** 9, "loose_macs": 2 * 10 ** 9, "classes": 3,
                      "variables": {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}}
            if "refused" in words:
                answer = {"error": "onnxruntime is not installed: pip install onnxruntime", "exit_code": 5}
            if "unread" in words:
                answer = {"error": "0.jpg is torn", "exit_code": 3}
            if {"broken", f"broken{spec.get('imgsz')}"} & set(words):
                answer = {"error": "the file is torn", "exit_code": 4}
        elif message["do"] == "accuracy":
            answer = {"map50": 0.5, "map50_95": 0.25, "pictures": 4}
            if "blind" in words:
                answer = {"error": "1.jpg of the set is torn", "exit_code": 3}
        else:
            slices += 1
            if "killed" in words and slices > 1:
                print("the last thing it said", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3600 if "silent" in words and slices > 1 else 0)
            times = [ms * rng.uniform(0.97, 1.03) for _ in range(max(20, message["calls"]))]
            if message["scope"] == "end-to-end":
                times = [[1.0, 2.0, value, 0.5, 0.25] for value in times]
            answer = {"times": times, "seconds": 0.02 * ms, "peak_rss_bytes": 2 ** 20, "peak_gpu_bytes": None}
        print(json.dumps({**answer, "cpu_seconds": 3.0 + 0.5 * slices}), flush=True)


if __name__ == "__main__":
    main()
