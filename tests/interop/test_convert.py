"""Original files to folders and back: equal tensors, equal outputs, and the names that diffusers' own code knows."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file
from torch import Tensor
from transformers import ClapModel, SpeechT5HifiGan, SpeechT5HifiGanConfig, T5Config, T5EncoderModel

from latentdiff import TextToAudioPipeline, TextToImagePipeline
from latentdiff.cli import main
from latentdiff.commands.convert import convert
from latentdiff.errors import InputError
from latentdiff.interop.compvis import original_state
from latentdiff.interop.original_names import clap_names, unet_names, vae_names
from latentdiff.models.clap import embed_text
from latentdiff.models.loading import load_vocoder
from latentdiff.models.vocoder import ShortHifiGan, build_vocoder
from tests.interop import published

Folder = Callable[[str], Path]
State = dict[str, Tensor]


def read(file: Path) -> State:
    state: State = torch.load(file, weights_only=True)["state_dict"]
    return state


def require_equal(first: State, second: State) -> None:
    assert set(first) == set(second)
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def latents(folder: Path, pipeline: type = TextToAudioPipeline) -> Tensor:
    pipe = pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    size = {"audio_length_in_s": 0.032} if pipeline is TextToAudioPipeline else {"height": 32, "width": 32}
    out = pipe("dog", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="latent", **size)
    z: Tensor = out[0] if isinstance(out, tuple) else (out.audios if hasattr(out, "audios") else out.images)
    return z


# ---------------------------------------------------------------- HiFi-GAN


@pytest.mark.parametrize("new_keys", [False, True])
def test_hifigan_gives_the_same_sound(tmp_path: Path, new_keys: bool) -> None:
    torch.manual_seed(0)
    original = published.vocoder(mels=8, rates=(4, 4))
    published.save_hifigan(tmp_path, "g_00000001", original, new_keys)
    with torch.no_grad():  # the file's lengths are 1.5 times those of the directions
        for name, parameter in original.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(1.5)
    assert main(["convert", str(tmp_path / "g_00000001"), str(tmp_path / "vocoder")]) == 0
    ours = SpeechT5HifiGan.from_pretrained(tmp_path / "vocoder")
    mel = torch.randn(1, 20, 8)
    wanted = original.eval()(mel)
    assert wanted.abs().max() > 0.01
    torch.testing.assert_close(ours(mel), wanted, rtol=1e-4, atol=1e-5)
    assert ours.config.mel["hop_length"] == 16 and ours.config.mel["peak"] == 0.95


def test_hifigan_round_trip(tmp_path: Path) -> None:
    """Ours -> theirs -> ours -> theirs: the same bits; the kernels too are those of the first file."""
    published.save_hifigan(tmp_path, "g_00000001", published.vocoder(rates=(4, 4)))
    for source, out in (("g_00000001", "one"), ("one", "back"), ("back/g_00000000", "two"), ("two", "back_again")):
        convert(tmp_path / source, tmp_path / out, None)
    require_equal(load_file(tmp_path / "one/model.safetensors"), load_file(tmp_path / "two/model.safetensors"))
    first, second = (
        torch.load(tmp_path / name / "g_00000000", weights_only=True)["generator"] for name in ("back", "back_again")
    )
    require_equal(first, second)
    assert "ups.0.weight_g" in first and "resblocks.0.convs1.0.weight_v" in first
    original = json.loads((tmp_path / "config.json").read_text())
    assert json.loads((tmp_path / "back/config.json").read_text()) == original


def test_hifigan_v3_both_ways(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = published.vocoder(rates=(4, 4)).config.to_dict() | {"resblock": "2"}
    original = build_vocoder(SpeechT5HifiGanConfig(**sizes)).eval()
    assert isinstance(original, ShortHifiGan)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.normal_(std=0.2)
    published.save_hifigan(tmp_path, "g_00000001", original)
    with torch.no_grad():
        for name, parameter in original.named_parameters():
            if name.endswith("weight"):
                parameter.mul_(1.5)
    for source, out in (("g_00000001", "one"), ("one", "back"), ("back/g_00000000", "two")):
        convert(tmp_path / source, tmp_path / out, None)
    mel = torch.randn(1, 20, 8)
    for name in ("one", "two"):
        torch.testing.assert_close(load_vocoder(str(tmp_path / name))(mel), original(mel), rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "back/config.json").read_text())["resblock"] == "2"


# ---------------------------------------------------------------- CompVis, AudioLDM, AudioLDM2


def test_names_are_those_that_diffusers_knows(published_folder: Folder) -> None:
    pipe = TextToImagePipeline.from_pretrained(published_folder("stable_diffusion"))
    state = original_state(pipe.components)
    unet = convert_ldm_unet_checkpoint(dict(state), dict(pipe.unet.config))
    require_equal(unet, dict(pipe.unet.state_dict()))
    vae = convert_ldm_vae_checkpoint(dict(state), dict(pipe.vae.config))
    require_equal(vae, dict(pipe.vae.state_dict()))


def test_names_of_the_published_sizes() -> None:
    """Spot checks against Stable Diffusion 1's and AudioLDM2's own names, at their real depths."""
    from diffusers import AudioLDM2UNet2DConditionModel, AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        plain = unet_names(UNet2DConditionModel(cross_attention_dim=768).state_dict())
        contexts = [[None, 768, 1024]] * 4
        two = AudioLDM2UNet2DConditionModel(block_out_channels=(32, 64, 96, 160), cross_attention_dim=contexts)
        names = unet_names(two.state_dict())
        vae = AutoencoderKL(
            block_out_channels=(32, 64, 64, 64), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        first = vae_names(vae.state_dict())
    block = "transformer_blocks.0.attn2.to_k.weight"
    assert plain[f"down_blocks.1.attentions.0.{block}"] == f"input_blocks.4.1.{block}"
    assert plain["down_blocks.2.downsamplers.0.conv.bias"] == "input_blocks.9.0.op.bias"
    assert plain["up_blocks.0.upsamplers.0.conv.weight"] == "output_blocks.2.1.conv.weight"
    assert plain["up_blocks.1.upsamplers.0.conv.weight"] == "output_blocks.5.2.conv.weight"
    assert plain["mid_block.resnets.1.conv1.weight"] == "middle_block.2.in_layers.2.weight"
    assert names[f"down_blocks.0.attentions.4.{block}"] == f"input_blocks.2.2.{block}"
    assert names[f"mid_block.attentions.2.{block}"] == f"middle_block.3.{block}"
    assert names["mid_block.resnets.1.conv1.weight"] == "middle_block.4.in_layers.2.weight"
    assert names["up_blocks.1.upsamplers.0.conv.weight"] == "output_blocks.5.4.conv.weight"
    assert first["decoder.up_blocks.0.resnets.2.conv2.bias"] == "decoder.up.3.block.2.conv2.bias"
    assert first["decoder.mid_block.attentions.0.to_out.0.weight"] == "decoder.mid.attn_1.proj_out.weight"
    for table in (plain, names, first):
        assert len(set(table.values())) == len(table)


@pytest.mark.parametrize("name", ["audioldm", "stable_diffusion"])
def test_a_whole_model_there_and_back(published_folder: Folder, name: str, tmp_path: Path) -> None:
    source, pipeline = published_folder(name), TextToAudioPipeline if name == "audioldm" else TextToImagePipeline
    convert(source, tmp_path / "model.ckpt", None)
    assert main(["convert", str(tmp_path / "model.ckpt"), str(tmp_path / "ours"), "--like", str(source)]) == 0
    convert(tmp_path / "ours", tmp_path / "again.ckpt", None)
    require_equal(read(tmp_path / "model.ckpt"), read(tmp_path / "again.ckpt"))
    assert torch.equal(latents(tmp_path / "ours", pipeline), latents(source, pipeline))


def test_the_average_wins_and_losses_are_left(published_folder: Folder, tmp_path: Path) -> None:
    convert(published_folder("audioldm"), tmp_path / "model.ckpt", None)
    state = read(tmp_path / "model.ckpt")
    prefix = "model.diffusion_model."
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"model_ema.diffusion_model{name.removeprefix(prefix).replace('.', '')}"] = state[name] + 1.0
    state["first_stage_model.loss.logvar"] = torch.zeros(1)
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "model.ckpt")
    convert(tmp_path / "model.ckpt", tmp_path / "ours", str(published_folder("audioldm")))
    raw = TextToAudioPipeline.from_pretrained(published_folder("audioldm")).unet.conv_in.bias
    pipe = TextToAudioPipeline.from_pretrained(tmp_path / "ours")
    assert torch.equal(pipe.unet.conv_in.bias, raw + 1.0)
    assert pipe.vae.config.scaling_factor == pytest.approx(0.9)


def test_audioldm2_file(published_folder: Folder, tmp_path: Path) -> None:
    """GPT-2, its projection, T5 and CLAP by the names of AudioLDM2's code."""
    source = published_folder("audioldm2")
    pipe = TextToAudioPipeline.from_pretrained(source)
    state = original_state(pipe.components)
    gpt = {name: tensor for name, tensor in pipe.language_model.state_dict().items() if name != "lm_head.weight"}
    state |= {f"cond_stage_models.0.model.{name.removeprefix('transformer.')}": part for name, part in gpt.items()}
    t5 = pipe.text_encoder.state_dict()
    state |= {f"cond_stage_models.1.model.{name}": tensor for name, tensor in t5.items()}
    bridge = pipe.projection_model
    stem = "cond_stage_models.0."
    state |= {
        f"{stem}input_sequence_embed_linear.0.weight": bridge.projection.weight,
        f"{stem}input_sequence_embed_linear.0.bias": bridge.projection.bias,
        f"{stem}input_sequence_embed_linear.1.weight": bridge.projection_1.weight,
        f"{stem}input_sequence_embed_linear.1.bias": bridge.projection_1.bias,
        f"{stem}start_of_sequence_tokens.weight": torch.stack([bridge.sos_embed, bridge.sos_embed_1]),
        f"{stem}end_of_sequence_tokens.weight": torch.stack([bridge.eos_embed, bridge.eos_embed_1]),
    }
    state |= {f"clap.model.{name}": tensor for name, tensor in laion(pipe.clap).items()}
    torch.save({"state_dict": {name: part.detach().clone() for name, part in state.items()}}, tmp_path / "model.ckpt")
    convert(tmp_path / "model.ckpt", tmp_path / "ours", str(source))
    torch.testing.assert_close(latents(tmp_path / "ours"), latents(source), atol=1e-4, rtol=1e-4)


def test_without_tokenizers_the_parts_stand_by_themselves(
    published_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(published_folder("audioldm"), tmp_path / "model.safetensors", None)
    assert main(["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "parts")]) == 0
    assert "without clap_tokenizer it is no pipeline" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"unet", "vae", "vocoder", "clap", "scheduler"}


# ---------------------------------------------------------------- Tango, CLAP


def test_tango(published_folder: Folder, tmp_path: Path) -> None:
    pipe = TextToAudioPipeline.from_pretrained(published_folder("audioldm"))
    torch.manual_seed(0)
    t5 = T5EncoderModel(
        T5Config(vocab_size=100, d_model=64, d_ff=37, d_kv=8, num_heads=2, num_layers=1, feed_forward_proj="gated-gelu")
    )
    unet = published.unet(cross_attention_dim=64, use_linear_projection=True)
    main_state = {f"unet.{name}": tensor for name, tensor in unet.state_dict().items()}
    main_state |= {f"text_encoder.{name}": tensor for name, tensor in t5.state_dict().items()}
    stem = "first_stage_model."
    first = {key[len(stem) :]: part for key, part in original_state(pipe.components).items() if key.startswith(stem)}
    folder = tmp_path / "tango"
    folder.mkdir()
    torch.save(main_state, folder / "pytorch_model_main.bin")
    torch.save(first, folder / "pytorch_model_vae.bin")
    torch.save({}, folder / "pytorch_model_stft.bin")
    (folder / "vae_config.json").write_text('{"scale_factor": 0.9}')
    assert "without tokenizer" in convert(folder, tmp_path / "ours", None)
    assert (
        json.loads((tmp_path / "ours/scheduler/scheduler_config.json").read_text())["prediction_type"] == "v_prediction"
    )
    saved = load_file(tmp_path / "ours/unet/diffusion_pytorch_model.safetensors")
    require_equal(saved, dict(unet.state_dict()))
    assert json.loads((tmp_path / "ours/vae/config.json").read_text())["scaling_factor"] == 0.9
    text = T5EncoderModel.from_pretrained(tmp_path / "ours/text_encoder")
    ids = torch.arange(5)[None]
    torch.testing.assert_close(text(ids).last_hidden_state, t5.eval()(ids).last_hidden_state)


def laion(model: ClapModel) -> State:
    """A CLAP by LAION's names: three thirds of a tensor are one."""
    own, state = model.state_dict(), {}
    for name, theirs in clap_names(own).items():
        if "[query]" in theirs:
            thirds = [own[name.replace("query", which)] for which in ("query", "key", "value")]
            state[theirs.replace("[query]", "")] = torch.cat(thirds)
        elif "[" not in theirs:
            state[theirs] = own[name]
    return state


def test_laion_clap(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clap = published.clap(32).eval()
    state = laion(clap)
    known = (
        "audio_branch.layers.0.blocks.0.attn.qkv.weight",
        "audio_branch.bn0.running_mean",
        "text_projection.2.bias",
    )
    assert set(known) <= set(state)
    state["text_branch.embeddings.position_ids"] = torch.arange(42)[None]  # as transformers 4.30 saved it
    state["text_transform.sequential.0.weight"] = torch.zeros(3)
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": part for name, part in state.items()}}, tmp_path / "c.pt")
    assert main(["convert", str(tmp_path / "c.pt"), str(tmp_path / "clap")]) == 0
    ours = ClapModel.from_pretrained(tmp_path / "clap")
    ids = torch.tensor([[0, 7, 8, 2]])
    torch.testing.assert_close(embed_text(ours, ids, torch.ones_like(ids)), embed_text(clap, ids, torch.ones_like(ids)))
    assert ours.config.audio_config.window_size == 4 and ours.config.audio_config.depths == [1, 1]
    own = ours.state_dict()
    for name, tensor in clap.state_dict().items():
        assert torch.equal(own[name], tensor), name


# ---------------------------------------------------------------- what cannot be converted


def test_what_cannot_be_converted(published_folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    convert(published_folder("audioldm"), tmp_path / "model.ckpt", None)
    state = read(tmp_path / "model.ckpt")
    state["model.diffusion_model.input_blocks.0.0.renamed"] = state.pop("model.diffusion_model.input_blocks.0.0.bias")
    torch.save({"state_dict": state}, tmp_path / "renamed.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "model.ckpt").read_bytes()[:-1000])
    for source, said in (
        ("missing", "there is no"),
        ("empty", "nothing to convert"),
        ("other.pt", "no U-Net and VAE"),
        ("renamed.ckpt", r"unexpected: \[input_blocks.0.0.renamed\], missing: \[input_blocks.0.0.bias\]"),
        ("cut.ckpt", "not a whole file"),
    ):
        with pytest.raises(InputError, match=said):
            convert(tmp_path / source, tmp_path / "out", None)
    with pytest.raises(InputError, match="exists"):
        convert(tmp_path / "model.ckpt", tmp_path / "empty", None)
    with pytest.raises(InputError, match=r"must end in \.ckpt"):
        convert(published_folder("audioldm"), tmp_path / "out", None)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"empty", "other.pt", "model.ckpt", "renamed.ckpt", "cut.ckpt"}  # nothing half-made
