"""What is broken, foreign or hostile is one sentence; nothing in it runs, nothing is left behind, nobody is called."""

import builtins
import importlib
import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentdiff import InputError, TextToAudioPipeline
from latentdiff.cli import main
from latentdiff.commands.convert import convert
from tests.interop.published import edit_index

Folder = Callable[[str], Path]


class Payload:
    """A pickle that calls something when it is read."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


def payloads(sentinel: Path) -> dict[str, Any]:
    """Six kinds, each of which would make the file."""
    touch = f"import pathlib; pathlib.Path({str(sentinel)!r}).touch()"
    inner = io.BytesIO()
    torch.save(Payload(os.system, f"touch {sentinel}"), inner)
    return {
        "os.system": Payload(os.system, f"touch {sentinel}"),
        "eval": Payload(builtins.eval, f"__import__('pathlib').Path({str(sentinel)!r}).touch()"),
        "exec": Payload(builtins.exec, touch),
        "subprocess": Payload(subprocess.Popen, ["touch", str(sentinel)]),
        "import": Payload(importlib.import_module, "this"),
        "storage bytes": Payload(torch.storage._load_from_bytes, inner.getvalue()),
    }


@pytest.mark.parametrize("kind", payloads(Path("unused")))
def test_no_pickle_runs(kind: str, published_folder: Folder, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    evil = payloads(sentinel)[kind]
    sys.modules.pop("this", None)
    torch.save({"state_dict": {"model.diffusion_model.out.0.bias": torch.zeros(1), "x": evil}}, tmp_path / "new.ckpt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"generator": evil}))  # a bare pickle, as before torch 1.6
    for source in ("new.ckpt", "old.pt"):
        with pytest.raises(InputError, match="holds more than weights|not a whole file"):
            convert(tmp_path / source, tmp_path / "out", None)
    folder = shutil.copytree(published_folder("audioldm"), tmp_path / "folder")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.bias": evil}, folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="unet cannot be loaded"):
        TextToAudioPipeline.from_pretrained(folder)
    folder = shutil.copytree(published_folder("auffusion"), tmp_path / "auffusion")
    torch.save({"generator": evil}, folder / "vocoder/vocoder.pt")
    with pytest.raises(InputError, match="holds more than weights"):
        TextToAudioPipeline.from_pretrained(folder)
    assert not sentinel.exists() and "this" not in sys.modules
    assert {path.name for path in tmp_path.iterdir()} == {"new.ckpt", "old.pt", "folder", "auffusion"}


def cut(folder: Path) -> None:
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def renamed(folder: Path) -> None:
    file = folder / "text_encoder/model.safetensors"
    state = load_file(file)
    state["renamed"] = state.pop("text_projection.linear1.bias")
    save_file(state, file, {"format": "pt"})


def another_shape(folder: Path) -> None:
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file({**state, "quant_conv.bias": torch.zeros(3)}, file)


def other_width(folder: Path) -> None:
    config = json.loads((folder / "unet/config.json").read_text())
    config |= {"in_channels": 5, "out_channels": 5}
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (cut, "diffusion_pytorch_model.safetensors is not a whole safetensors file"),
    "renamed": (renamed, r"unexpected: \[renamed\], missing: \[text_projection.linear1.bias\]"),
    "shape": (another_shape, "vae cannot be loaded"),
    "no weights": (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(), "unet is without its weights"),
    "no config": (lambda f: (f / "vocoder/config.json").unlink(), "vocoder has weights and no config.json"),
    "no part": (lambda f: shutil.rmtree(f / "vae"), "vae is missing or empty"),
    "bad json": (lambda f: (f / "vae/config.json").write_text("{"), "cannot read .*vae/config.json"),
    "bad index": (lambda f: (f / "model_index.json").write_text("[1]"), "does not hold a JSON object"),
    "unknown pipeline": (lambda f: edit_index(f, _class_name="EvilPipeline"), "class EvilPipeline; known are"),
    "own program": (lambda f: edit_index(f, _class_name=["evil", "Evil"]), "never run"),
    "unknown class": (
        lambda f: edit_index(f, unet=["evil", "Evil"]),
        "unet of .* is a Evil; that of a AudioLDMPipeline",
    ),
    "unknown part": (lambda f: edit_index(f, extra=["evil", "Evil"]), "component extra of the class Evil"),
    "another family": (lambda f: edit_index(f, _class_name="AudioLDM2Pipeline"), "that of a AudioLDM2Pipeline is a"),
    "another width": (other_width, "U-Net's in_channels is 5, and the VAE's latent_channels 4"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_folder_is_one_sentence(fault: str, published_folder: Folder, tmp_path: Path) -> None:
    folder = shutil.copytree(published_folder("audioldm"), tmp_path / "model")
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    spoil, said = FAULTS[fault]
    spoil(folder)
    with pytest.raises(InputError, match=said):
        TextToAudioPipeline.from_pretrained(folder)


def test_a_missing_shard_is_named(published_folder: Folder, tmp_path: Path) -> None:
    folder = shutil.copytree(published_folder("audioldm"), tmp_path / "model")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    parts = {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}
    weights.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(InputError, match="unet is without diffusion_pytorch_model-00001-of-00002"):
        TextToAudioPipeline.from_pretrained(folder)


def test_ours_may_not_name_foreign_classes(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "model")
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    edit_index(folder, unet=["evil", "Evil"])
    with pytest.raises(InputError, match="wants evil to be run for its unet"):
        TextToAudioPipeline.from_pretrained(folder)
    edit_index(folder, unet=["diffusers", "Evil"])
    with pytest.raises(InputError, match="Evil, which no library here has"):
        TextToAudioPipeline.from_pretrained(folder)


# ---------------------------------------------------------------- the hub


class Hub(BaseHTTPRequestHandler):
    """What the hub says of three models that cannot be had."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        known = {"gated": (403, "GatedRepo"), "private": (401, "RepoNotFound"), "missing": (404, "RepoNotFound")}
        name = next((name for name in known if f"/{name}" in self.path), "missing")
        status, code = known[name]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"the hub's words on {name}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_hub_models_that_cannot_be_had(hub: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "x"}
    code = (
        "import sys; from latentdiff.cli import main\n"
        "for name in ('gated', 'private', 'missing'): main(['generate', 'a dog', '-m', f'owner/{name}'])\n"
        "for name in ('gated', 'private', 'missing'): main(['info', f'owner/{name}'])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    said = [line for line in done.stderr.splitlines() if line.startswith("latentdiff: ")]
    assert len(said) == 6 and "Traceback" not in done.stderr, done.stderr
    for first, *others in (said[:3], said[3:]):
        assert "owner/gated': its owner asks for consent first" in first
        assert all("no such model, or it is private or has been renamed" in line for line in others)
    assert not list(tmp_path.glob("*.wav"))


def test_offline_nobody_is_called(
    published_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From folders of every family, through the shell; and by a hub id that is not in the cache."""

    def forbidden(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("audioldm", "auffusion"):
        arguments = ["generate", "a dog", "-m", str(published_folder(name)), "--steps", "2", "-d", "0.02"]
        assert main([*arguments, "-o", f"{tmp_path}/{name}.wav"]) == 0
        assert main(["info", str(published_folder(name))]) == 0
    picture = ["generate", "a dog", "-m", str(published_folder("stable_diffusion")), "--steps", "2", "--size", "32"]
    assert main([*picture, "-o", f"{tmp_path}/dog.png"]) == 0
    capsys.readouterr()
    for arguments in (["generate", "a dog", "-m", "owner/name", "-o", f"{tmp_path}/x.wav"], ["info", "owner/name"]):
        assert main(arguments) == 2
        assert "not in this machine's cache, and HF_HUB_OFFLINE forbids to ask the hub" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "cache" / "models--owner--name"
    shutil.copytree(published_folder("audioldm"), model / "snapshots" / ("0" * 40))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0" * 40)
    assert main(["info", "owner/name"]) == 0
    said = capsys.readouterr().out
    assert "AudioLDMPipeline" in said and "ClapTextModelWithProjection" in said and "total" in said
    for weights in model.rglob("*.safetensors"):  # as it is where only what tells the family was fetched
        weights.unlink()
    assert main(["info", "owner/name"]) == 0
    assert "The weights are not here." in capsys.readouterr().out
