"""`export.py --format web`: a folder of plain files that runs the ONNX file inside a browser."""
from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

from utils.errors import EnvironmentFault

WEB = Path(__file__).resolve().parents[1] / "web"
PAGES = ("index.html", "style.css", "icon.svg", "app.js", "bench.js", "capture.js", "detect.js", "draw.js",
         "words.js", "worker.js", "README.txt")
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm",
           "ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
LINES = "cd web && npm ci --ignore-scripts"


def write_web(folder: Path, onnx: Path, card: dict) -> None:
    """Writes the page, the network, its card and onnxruntime-web into `folder`, made where it is missing.

    The card gets the ONNX file's digest. Raises EnvironmentFault where onnxruntime-web is not there and npm
    cannot bring it.
    """
    scripts = runtime_files()
    (folder / "ort").mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        shutil.copyfile(WEB / name, folder / name)
    shutil.copyfile(WEB / "local.js", folder / "backend.js")       # served pages have server.js here
    for path in scripts:
        shutil.copyfile(path, folder / "ort" / path.name.replace(".mjs", ".js"))
    shutil.copyfile(onnx, folder / "model.onnx")
    card = {**card, "onnx_sha256": hashlib.sha256(onnx.read_bytes()).hexdigest()}
    (folder / "card.json").write_text(json.dumps(card, ensure_ascii=False), encoding="utf-8")


def runtime_files() -> list[Path]:
    """The files of onnxruntime-web in the pinned version, brought by npm where they are missing.

    Raises EnvironmentFault with the lines to type.
    """
    package = WEB / "node_modules" / "onnxruntime-web"
    files = [package / "dist" / name for name in RUNTIME]

    def complete() -> bool:
        try:
            version = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
        except (OSError, ValueError, KeyError):
            return False
        return version == pinned() and all(path.is_file() for path in files)

    if not complete():
        _install()
    if not complete():
        raise EnvironmentFault(f"web/node_modules lacks onnxruntime-web {pinned()}: type  {LINES}")
    return files


def pinned() -> str:
    """The version of onnxruntime-web that web/package.json names."""
    return json.loads((WEB / "package.json").read_text(encoding="utf-8"))["dependencies"]["onnxruntime-web"]


def _install() -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise EnvironmentFault(f"--format web needs onnxruntime-web {pinned()}, and npm, which brings it, is "
                               f"missing: install Node.js (Debian: apt install npm), then type  {LINES}")
    print(f"npm brings onnxruntime-web {pinned()} into web/node_modules (once, 150 MB)")
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(command, cwd=WEB, capture_output=True, text=True, check=False, timeout=900)
        said = done.stderr.strip().splitlines() if done.returncode else []
    except (OSError, subprocess.TimeoutExpired) as error:
        said, done = [f"error: {error}"], None
    if done is None or done.returncode:
        why = next((line for line in said if "error" in line.lower()), "no reason given")
        raise EnvironmentFault(f"npm could not bring onnxruntime-web ({why[:200]}); with a network, type  "
                               f"{LINES}")
