"""Going on from finished pipelines: what learns and what stays, where it begins, LoRA, and resuming."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from diffusers import AudioLDM2UNet2DConditionModel, DiffusionPipeline, UNet2DConditionModel
from PIL import Image

from latentdiff import InputError, TextToAudioPipeline, TextToImagePipeline
from latentdiff.cli import main
from latentdiff.config import AnyRecipe, load_config
from latentdiff.media.audio import read_audio, read_recipe
from latentdiff.models.lora import merge_lora
from latentdiff.models.vocabulary import Vocabulary
from latentdiff.names import LORA_FILE
from latentdiff.training.first_stage import FirstStage
from latentdiff.training.loop import Trainer
from latentdiff.training.recipes.diffusion import DiffusionTraining
from tests.interop.conftest import published_folder  # noqa: F401 (a fixture)
from tests.training.conftest import train

Folder = Callable[[str], Path]
LORA = "lora={rank: 2, alpha: 4}"
FAMILIES = ("audioldm", "musicldm", "audioldm2-without-head", "stable_diffusion", "auffusion")
OURS = ("ours", "our pictures")


@pytest.fixture(autouse=True)
def no_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sounds and pictures for people cost more than these few steps, and are looked at elsewhere."""
    monkeypatch.setattr(FirstStage, "save_examples", lambda stage, folder, pipeline, captions: None)


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight captioned pictures of 32 x 32."""
    folder, rng = tmp_path_factory.mktemp("drawings"), np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    lines = [f"{number}.png,{'a dog' if number % 2 else 'some rain'}" for number in range(8)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *lines]) + "\n")
    return folder


@pytest.fixture(scope="session")
def blips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight captioned sounds of 0.032 s, one window each for the tiny vocoders."""
    folder, rng = tmp_path_factory.mktemp("blips"), np.random.default_rng(0)
    for number in range(8):
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(512), 16000)
    lines = [f"{number}.wav,{'a dog' if number % 2 else 'some rain'}" for number in range(8)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *lines]) + "\n")
    return folder


@pytest.fixture
def folder_of(
    published_folder: Folder,  # noqa: F811
    tiny_pipeline: Path,
    tiny_image_pipeline: Path,
) -> Folder:
    own = dict(zip(OURS, (tiny_pipeline, tiny_image_pipeline), strict=True))
    return lambda name: own[name] if name in own else published_folder(name)


@pytest.fixture
def configure(folder_of: Folder, tones: Path, blips: Path, drawings: Path, tmp_path: Path) -> Callable[..., AnyRecipe]:
    """A configuration that goes on from a model by its name in these tests, two steps long."""

    def of(name: str, *overrides: str, output: str = "run") -> AnyRecipe:
        pictures = name in ("our pictures", "stable_diffusion")
        if pictures:
            data = f"data={{kind: image, path: {drawings}, size: 32, held_out: 0.3}}"
        else:
            sounds, seconds = (tones, 0.512) if name == "ours" else (blips, 0.032)
            data = f"data={{path: {sounds}, seconds: {seconds}, held_out: 0.3}}"
        file = tmp_path / "finetune.yaml"
        file.write_text(
            "stage: diffusion\ntrain: {max_steps: 2, batch_size: 4, validate_every: 2, checkpoint_every: 1, "
            "keep_checkpoints: 9, trackers: [], overfit_check_steps: 0}\noptimizer: {lr: 1e-2}\n"
        )
        init = f"init={folder_of(name)}"
        return load_config(file, [data, init, f"output={tmp_path / output}", "default_steps=2", *overrides])

    return of


def weights(recipe: DiffusionTraining) -> dict[str, torch.Tensor]:
    """All of the pipeline that is being trained, by component and name."""
    assert recipe.finished is not None
    parts = recipe.finished.pipeline.components
    return {
        f"{part}.{name}": tensor.detach().clone()
        for part, module in parts.items()
        if isinstance(module, torch.nn.Module)
        for name, tensor in module.state_dict().items()
    }


def moved_by_a_step(config: AnyRecipe) -> tuple[set[str], set[str]]:
    """Names of what one optimisation step changes, and of all."""
    trainer = Trainer(config, DiffusionTraining)
    recipe = trainer.recipe
    assert isinstance(recipe, DiffusionTraining)
    if config.lora is not None:  # type: ignore[union-attr]  # B is zero, so A would only move with the second step
        for name, parameter in recipe.unet.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    before = weights(recipe)
    trainer._train_step(trainer._batches())
    after = weights(recipe)
    return {name for name in before if not torch.equal(before[name], after[name])}, set(before)


@pytest.mark.parametrize("name", [*OURS, *FAMILIES])
@pytest.mark.parametrize("extra", ["", LORA], ids=["whole", "lora"])
def test_one_step_moves_what_it_should(name: str, extra: str, configure: Callable[..., AnyRecipe]) -> None:
    moved, everything = moved_by_a_step(configure(name, "caption_dropout=0.3", *filter(None, [extra])))
    if extra:
        wanted = {part for part in everything if ".lora_" in part}
        assert wanted and all(part.startswith("unet.") for part in wanted)
    else:
        wanted = {part for part in everything if part.startswith(("unet.", *(["text_encoder."] * (name in OURS))))}
        # Between these two words and silence no other pieces, and biases under a norm have no gradient.
    assert moved <= wanted, sorted(moved - wanted)[:5]
    assert len(moved) > 0.95 * len(wanted), sorted(wanted - moved)


@pytest.mark.parametrize("times", ["uniform", "importance"])
def test_channels_are_weighed_by_the_decoder(times: str, configure: Callable[..., AnyRecipe]) -> None:
    objective = f"objective={{kind: simple, channel_weights: decoded, times: {times}}}"
    recipe: Any = DiffusionTraining(configure("our pictures", objective), torch.device("cpu"))
    expected = recipe.first_stage.channel_weights(recipe.latents)
    drawn = recipe.drawn if times == "uniform" else recipe.drawn.objective
    assert torch.equal(drawn.channels, expected) and len(expected.unique()) == recipe.latents.mean.shape[1]


def test_a_text_encoder_of_ours_may_be_kept(configure: Callable[..., AnyRecipe]) -> None:
    moved, _ = moved_by_a_step(configure("ours", "train_text_encoder=false"))
    assert moved and all(name.startswith("unet.") for name in moved)


@pytest.mark.parametrize("name", ["ours", "audioldm2-without-head", "stable_diffusion", "auffusion"])
def test_cached_prompts_are_what_the_pipeline_says(name: str, configure: Callable[..., AnyRecipe]) -> None:
    """With captions of different length and dropped ones in one batch."""
    recipe = DiffusionTraining(configure(name, LORA), torch.device("cpu"))
    rows = [recipe.latents.parts[i] for i in range(3)]
    from latentdiff.data.items import Draw, collate

    batch = collate([recipe.items[Draw(i, i)] for i in range(3)])  # type: ignore[index]
    dropped = torch.tensor([True, False, False])
    captions = ["", *batch["caption"][1:]]
    told = recipe.listener.told(batch, dropped, recipe.latents.prompts.empty())
    z, t = torch.stack([row["mean"] for row in rows]), torch.tensor([5, 500, 900])
    assert recipe.finished is not None
    pipe = recipe.finished.pipeline
    with torch.no_grad():
        made = recipe.predict(z, t, captions, told)
        for i, caption in enumerate(captions):
            tau = pipe.encode_prompt([caption])
            wanted = pipe.unet(z[i : i + 1], t[i], **tau.unet_arguments()).sample
            torch.testing.assert_close(made[i : i + 1], wanted, atol=2e-3, rtol=2e-2)  # the cache's half precision
        other = recipe.predict(z, t, captions[::-1], recipe.listener.read(captions[::-1]))
    assert (other - made).abs().max() > 1e-2 * made.abs().max() or name == "ours"


def test_it_begins_where_the_starter_is(tones: Path, tmp_path: Path) -> None:
    """The held-out loss before any step is the starter's own, by hand, and not that of a new network."""
    file = tmp_path / "starter.yaml"
    file.write_text(
        f"stage: diffusion\ninit: starter-audio\ndata: {{path: {tones}, seconds: 1.024, held_out: 0.3}}\n"
        f"output: {tmp_path / 'run'}\ntrain: {{max_steps: 1, batch_size: 2}}\noptimizer: {{lr: 1e-4}}\n"
    )
    recipe = DiffusionTraining(load_config(file), torch.device("cpu"))
    with torch.no_grad():
        found = recipe.validate(tmp_path)["loss"]
    pipe = TextToAudioPipeline.from_pretrained("starter-audio")
    learnt, before = recipe.pipeline().vocabulary, pipe.vocabulary
    assert learnt is not None and before is not None  # words of the captions join those that it knew
    assert learnt.read("a puppy tone") == "a dog tone" and before.read("a puppy tone") != "a dog tone"
    pipe.vocabulary = None  # training takes captions as they are, and "tone" is no word of the starter's
    z, captions = recipe.held_out.mean[:], [recipe.held_out.rows[int(i)].captions[0] for i in recipe.held_out.owner[:]]
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(z.shape, generator=generator)
    t = recipe.objective.draw_times(len(z), generator)
    alpha_bar = pipe.scheduler.alphas_cumprod[t][:, None, None, None]
    z_t, v = alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * eps, alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * z
    with torch.no_grad():
        made = pipe.unet(z_t, t, **pipe.encode_prompt(captions).unet_arguments()).sample
        torch.nn.init.normal_(pipe.unet.conv_out.weight, std=0.02)
        new = pipe.unet(z_t, t, **pipe.encode_prompt(captions).unet_arguments()).sample
    assert found == pytest.approx(float((made - v).square().mean()), rel=1e-3)
    assert found < 0.9 * float((new - v).square().mean())


@pytest.mark.parametrize("name", [*OURS, *FAMILIES])
def test_a_lora_changes_plain_diffusers_alike(
    name: str, configure: Callable[..., AnyRecipe], folder_of: Folder
) -> None:
    output = train(configure(name, LORA, "sampler=ddim"))
    lora = output / "lora"
    assert {path.name for path in output.iterdir()} >= {"lora"} and not (output / "pipeline").exists()
    assert [path.name for path in lora.iterdir()] == [LORA_FILE]
    kind: Any = TextToImagePipeline if name in ("our pictures", "stable_diffusion") else TextToAudioPipeline
    pipe, plain = kind.from_pretrained(folder_of(name)), kind.from_pretrained(folder_of(name))
    tau, names = pipe.encode_prompt(["a dog"]).unet_arguments(), set(plain.unet.state_dict())
    z, t = torch.randn(1, 4, 16, 8), torch.tensor([400])
    with torch.no_grad():
        before = pipe.unet(z, t, **tau).sample
        pipe.load_lora_weights(lora)
        mine = pipe.unet(z, t, **tau).sample
        if isinstance(plain.unet, AudioLDM2UNet2DConditionModel):  # diffusers gives it no loader; peft alone does
            theirs = plain.unet
            add_by_peft(theirs, lora)
        elif name == "stable_diffusion":
            pipeline = DiffusionPipeline.from_pretrained(folder_of(name))
            pipeline.load_lora_weights(lora, weight_name=LORA_FILE)
            theirs = pipeline.unet
        else:
            theirs = UNet2DConditionModel.from_pretrained(folder_of(name) / "unet")
            theirs.load_lora_adapter(lora, prefix="unet", weight_name=LORA_FILE)
        wanted = theirs(z, t, **tau).sample
    assert (mine - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert (mine - before).abs().max() > 1e-4 * wanted.abs().max()
    assert set(pipe.unet.state_dict()) == names


def add_by_peft(unet: Any, lora: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import set_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(lora / LORA_FILE, "pt") as file:
        state = {key.removeprefix("unet."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    config = LoraConfig(
        r=said["unet.r"], lora_alpha=said["unet.lora_alpha"], target_modules=said["unet.target_modules"]
    )
    inject_adapter_in_model(config, unet)
    assert not set_peft_model_state_dict(unet, state).unexpected_keys


def test_the_result_is_a_whole_pipeline(configure: Callable[..., AnyRecipe], folder_of: Folder) -> None:
    output = train(configure("audioldm", "sampler=unipc"))
    pipe = TextToAudioPipeline.from_pretrained(output / "pipeline")
    own = TextToAudioPipeline.from_pretrained(folder_of("audioldm"))
    assert type(pipe.scheduler).__name__ == "UniPCMultistepScheduler"
    assert (pipe.config.default_steps, pipe.config.default_guidance) == (2, own.config.default_guidance)
    assert pipe.config.default_seconds == 0.032
    plain = UNet2DConditionModel.from_pretrained(output / "pipeline" / "unet").state_dict()
    changed = [name for name, tensor in own.unet.state_dict().items() if not torch.equal(tensor, plain[name])]
    assert len(changed) > 0.9 * len(plain)
    assert all(torch.equal(a, b) for a, b in zip(own.clap.parameters(), pipe.clap.parameters(), strict=True))


@pytest.mark.parametrize(("name", "extra"), [("ours", ""), ("audioldm2-without-head", LORA)])
def test_resumed_equals_unbroken(
    name: str, extra: str, configure: Callable[..., AnyRecipe], monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    from tests.training.test_resume import assert_same, contents

    monkeypatch.setattr(DiffusionTraining, "validate", lambda recipe, folder: {})
    more = [*filter(None, [extra]), "train.ema_decay=0.9", "train.max_steps=3"]
    unbroken = train(configure(name, *more))
    stopped = unbroken.with_name("stopped")
    shutil.copytree(unbroken, stopped, ignore=shutil.ignore_patterns("pipeline", "lora"))
    for step in (2, 3):
        shutil.rmtree(stopped / "checkpoints" / f"step-{step:08d}")
    train(configure(name, *more, output="stopped"))
    last = "checkpoints/step-00000003"
    found = contents(stopped / last)
    assert_same(found, contents(unbroken / last))
    if extra:  # no frozen encoder is in it
        assert not any("text_encoder" in key or "language_model" in key for key in found)


def test_generate_takes_a_lora(configure: Callable[..., AnyRecipe], folder_of: Folder, tmp_path: Path) -> None:
    lora = train(configure("ours", LORA, "optimizer.lr=0.3")) / "lora"
    common = ["generate", "a dog", "-m", str(folder_of("ours")), "-d", "0.1", "--steps", "2", "--seed", "0"]
    for name, more in (("plain", []), ("one", ["--lora", str(lora)]), ("two", ["--lora", str(lora)] * 2)):
        assert main([*common, *more, "-o", f"{tmp_path}/{name}.wav"]) == 0
    assert read_recipe(tmp_path / "two.wav")["lora"] == [str(lora)] * 2  # type: ignore[index]
    Vocabulary.of_captions(["a dog"]).save(lora)
    pipe = TextToAudioPipeline.from_pretrained(folder_of("ours"))
    pipe.vocabulary = Vocabulary(frozenset({"rain"}), {"dog": "rain", "hound": "rain"})
    pipe.load_lora_weights(lora)
    assert pipe.vocabulary.read("dog, hound") == "dog, rain"
    plain, one, two = (read_audio(tmp_path / f"{name}.wav")[0] for name in ("plain", "one", "two"))
    assert not np.array_equal(plain, one) and not np.array_equal(one, two)


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    """A LoRA of another U-Net."""
    from latentdiff.models.lora import add_lora, save_lora
    from tests.interop.published import unet

    other = unet(cross_attention_dim=24)
    add_lora(other, 2, None, ["to_k"])
    save_lora(other, tmp_path / "foreign")
    yield tmp_path / "foreign"


def test_a_wrong_lora_is_one_sentence(foreign: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    pipe = TextToAudioPipeline.from_pretrained(tiny_pipeline)
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    with pytest.raises(InputError, match="is of another model"):
        pipe.load_lora_weights(foreign)
    with pytest.raises(InputError, match="is no LoRA: it has no pytorch_lora_weights.safetensors"):
        pipe.load_lora_weights(tiny_pipeline)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / LORA_FILE).write_bytes((foreign / LORA_FILE).read_bytes()[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        merge_lora(pipe.unet, tmp_path / "cut")
    with pytest.raises(InputError, match="not a LoRA of a U-Net in diffusers' layout"):
        merge_lora(pipe.unet, tiny_pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.unet.state_dict().items())


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("ours", "vae=runs/vae", "vae comes from init, .*; leave it out"),
        ("ours", "unet={layers_per_block: 2}", "unet comes from init"),
        ("ours", "schedule={beta_start: 0.001}", "schedule comes from init"),
        ("ours", "objective={prediction: sample}", "objective.prediction comes from init"),
        ("ours", "objective={kind: flow}", "objective.kind is flow, which says its own process; init brings one"),
        ("ours", "text_encoder=flan", "text_encoder comes from init"),
        ("ours", "init=null", "vae: Field required"),
        ("ours", "lora={targets: [to_z]}", "lora.targets is .* does not fit this U-Net"),
        ("ours", "init=nowhere", "init is nowhere, which is no folder"),
        ("ours", "objective={kind: vlb}", "the objective needs 8 channels of output, and init has 4"),
        ("stable_diffusion", "data.channels=1", "pictures with 3 channels, and data.channels is 1"),
    ],
)
def test_bad_configurations(name: str, override: str, words: str, configure: Callable[..., AnyRecipe]) -> None:
    with pytest.raises(InputError, match=words):
        DiffusionTraining(configure(name, override), torch.device("cpu"))


def test_the_other_medium_is_refused(configure: Callable[..., AnyRecipe], folder_of: Folder) -> None:
    with pytest.raises(InputError, match="makes media of the kind image, and data.kind is audio"):
        DiffusionTraining(configure("ours", f"init={folder_of('our pictures')}"), torch.device("cpu"))


def test_lora_needs_init(tmp_path: Path) -> None:
    configs = Path(__file__).parents[2] / "configs"
    with pytest.raises(InputError, match="lora is a key for going on from a finished model; name it by init"):
        load_config(configs / "debug" / "audio_diffusion.yaml", [LORA])
