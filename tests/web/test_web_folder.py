"""The folder of `export.py --format web`: what is in it, where it comes from, and that it asks nobody."""
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from deploy import web as module
from detection.serve import http
from tests.helpers.browser_cases import web_folder
from utils.errors import EnvironmentFault

HARMLESS = ("http://localhost:8000", "http://www.w3.org/2000/svg")      # a hint for the reader, and a name


@pytest.fixture
def bare(monkeypatch, tmp_path) -> Path:
    """A copy of web/ to which npm never brought anything."""
    shutil.copytree(module.WEB, tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    monkeypatch.setattr(module, "WEB", tmp_path / "web")
    return tmp_path / "web"


def fake_npm(path: Path, script: str, monkeypatch) -> None:
    """Puts a program in npm's place."""
    program = path / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda name: str(program))


def test_the_folder_holds_all_that_the_page_asks_for(nets, tmp_path):
    folder = web_folder(tmp_path / "a_web", nets["good"])
    text = "".join(path.read_text() for path in folder.iterdir() if path.suffix in (".html", ".js"))
    asked = set(re.findall(r"(?:from '\./|import\('\./|src=\"|href=\"|Worker\('|fetch\(')([\w.]+)", text))
    assert {"app.js", "detect.js", "words.js", "worker.js", "style.css", "card.json", "model.onnx"} <= asked
    assert all((folder / name).is_file() for name in asked), asked
    for name in re.findall(r"'(ort[\w.-]+)'", (folder / "worker.js").read_text()):
        assert (folder / "ort" / name).is_file()
    assert not list(folder.rglob("*.mjs")), "some servers call these no scripts"
    card = json.loads((folder / "card.json").read_text())
    assert card["onnx_sha256"] == hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    assert card["names"] == ["red", "green", "蓝/色"] and "WASM" in (folder / "README.txt").read_text()


def test_no_page_names_an_address_of_the_net():
    names = {*module.PAGES, "local.js", *http.PAGES.values()}
    assert names <= {path.name for path in module.WEB.iterdir()}
    for name in names:
        found = re.findall(r"(?:https?:)?//[\w.-]+\.\w[\w./:-]*|https?://[\w.:/-]+", _code(module.WEB / name))
        assert [url for url in found if not url.startswith(HARMLESS)] == [], name


def _code(path: Path) -> str:
    """A file without its // comments."""
    return re.sub(r"(^|\s)// .*", "", path.read_text(encoding="utf-8"), flags=re.M)


def test_versions_are_pinned_and_locked_by_digest():
    wanted = json.loads((module.WEB / "package.json").read_text())["dependencies"]
    lock = json.loads((module.WEB / "package-lock.json").read_text())["packages"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert lock[""]["dependencies"] == wanted
    packages = {name: entry for name, entry in lock.items() if name}
    assert packages["node_modules/onnxruntime-web"]["version"] == module.pinned()
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())


def test_without_npm_the_lines_to_type_are_said(bare, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(EnvironmentFault, match="apt install npm.*npm ci --ignore-scripts"):
        module.runtime_files()


def test_npm_that_fails_or_brings_nothing_is_a_sentence(bare, monkeypatch, tmp_path):
    fake_npm(tmp_path, "echo 'npm error code ENOTFOUND' >&2; exit 1", monkeypatch)
    with pytest.raises(EnvironmentFault, match="code ENOTFOUND.*npm ci"):
        module.runtime_files()
    fake_npm(tmp_path, "exit 0", monkeypatch)
    with pytest.raises(EnvironmentFault, match="lacks onnxruntime-web"):
        module.runtime_files()


def test_missing_and_other_versions_are_brought_once(bare, monkeypatch, tmp_path, capsys):
    package = bare / "node_modules" / "onnxruntime-web"
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text('{"version": "0.0.1"}')
    good = f'{{\\"version\\": \\"{module.pinned()}\\"}}'
    files = " ".join(f"{package}/dist/{name}" for name in module.RUNTIME)
    fake_npm(tmp_path, f"echo \"$@\" >> {tmp_path}/calls; touch {files}; echo \"{good}\" > "
                       f"{package}/package.json", monkeypatch)
    assert len(module.runtime_files()) == len(module.runtime_files()) == 4
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 1 and calls[0].startswith("ci --ignore-scripts")
    assert module.pinned() in capsys.readouterr().out
