"""Configurations: include, overrides, what is refused and in which words, and every YAML file of ours."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentdiff.config import (
    AudioData,
    CLAPRecipe,
    CLAPTower,
    DiffusionRecipe,
    Framing,
    ImageData,
    KLAutoencoderConfig,
    NewTextEncoder,
    PatchAutoencoderConfig,
    PlainUNetConfig,
    VAERecipe,
    load_config,
    save_config,
)
from latentdiff.config.objectives import MinSNRObjective, SimpleObjective
from latentdiff.errors import InputError

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(file for file in CONFIGS.rglob("*.yaml") if file.parent.name != "accelerate")  # those are its own

VAE = """
stage: vae
data: {path: sounds, seconds: 2.0}
output: runs/vae
train: {max_steps: 100, batch_size: 4}
optimizer: {lr: 1e-4}
"""
DIFFUSION = """
stage: diffusion
data: {path: sounds}
output: runs/diffusion
vae: runs/vae/vae
vocoder: runs/vocoder/vocoder
train: {max_steps: 100, batch_size: 4}
optimizer: {lr: 1e-4}
"""


PICTURES = VAE.replace("{path: sounds, seconds: 2.0}", "{kind: image, path: pictures, size: 32}")


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    path = tmp_path / "vae.yaml"
    path.write_text(VAE)
    return path


@pytest.fixture
def diffusion(tmp_path: Path) -> Path:
    path = tmp_path / "diffusion.yaml"
    path.write_text(DIFFUSION)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        load_config(path, list(overrides))
    return str(error.value)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(CONFIGS)))
def test_our_own_files_load_and_survive_saving(file: Path, tmp_path: Path) -> None:
    config = load_config(file)
    save_config(config, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert again == config
    assert type(again) is type(config)


def test_there_are_debug_files_of_every_stage() -> None:
    stages = {load_config(file).stage for file in FILES if file.parent.name == "debug"}
    assert {"vae", "vocoder", "clap", "diffusion"} <= stages


def test_values_and_defaults(vae: Path) -> None:
    config = load_config(vae)
    assert isinstance(config, VAERecipe)
    assert (config.data.path, config.data.seconds, config.data.held_out) == (Path("sounds"), 2.0, 0.02)
    assert (config.train.max_steps, config.train.batch_size, config.train.trackers) == (100, 4, ["tensorboard"])
    assert config.mel == "starter-16k-64" and config.seed == 0
    assert isinstance(config.autoencoder, PatchAutoencoderConfig)


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "1.0e-4", "0.0001", ".1e-3", "+1e-4", "'1e-4'", "100e-6"])
def test_numbers_as_people_write_them(vae: Path, written: str) -> None:
    """YAML 1.1 itself reads 1e-4 as a text."""
    vae.write_text(VAE.replace("1e-4", written))
    assert load_config(vae).optimizer.lr == pytest.approx(1e-4)
    assert load_config(vae, [f"optimizer.lr={written}"]).optimizer.lr == pytest.approx(1e-4)


def test_texts_that_only_look_like_numbers_stay_texts(diffusion: Path) -> None:
    config = load_config(diffusion, ["vae=1e-4/vae", "vocoder=.runs/e2", "data.caption_key=e5"])
    assert isinstance(config, DiffusionRecipe)
    assert (config.vae, config.vocoder, config.data.caption_key) == ("1e-4/vae", ".runs/e2", "e5")


def test_overrides_win_and_go_deep(diffusion: Path) -> None:
    config = load_config(
        diffusion,
        [
            "seed=7",
            "train.max_steps=5",
            "unet.block_out_channels=[16, 32]",
            "unet.attention=[false, true]",
            "text_encoder.width=64",
            "objective.kind=min_snr",
            "objective.gamma=4",
            "output=/tmp/a=b",
            "train.max_steps=6",
        ],
    )
    assert isinstance(config, DiffusionRecipe) and isinstance(config.text_encoder, NewTextEncoder)
    assert (config.seed, config.train.max_steps, config.train.batch_size) == (7, 6, 4)
    assert config.unet.block_out_channels == (16, 32) and config.unet.attention == (False, True)
    assert config.text_encoder.width == 64 and config.objective == MinSNRObjective(kind="min_snr", gamma=4.0)
    assert config.output == Path("/tmp/a=b")


def test_a_section_or_a_name(diffusion: Path) -> None:
    config = load_config(diffusion, ["text_encoder=google/flan-t5-small", "clap=runs/clap/clap"])
    assert isinstance(config, DiffusionRecipe)
    assert config.text_encoder == "google/flan-t5-small"
    none = load_config(diffusion, ["text_encoder=null"])
    assert isinstance(none, DiffusionRecipe) and none.text_encoder is None


def test_kinds_of_autoencoders(vae: Path) -> None:
    config = load_config(vae, ["autoencoder={kind: kl, block_out_channels: [32, 64]}"])
    assert isinstance(config, VAERecipe) and isinstance(config.autoencoder, KLAutoencoderConfig)
    assert config.autoencoder.block_out_channels == (32, 64)
    assert "autoencoder lacks the key 'kind'" in refusal(vae, "autoencoder.width=16")
    assert "'patch', 'kl'" in refusal(vae, "autoencoder.kind=vq")


def test_include_is_one_level_and_relative(tmp_path: Path, vae: Path) -> None:
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine/more.yaml"
    path.write_text("include: ../vae.yaml\ntrain: {max_steps: 9}\noutput: runs/other\n")
    config = load_config(path, ["train.batch_size=2"])
    assert (config.train.max_steps, config.train.batch_size, config.output) == (9, 2, Path("runs/other"))
    assert config.optimizer.lr == 1e-4 and config.data.seconds == 2.0
    third = tmp_path / "third.yaml"
    third.write_text("include: mine/more.yaml\n")
    assert "more.yaml itself has an include" in refusal(third)


@pytest.mark.parametrize("include", ["nowhere.yaml", "[a, b]", "{a: b}"])
def test_a_bad_include_is_refused(tmp_path: Path, include: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"include: {include}\n{VAE}")
    message = refusal(path)
    assert "nowhere.yaml" in message or "include" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.max_step=3", "unknown key 'train.max_step'; did you mean 'max_steps'?"),
        ("outptu=a", "unknown key 'outptu'; did you mean 'output'?"),
        ("train.lr=3", "unknown key 'train.lr'; did you mean 'optimizer.lr'?"),
        ("unet.atention=[true]", "unknown key 'unet.atention'; did you mean 'attention'?"),
        ("text_encoder.widht=64", "unknown key 'text_encoder.widht'; did you mean 'width'?"),
        ("zzz=1", "unknown key 'zzz'; did you mean"),
    ],
)
def test_an_unknown_key_names_the_nearest(diffusion: Path, override: str, words: str) -> None:
    message = refusal(diffusion, override)
    assert message.startswith(f"{diffusion}: {words}")
    assert "\n" not in message and message.count("unknown key") == 1 and ";" not in message.split("?")[1]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optimizer.lr=0", "optimizer.lr"),
        ("optimizer.lr=fast", "optimizer.lr"),
        ("optimizer.lr=.nan", "optimizer.lr"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas.1"),
        ("optimizer.betas=[0.9]", "optimizer.betas"),
        ("optimizer.schedule=cosinus", "optimizer.schedule"),
        ("optimizer=3", "optimizer"),
        ("train.max_steps=0", "train.max_steps"),
        ("train.max_steps=1.5", "train.max_steps"),
        ("train.batch_size=-1", "train.batch_size"),
        ("train.ema_decay=1", "train.ema_decay"),
        ("train.mixed_precision=fp8", "train.mixed_precision"),
        ("data.seconds=0", "data.seconds"),
        ("data.held_out=0.95", "data.held_out"),
        ("seed=-1", "seed"),
        ("seed=4294967296", "seed"),
        ("caption_dropout=1", "caption_dropout"),
        ("schedule.beta_end=2", "schedule.beta_end"),
        ("sampler=plms", "sampler"),
        ("text_encoder.vocabulary=10", "text_encoder.vocabulary"),
    ],
)
def test_a_bad_value_is_named(diffusion: Path, override: str, key: str) -> None:
    message = refusal(diffusion, override)
    assert message.startswith(f"{diffusion}: {key}")
    assert "\n" not in message and "NewTextEncoder" not in message


@pytest.mark.parametrize("override", ["autoencoder.patch_size=6", "autoencoder.width=20"])
def test_sizes_that_cannot_be_built_are_refused(vae: Path, override: str) -> None:
    assert override.split("=")[0] in refusal(vae, "autoencoder.kind=patch", override)


@pytest.mark.parametrize("key", ["stage", "data", "output", "train", "optimizer"])
def test_a_missing_key_is_named(vae: Path, key: str) -> None:
    vae.write_text("\n".join(line for line in VAE.splitlines() if not line.startswith(key)))
    assert key in refusal(vae)


def test_several_problems_are_said_at_once(diffusion: Path) -> None:
    message = refusal(diffusion, "seed=-1", "train.max_steps=0")
    assert "seed" in message and "train.max_steps" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not hold keys"),
        ("- a\n- b\n", "does not hold keys"),
        ("stage: [vae\n", "not valid YAML"),
        ("stage: !!python/object:os.system {}\n", "not valid YAML"),
        ("stage: unknown\n", "'vae', 'vocoder', 'clap', 'diffusion', 'consistency', 'judge'"),
        ("1: 2\n" + VAE, "1: Keys should be strings"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = refusal(path)
    assert "bad.yaml" in message and words in message and "\n" not in message


def test_missing_and_binary_files(tmp_path: Path) -> None:
    assert "there is no configuration file" in refusal(tmp_path / "no.yaml")
    assert "there is no configuration file" in refusal(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refusal(tmp_path / "binary.yaml")


@pytest.mark.parametrize("override", ["seed", "=3", "seed: 3"])
def test_an_override_without_a_key_or_value_is_refused(vae: Path, override: str) -> None:
    assert f"'{override}' is not of the form key.sub=value" in refusal(vae, override)


def test_an_override_that_is_no_yaml_is_refused(vae: Path) -> None:
    assert "the value of 'mel' is not valid YAML" in refusal(vae, "mel={a: [}")


def test_a_config_does_not_change(vae: Path) -> None:
    config: Any = load_config(vae)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def test_clap_of_a_size_or_by_name(tmp_path: Path) -> None:
    path = tmp_path / "clap.yaml"
    path.write_text(VAE.replace("stage: vae", "stage: clap"))
    config = load_config(path)
    assert isinstance(config, CLAPRecipe) and isinstance(config.model, CLAPTower)
    by_name = load_config(path, ["model=laion/clap-htsat-unfused"])
    assert isinstance(by_name, CLAPRecipe) and by_name.model == "laion/clap-htsat-unfused"


def test_reading_a_config_imports_nothing_heavy(vae: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from latentdiff.config import load_config; "
        f"load_config(Path({str(vae)!r})); "
        "print([m for m in ('torch', 'transformers', 'diffusers', 'librosa') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# ---------------------------------------------------------------- objectives


def test_objectives_say_what_they_need(diffusion: Path, tmp_path: Path) -> None:
    config = load_config(diffusion, ["objective={prediction: v_prediction}"])
    assert isinstance(config, DiffusionRecipe)
    assert config.objective == SimpleObjective(prediction="v_prediction") and config.schedule is not None
    flow = load_config(diffusion, ["objective={kind: flow, shift: 3}"])
    assert isinstance(flow, DiffusionRecipe) and flow.schedule is None
    save_config(flow, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == flow


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective.kind=ddpm"], "'simple', 'min_snr', 'p2', 'hybrid', 'vlb', 'edm', 'flow', 'vdm', 'one_step_vae'"),
        (["objective={kind: flow, gamma: 5}"], "'gamma' is a key of another kind of objective"),
        (["objective={prediction: score}"], "objective.prediction: Input should be 'epsilon', 'sample' or 'v_pred"),
        (["objective={kind: edm}", "schedule.beta_end=0.1"], "objective.kind is edm, which says its own process"),
        (["schedule=null"], "schedule is null, and the objective needs one"),
        (
            ["schedule.prediction_type=epsilon"],
            "unknown key 'schedule.prediction_type'; did you mean 'objective.pred",
        ),
        (["min_snr_gamma=5"], "unknown key 'min_snr_gamma'; did you mean"),
        (["unet.kind=plain"], "unet.kind is plain, which hears no prompt; set conditioning: none"),
        (["unet.dropout=0.1"], "'dropout' is a key of another kind of unet"),
        (["conditioning=none"], "conditioning is none, which only pictures can have"),
        (["unet.kind=two_stream"], "language_model and unet.kind two_stream go together"),
        (["language_model=gpt2"], "language_model and unet.kind two_stream go together"),
        (["language_model=gpt2", "unet.kind=two_stream"], "goes on from a published text_encoder and a clap"),
        (["adapter=768"], "adapter stands behind a published text_encoder"),
        (["default_guidance_interval=[0.8, 0.2]"], "default_guidance_interval: must be two shares from 0 to 1"),
    ],
)
def test_objectives_and_conditioning_that_do_not_fit(diffusion: Path, overrides: list[str], words: str) -> None:
    message = refusal(diffusion, *overrides)
    assert words in message and "\n" not in message


def test_models_without_a_prompt(diffusion: Path, tmp_path: Path) -> None:
    pictures = ["data={kind: image, path: pictures}", "vocoder=null", "vae=none", "conditioning=none"]
    config = load_config(diffusion, [*pictures, "unet={kind: plain}"])
    assert isinstance(config, DiffusionRecipe) and isinstance(config.unet, PlainUNetConfig)
    assert (config.text_encoder, config.caption_dropout, config.default_guidance) == (None, 0.0, 1.0)
    save_config(config, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config
    for said in ("text_encoder={width: 64}", "caption_dropout=0.1", "default_guidance=3", "pooled_tokens=true"):
        message = refusal(diffusion, *pictures, said)
        assert f"{said.split('=')[0]} is a key for models with prompts, and conditioning is none" in message


# ---------------------------------------------------------------- pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    path = tmp_path / "pictures.yaml"
    path.write_text(PICTURES)
    return path


def test_data_is_of_sounds_unless_it_says_otherwise(vae: Path, pictures: Path) -> None:
    assert isinstance(load_config(vae).data, AudioData)
    config = load_config(pictures, ["data.fit=pad", "data.background='#102030'", "data.channels=1"])
    assert isinstance(config, VAERecipe) and isinstance(config.data, ImageData) and config.mel is None
    assert config.data.framing == Framing(size=(32, 32), fit="pad", background="#102030", channels=1)
    assert load_config(pictures, ["data.size=[16, 48]"]).data.size == (16, 48)


def test_a_configuration_of_pictures_survives_saving(pictures: Path, tmp_path: Path) -> None:
    config = load_config(pictures, ["data.held_out=others"])
    assert config.data.held_out == Path("others")
    save_config(config, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.seconds=2", "'seconds' is a key of another kind of data; leave it out or change data.kind"),
        ("mel=starter-16k-64", "mel is a key for sounds, and data.kind is image"),
        ("data.kind=video", "'audio', 'image'"),
        ("data.size=0", "data.size: Input should be greater than 0 (got 0)."),
        ("data.size=[32, 32, 3]", "data.size"),
        ("data.size=large", "data.size"),
        ("data.fit=box", "data.fit: Input should be 'crop', 'pad' or 'stretch'"),
        ("data.background=nocolour", "data.background: unknown color specifier: 'nocolour'"),
        ("data.channels=4", "data.channels: Input should be 1 or 3"),
        ("data.sise=32", "unknown key 'data.sise'; did you mean 'size'"),
    ],
)
def test_bad_keys_of_pictures(pictures: Path, override: str, words: str) -> None:
    message = refusal(pictures, override)
    assert message.startswith(f"{pictures}: ") and words in message and "\n" not in message


@pytest.mark.parametrize("override", ["data.size=32", "data.background=white", "data.fit=pad"])
def test_keys_of_pictures_are_refused_for_sounds(vae: Path, override: str) -> None:
    assert "is a key of another kind of data" in refusal(vae, override)


def test_sounds_keep_their_mel(vae: Path) -> None:
    assert "sounds need a mel" in refusal(vae, "mel=null")


@pytest.mark.parametrize("stage", ["vocoder", "clap"])
def test_stages_that_are_of_sounds_alone(pictures: Path, stage: str) -> None:
    assert "data" in refusal(pictures, f"stage={stage}")


def test_diffusion_on_pictures(diffusion: Path) -> None:
    data = "data={kind: image, path: pictures}"
    config = load_config(diffusion, [data, "vocoder=null", "vae=none"])
    assert isinstance(config, DiffusionRecipe) and (config.vae, config.vocoder) == (None, None)
    assert "vocoder is a key for sounds" in refusal(diffusion, data)
    assert "clap is a key for sounds" in refusal(diffusion, data, "vocoder=null", "clap=runs/clap")
    assert "vae is missing: sounds need one" in refusal(diffusion, "vae=none")
    assert "vocoder is missing: sounds need one" in refusal(diffusion, "vocoder=null")
