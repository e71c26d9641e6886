"""`export.py --format web`: a folder of plain files that runs the ONNX file inside a browser."""
from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from deploy.artifact import FILE, digest
from utils.errors import EnvironmentFault

WEB = Path(__file__).resolve().parents[1] / "web"
PAGES = ("index.html", "style.css", "icon.svg", "app.js", "bench.js", "capture.js", "detect.js", "draw.js",
         "words.js", "worker.js", "README.txt")
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm",
           "ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm")
LINES = "cd web && npm ci --ignore-scripts"


def write_web(folder: Path, onnx: Path, metadata: dict) -> Path:
    """Return `folder` with the page, the network and onnxruntime-web; errors: see `runtime_files`."""
    scripts = runtime_files()
    (folder / "ort").mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        shutil.copyfile(WEB / name, folder / name)
    shutil.copyfile(WEB / "local.js", folder / "backend.js")       # served pages have server.js here
    for path in scripts:
        shutil.copyfile(path, folder / "ort" / path.name.replace(".mjs", ".js"))
    shutil.copyfile(onnx, folder / "model.onnx")
    text = json.dumps({**metadata, "onnx_sha256": digest(onnx)}, ensure_ascii=False)
    (folder / FILE).write_text(text, encoding="utf-8")
    return folder


def runtime_files() -> list[Path]:
    """Return onnxruntime-web's pinned files, brought by npm, or raise EnvironmentFault with what to type."""
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
    """Return the version of onnxruntime-web that web/package.json names."""
    return json.loads((WEB / "package.json").read_text(encoding="utf-8"))["dependencies"]["onnxruntime-web"]


def _install() -> None:
    """Have npm bring the package. Raises EnvironmentFault where it cannot."""
    npm = shutil.which("npm")
    if npm is None:
        raise EnvironmentFault(f"--format web needs onnxruntime-web {pinned()}, and npm, which brings it, is "
                               f"missing: install Node.js (Debian: apt install npm), then type  {LINES}")
    print(f"npm brings onnxruntime-web {pinned()} into web/node_modules (once, 150 MB)")
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        subprocess.run(command, cwd=WEB, capture_output=True, text=True, check=True, timeout=900)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", "") or f"error: {error}").splitlines()
        why = next((line for line in said if "error" in line.lower()), "no reason given")
        raise EnvironmentFault(f"npm could not bring onnxruntime-web ({why[:200]}); with a network, type  "
                               f"{LINES}") from error
