"""One predict over every runtime: the same outputs as torch, one sentence for every file that is no good."""
import json
import os
import shutil
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.prune import prune
from deploy.artifact import digest, make_metadata, parse_metadata, read_metadata, size, write_metadata
from deploy.runtimes import runtime
from deploy.runtimes.runtime import load_runtime, torch_runtime
from models.channels import channels
from tests.helpers.export_cases import FORMS, SIDE, batch, checkpoint, exported
from tests.helpers.nets import NETS, random_keep, randomised, residual_net, small_net
from utils.errors import EnvironmentFault, ModelError, UsageError

for library in ("onnx", "onnxruntime", "openvino", "ncnn"):
    pytest.importorskip(library, reason=f"needs {library} (requirements-export.txt)")
CASES = ("yolov3-tiny", "micro-yolo", "yolo-lite", "yolo-nano", "residual")       # the last has every op


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """A small network in every format."""
    return exported(tmp_path_factory.mktemp("made"), checkpoint(residual_net()))


@pytest.fixture
def copies(made, tmp_path) -> dict[str, Path]:
    """The same, to be spoilt."""
    return {form: Path((shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name))
            for form, path in made.items()}


@pytest.mark.parametrize("pruned", [False, True], ids=["whole", "pruned"])
@pytest.mark.parametrize("name", CASES)
def test_every_network_is_the_same_in_every_format(name: str, pruned: bool, tmp_path: Path):
    net = NETS[name]
    state = randomised(net).state_dict()
    if pruned:
        net, state = prune(net, state, random_keep(net, channels(net).frozen, 3))
    expected = torch_runtime(net, state, (), SIDE).predict(batch())
    for form, path in exported(tmp_path, checkpoint(net, state)).items():
        runtime = load_runtime(path)
        assert runtime.net == net and runtime.precision == "fp32" and not runtime.note
        for found, wanted in zip(runtime.predict(batch()), expected, strict=True):
            assert found.dtype == torch.float32 and found.shape == wanted.shape
            assert float((found - wanted).abs().max()) < 1e-4, form


def test_metadata_comes_back_from_every_format_and_says_how_to_use_it(made):
    for form, path in made.items():
        metadata, runtime = read_metadata(path), load_runtime(path)
        assert metadata["outputs"] == ["head13", "head14"]
        assert metadata["strides"] == {"head13": 2, "head14": 4}
        assert metadata["names"][2] == "classe 2 é" and metadata["xy_scale"] == {"head13": 2.0, "head14": 1.0}
        assert metadata["anchors"]["head14"] == [[20, 20], [40, 40]] and metadata["letterbox"]["fill"] == 114
        assert metadata["parity"]["max_diff"] < 1e-3
        assert metadata["opset"] == (17 if form in ("onnx", "openvino") else None)
        assert metadata["source_sha256"] == digest(path.parent / "net.pt")
        assert (runtime.names, runtime.imgsz, runtime.class_map) == (tuple(metadata["names"]), SIDE, {"7": 0})
        whole = sum(p.stat().st_size for p in path.glob("*") if p.name != "card.json") or path.stat().st_size
        assert size(path) == whole and len(digest(path)) == 64


def test_main_files_of_folders_are_taken_as_well(made):
    for path in (made["openvino"] / "model.xml", made["ncnn"] / "model.param"):
        assert load_runtime(path).predict(batch(1))[0].shape[0] == 1
        assert size(path) == size(path.parent) and digest(path) == digest(path.parent)


def test_the_onnx_file_is_what_its_metadata_says(made):
    import onnx
    model = onnx.load(made["onnx"])
    onnx.checker.check_model(model, full_check=True)
    given = model.graph.input[0]
    assert given.name == "images" and given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim] == ["batch", 3, SIDE, SIDE]
    shapes = {o.name: [d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim]
              for o in model.graph.output}
    assert shapes == {"head13": ["batch", 2, 8, 32, 32], "head14": ["batch", 2, 8, 16, 16]}
    assert model.opset_import[0].version == 17
    nodes = [node.name for node in model.graph.node]
    assert {"conv1", "mb3.expand", "mb3.se.reduce", "ds6.depthwise"} <= set(nodes)
    assert len(set(nodes)) == len(nodes)


@pytest.mark.parametrize("form", FORMS)
def test_half_files_are_half_as_large_and_nearly_the_same(form: str, tmp_path: Path):
    given = checkpoint(NETS["yolo-lite"])
    whole, half = (exported(tmp_path, given, (form,), half=half)[form] for half in (False, True))
    assert ("-bf16" if form == "torchscript" else "-fp16") in half.name
    assert size(half) < 0.6 * size(whole)
    outputs = [load_runtime(path).predict(batch(1))[0] for path in (whole, half)]
    assert 0 < float((outputs[0] - outputs[1]).abs().mean()) < 0.05 * float(outputs[0].std())


@pytest.mark.parametrize("form", FORMS)
def test_images_that_do_not_fit_are_refused_with_what_is_needed(form: str, made):
    runtime = load_runtime(made[form])
    for images in (batch().float(), batch()[0], batch()[:, :2], batch(1, 66), batch(0)):
        with pytest.raises(UsageError, match=r"needs uint8 \[B, 3, "):
            runtime.predict(images)
    if form in ("onnx", "openvino"):
        with pytest.raises(UsageError, match="--imgsz 64"):
            runtime.predict(batch(1, 96))
    else:
        exact = load_runtime(made[form].parent / "net.pt")
        found, wanted = (r.predict(batch(1, 96)) for r in (runtime, exact))
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, wanted))


def test_threads_are_those_that_were_asked_for(made):
    options = load_runtime(made["onnx"], threads=3).runner.session.get_session_options()
    assert options.intra_op_num_threads == 3
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    plan = load_runtime(made["openvino"], threads=2).runner._plan(1)
    assert plan.get_property("INFERENCE_NUM_THREADS") == min(2, cores)
    assert load_runtime(made["ncnn"], threads=2).runner.net.opt.num_threads == 2
    assert load_runtime(made["ncnn"]).runner.net.opt.num_threads == torch.get_num_threads()


def test_openvino_compiles_no_batch_size_twice_and_drops_the_one_used_longest_ago(made, monkeypatch):
    runner, compiled = load_runtime(made["openvino"]).runner, []
    compile_for = type(runner)._compiled
    monkeypatch.setattr(type(runner), "_compiled",
                        lambda self, batch: compiled.append(batch) or compile_for(self, batch))
    for count in (*range(1, 9), *range(8, 0, -1), *range(1, 9)):
        assert len(runner(batch(count))[0]) == count
    assert compiled == list(range(2, 9)), "1 was compiled to see whether the file is good"
    monkeypatch.setattr("deploy.runtimes.openvino.PLANS", 8)
    runner(batch(1)), runner(batch(9))
    assert set(runner.plans) == {1, *range(3, 10)}


@pytest.mark.parametrize("form", ["openvino", "ncnn"])
def test_half_precision_is_held_against_fp32_on_the_first_batch(form: str, tmp_path: Path, monkeypatch):
    path = exported(tmp_path, checkpoint(small_net()), (form,))[form]
    exact = load_runtime(path).predict(batch(2))[0]
    half = load_runtime(path, precision="bf16")
    found = half.predict(batch(2))[0]
    if half.note:
        assert "continuing in fp32" in half.note and half.precision == "fp32" and torch.equal(found, exact)
    else:
        assert half.precision in ("bf16", "fp16")
        assert 0 < float((found - exact).abs().mean()) < 0.05 * float(exact.std())
    monkeypatch.setattr(runtime, "HALF_SHARE", 1e-9)
    half = load_runtime(path, precision="bf16")
    assert torch.equal(half.predict(batch(2))[0], exact) and half.precision == "fp32"
    assert "fp32" in half.note


def test_files_of_one_precision_say_so(made):
    for form in ("onnx", "torchscript"):
        runtime = load_runtime(made[form], precision="bf16")
        assert runtime.precision == "fp32" and "fp32" in runtime.note


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_torn_file_is_one_sentence_that_names_it(form: str, share: float, copies):
    path = copies[form]
    torn = path if path.is_file() else path / {"openvino": "model.xml", "ncnn": "model.bin"}[form]
    torn.write_bytes(torn.read_bytes()[:int(share * torn.stat().st_size)])
    for read in (load_runtime, read_metadata):
        with pytest.raises(ModelError, match=torn.name) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_files_of_others_and_files_that_are_not_there_are_refused(copies, tmp_path):
    import onnx
    model = onnx.load(copies["onnx"])
    del model.metadata_props[:]
    onnx.save(model, copies["onnx"])
    (copies["openvino"] / "card.json").unlink()
    (copies["ncnn"] / "card.json").write_text("{}")
    for form in ("onnx", "openvino", "ncnn"):
        with pytest.raises(ModelError, match="export the checkpoint again"):
            load_runtime(copies[form])
    (copies["ncnn"] / "model.bin").unlink()
    write_metadata(copies["ncnn"], make_metadata(checkpoint(residual_net()), SIDE, "fp32"))
    with pytest.raises(ModelError, match="ncnn model"):
        load_runtime(copies["ncnn"])
    for name in ("none.onnx", "none.param", "none.xml", "none.torchscript"):
        with pytest.raises(ModelError, match=name):
            load_runtime(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="folder without model.xml or model.param"):
        load_runtime(tmp_path / "empty")
    (tmp_path / "a.torchscript").write_bytes(b"PK nothing of the kind")
    with pytest.raises(ModelError, match=r"a\.torchscript"):
        load_runtime(tmp_path / "a.torchscript")


def rewritten(path: Path, change) -> None:
    """The archive with what `change` makes of its entries, name -> bytes."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in change(entries).items():
            archive.writestr(name, data)


def test_a_torchscript_program_is_ours_changed_or_said_to_be_neither(copies, capsys):
    path = copies["torchscript"]
    load_runtime(path)
    assert not capsys.readouterr().err
    card = next(name for name in zipfile.ZipFile(path).namelist() if name.endswith("card.json"))
    program = next(name for name in zipfile.ZipFile(path).namelist() if name.endswith(".py"))

    def unsigned(entries: dict) -> dict:
        told = json.loads(entries[card])
        told.pop("program_sha256")
        return entries | {card: json.dumps(told).encode()}
    changed = path.with_name("changed.torchscript")
    shutil.copy(path, changed)
    for spoil in (lambda e: e | {program: e[program] + b"\n"}, lambda e: e | {"net/code/more.py": b"1"},
                  lambda e: dict(list(e.items())[:-2]) | {card: e[card]}):
        shutil.copy(path, changed)
        rewritten(changed, spoil)
        with pytest.raises(ModelError, match="was changed since it was written"):
            load_runtime(changed)
    rewritten(path, unsigned)
    assert load_runtime(path).predict(batch(1))[0].shape[0] == 1
    assert "TorchScript, a program that is run as it is read" in capsys.readouterr().err


def test_a_torchscript_file_of_packed_or_locked_entries_is_one_sentence(copies):
    path = copies["torchscript"]
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02")                        # the first entry in the directory: flags, method
    for place, value in ((at + 8, 1), (at + 10, 99)):
        path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1:])
        with pytest.raises(ModelError, match="cannot be read as a TorchScript file"):
            load_runtime(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/extra/card.json", bytes(10_000_000))
    with pytest.raises(ModelError, match="unfold to more than 16 times"):
        read_metadata(path)


@pytest.mark.parametrize("change", [{"schema": 9}, {"names": ["a"]}, {"outputs": []}, {"net": "{}"},
                                    {"imgsz": 0}])
def test_metadata_that_contradicts_itself_is_refused(change: dict):
    import json
    metadata = make_metadata(checkpoint(small_net()), SIDE, "fp32")
    assert parse_metadata(json.dumps(metadata), "a.onnx") == metadata
    with pytest.raises(ModelError, match=r"a\.onnx"):
        parse_metadata(json.dumps(metadata | change), "a.onnx")


@pytest.mark.parametrize(("form", "library"), [("onnx", "onnxruntime"), ("openvino", "openvino"),
                                               ("ncnn", "ncnn")])
def test_a_missing_library_is_a_sentence_with_the_pip_line(form: str, library: str, made, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(EnvironmentFault, match=f"pip install {library}; the requirements") as caught:
        load_runtime(made[form])
    assert caught.value.exit_code == 5


def test_compiled_torch_is_the_same_and_says_what_it_lacks(made, monkeypatch):
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_with(model, backend="eager"))
    path = made["onnx"].parent / "net.pt"
    compiled, plain = load_runtime(path, compiled=True), load_runtime(path)
    assert (compiled.kind, plain.kind) == ("torch-compile", "torch")
    for a, b in zip(compiled.predict(batch()), plain.predict(batch()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)     # 1x1 convolutions have a way of their own

    def broken(*_: object) -> None:
        raise RuntimeError("no compiler")
    monkeypatch.setattr(torch, "compile", lambda model: compile_with(model, backend=broken))
    with pytest.raises(EnvironmentFault, match="C\\+\\+ compiler.*--runtimes torch,") as error:
        load_runtime(path, compiled=True).predict(batch())
    assert "--compile" not in str(error.value), "no script has that flag"
    with pytest.raises(UsageError, match="checkpoint"):
        load_runtime(made["onnx"], compiled=True)


def test_names_that_ncnn_cannot_hold_are_refused():
    from dataclasses import replace

    from deploy.runtimes.ncnn import to_ncnn
    net = tuple(replace(layer, name="my head", inputs=layer.inputs) if layer.op == "head" else layer
                for layer in small_net())
    with pytest.raises(ModelError, match="my head"):
        to_ncnn(net, {})

def test_openvino_takes_calls_side_by_side(made):
    runner, images = load_runtime(made["openvino"], threads=1).runner, batch(1)
    wanted = runner(images)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: runner(images), range(12)):
            np.testing.assert_array_equal(found[0], wanted[0])
    assert 1 <= len(runner.plans[1]) <= 4


def test_torch_takes_onednn_for_1x1_convolutions_of_several_images_on_one_thread_too(monkeypatch):
    net = NETS["micro-yolo"]
    model = randomised(net)
    runtime, real, seen = torch_runtime(net, model.state_dict(), (), SIDE), torch.mkldnn_convolution, []
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda x, *rest: seen.append(len(x)) or real(x, *rest))
    images = batch()
    with torch.no_grad():
        expected = model.eval()(images)
    for count in (1, 2):
        for found, exact in zip(runtime.predict(images[:count]), expected, strict=True):
            assert torch.allclose(found, exact[:count], atol=1e-4)
    assert set(seen) == {2}
