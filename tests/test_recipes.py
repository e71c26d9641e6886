"""The recipes of CONTRIBUTING.md, followed to the letter on a copy of the repository."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECIPES = re.findall(r"\*\*A[n]? ([a-z ]+)\.\*\*.*?```python\n(.*?)```",
                     (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
HEAD = 'Layer("end", "head", ("own",), 14, 1, kind="{kind}", anchors=((9., 9.), (20., 20.)), assign="ratio")'
USES = {
    "block": f"""
import torch
from compress.prune import prune
from models.layer import Layer
from models.network import Network, initialise
from models.records import validate
net = validate((Layer("stem", "conv", ("image",), 8, stride=2),
                Layer("own", "dilated", ("stem", "stem"), 8, hidden=4), {HEAD.format(kind="anchor")}))
model = initialise(Network(net), 0)
small, state = prune(net, model.state_dict(), {{"own.hidden": [0, 2]}})
child = Network(small)
child.load_state_dict(state)
assert child(torch.rand(1, 3, 32, 32))[0].shape == (1, 2, 7, 16, 16)
""",
    "kind of head": f"""
import torch
from models.heads.loss import DetectionLoss
from models.layer import Layer
from models.network import Network, initialise
from models.records import from_json, to_json, validate
net = validate((Layer("own", "conv", ("image",), 8, stride=4), {HEAD.format(kind="quiet")}))
assert from_json(to_json(net)) == net
loss = DetectionLoss(net)
assert loss.terms["obj"] == 0.5
terms = loss(initialise(Network(net), 0)(torch.rand(1, 3, 32, 32)), torch.tensor([[0, 1, .5, .5, .4, .4]]))
assert all(value.isfinite() for value in terms.values())
""",
    "pruning rule": """
import subprocess, sys
import torch
from compress.importance import channel_scores
from models.network import Network, initialise
from models.zoo.build import build
net = build("micro-yolo", 2)
state = initialise(Network(net), 0).state_dict()
wanted = state["conv1.conv.weight"].flatten(1).abs().amax(1)
assert torch.equal(channel_scores(net, state, "conv1", "peak"), wanted)
said = subprocess.run([sys.executable, "prune.py", "--help"], capture_output=True, text=True, check=True)
assert "peak" in said.stdout
""",
    "augmentation": """
import numpy as np
from data.augment import Pipeline, preset
from training.config import known_preset
image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
boxes = np.array([[0, 10, 10, 50, 50]], np.float32)
sharp, soft = (Pipeline(preset(name))(image, boxes, np.random.default_rng(1))[0]
               for name in ("default", "soft"))
assert known_preset("soft") and np.abs(np.diff(soft.astype(int), axis=1)).mean() < \\
    0.8 * np.abs(np.diff(sharp.astype(int), axis=1)).mean()
"""}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The repository's Python files, elsewhere."""
    place = tmp_path_factory.mktemp("copy")
    for path in ROOT.rglob("*.py"):
        inside = path.relative_to(ROOT)
        if inside.parts[0] not in (".venv", "tests", "runs", "datasets", "web"):
            (place / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place / inside)
    return place


def test_every_recipe_is_tried():
    assert {name for name, _ in RECIPES} == set(USES)


@pytest.mark.parametrize(("name", "code"), RECIPES, ids=[name for name, _ in RECIPES])
def test_a_recipe_of_six_lines_at_most_is_all_that_is_needed(copy: Path, name: str, code: str):
    parts = re.split(r"^# ([\w/]+\.py)\n", code, flags=re.MULTILINE)[1:]
    lines = [line for text in parts[1::2] for line in text.splitlines()]
    assert len(lines) <= 6 and len(parts) <= 4, "one file, and one where names are registered"
    for file, text in zip(parts[::2], parts[1::2]):
        assert len(parts) == 2 or file == parts[0] or text.count("\n") == 1
        with open(copy / file, "a", encoding="utf-8") as out:
            out.write("\n\n" + text)
    done = subprocess.run([sys.executable, "-c", USES[name]], cwd=copy, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
