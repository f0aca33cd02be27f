"""The loop and the recipes: guards, what is saved, and that shuffled captions would be noticed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from latentdiff import InputError, TextToAudioPipeline
from latentdiff.config import NewTextEncoder
from latentdiff.models.loading import load_autoencoder, load_vocoder
from latentdiff.models.text import new_t5, new_tokenizer
from latentdiff.training.guards import NonFiniteError
from latentdiff.training.loop import Trainer, overfit_one_batch, seeded_generator, weighted_sum
from latentdiff.training.recipes import RECIPES
from tests.training.conftest import debug_config, diffusion_parts, train


def manifest(output: Path, step: int) -> dict[str, dict]:
    return json.loads((output / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())["files"]


def test_weights_do_move_between_checkpoints(stages: dict[str, Path]) -> None:
    """Guards the tests of resuming: equal weights would mean nothing if training changed nothing."""
    for output in stages.values():
        assert manifest(output, 3)["model.safetensors"]["sha256"] != manifest(output, 6)["model.safetensors"]["sha256"]


def test_each_stage_saves_what_loads_by_itself(stages: dict[str, Path]) -> None:
    vae, vocoder = (
        load_autoencoder(str(stages["vae"] / "vae")),
        load_vocoder(str(stages["vocoder"] / "vocoder")),
    )
    assert vae.config.mel == vocoder.config.mel
    assert 0.3 < vae.config.scaling_factor < 3.0  # PCA whitens, so the measured scale is near one
    for stage, output in stages.items():
        assert (output / "config.yaml").is_file(), stage
        assert list((output / "validation" / "step-00000006").iterdir()) or stage == "clap"
    pipe = TextToAudioPipeline.from_pretrained(stages["diffusion"] / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a low tone", generator=torch.Generator().manual_seed(0))
    assert np.isfinite(out.audios).all() and out.audios.std() > 1e-4
    assert pipe.clap is not None and pipe.text_encoder is not None


def test_exported_weights_are_the_average(stages: dict[str, Path]) -> None:
    exported = load_file(stages["vae"] / "vae" / "diffusion_pytorch_model.safetensors")
    current = load_file(stages["vae"] / "checkpoints" / "step-00000006" / "model.safetensors")
    name = "analysis.weight"
    assert not torch.equal(exported[name], current[f"vae.{name}"])


def test_frozen_parts_do_not_move(stages: dict[str, Path]) -> None:
    for part, file in (
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("vocoder", "model.safetensors"),
        ("clap", "model.safetensors"),
    ):
        before = load_file(stages[part] / part / file)
        after = load_file(stages["diffusion"] / "pipeline" / part / file)
        assert all(torch.equal(before[name], after[name]) for name in after)


def test_overfit_check_lowers_the_loss_and_puts_the_weights_back(tones: Path, tmp_path: Path) -> None:
    trainer = Trainer(debug_config("vae", tones, tmp_path), RECIPES["vae"])
    before = {name: p.clone() for name, p in trainer.recipe.networks["vae"].named_parameters()}
    first, last = overfit_one_batch(trainer, 10)
    assert last < 0.95 * first
    for name, parameter in trainer.recipe.networks["vae"].named_parameters():
        assert torch.equal(before[name], parameter), name


def test_a_loss_that_is_not_finite_changes_nothing(tones: Path, tmp_path: Path) -> None:
    config = debug_config("vae", tones, tmp_path)
    trainer = Trainer(config, RECIPES["vae"])
    networks, right = trainer.recipe.networks, RECIPES["vae"].losses
    before = {name: p.clone() for name, p in networks["vae"].named_parameters()}

    def poisoned(batch, step):
        for phase, terms in right(trainer.recipe, batch, step):
            yield phase, {name: value * float("nan") for name, value in terms.items()}

    trainer.recipe.losses = poisoned
    with pytest.raises(NonFiniteError, match=r"step 0, phase vae, rows \[\d+.*reconstruction nan"):
        trainer.run()
    for name, parameter in networks["vae"].named_parameters():
        assert torch.equal(before[name], parameter), name


def test_gradient_accumulation_is_the_mean_of_its_shares(tones: Path, tmp_path: Path) -> None:
    """Two shares of 2 take the same step as one batch of 4, where the loss draws nothing at random."""
    weights = []
    for batch, shares in ((4, 1), (2, 2)):
        overrides = [f"train.batch_size={batch}", f"train.gradient_accumulation={shares}", "train.max_steps=1",
                     "weights.kl=0", "weights.adversarial=0", "train.mixed_precision=no"]  # fmt: skip
        trainer = Trainer(debug_config("vae", tones, tmp_path / str(batch), *overrides), RECIPES["vae"])
        forward = trainer.recipe.networks["vae"].forward
        trainer.recipe.networks["vae"].forward = lambda x, generator, forward=forward: forward(x, None)
        trainer._train_step(trainer._batches())
        weights.append({name: p.detach().clone() for name, p in trainer.recipe.vae.named_parameters()})
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=2e-5, rtol=1e-3)


def test_accumulated_generator_gradients_outlive_the_discriminator_step(tones: Path, tmp_path: Path) -> None:
    """With two phases and two shares, the autoencoder's step must hold the gradients of both shares."""
    overrides = ["train.gradient_accumulation=2", "train.batch_size=2", "adversarial_start=0"]
    trainer = Trainer(debug_config("vae", tones, tmp_path, *overrides), RECIPES["vae"])
    norms: dict[str, list[float]] = {"vae": [], "discriminator": []}
    backward = trainer._backward

    def watch(phase: str, loss: torch.Tensor, sync: bool) -> None:
        before = {name: gradient_norm(trainer.recipe.networks[name]) for name in norms}
        backward(phase, loss, sync)
        other = "vae" if phase == "discriminator" else "discriminator"
        assert gradient_norm(trainer.recipe.networks[other]) == before[other]  # a phase leaves the other alone
        norms[phase].append(gradient_norm(trainer.recipe.networks[phase]))

    trainer._backward = watch
    trainer._train_step(trainer._batches())
    assert len(norms["vae"]) == len(norms["discriminator"]) == 2
    assert norms["vae"][1] > norms["vae"][0] > 0


def gradient_norm(network: torch.nn.Module) -> float:
    return sum(float(p.grad.norm()) for p in network.parameters() if p.grad is not None)


def test_wrong_vae_scale_is_said_before_training(stages: dict[str, Path], tones: Path, tmp_path: Path) -> None:
    shutil.copytree(stages["vae"] / "vae", tmp_path / "vae")
    path = tmp_path / "vae" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "scaling_factor": 10 * values["scaling_factor"]}))
    parts = [*diffusion_parts(stages), f"vae={tmp_path / 'vae'}"]
    recipe = RECIPES["diffusion"](debug_config("diffusion", tones, tmp_path / "run", *parts), torch.device("cpu"))
    assert any("standard deviation" in warning and "scaling_factor" in warning for warning in recipe.check())


def test_a_published_text_encoder_is_used_as_it_is(stages: dict[str, Path], tones: Path, tmp_path: Path) -> None:
    """A T5 folder with its tokenizer, as flan-t5 comes: cross-attention on it, no CLAP, and it does not move."""
    torch.manual_seed(1)
    tokenizer = new_tokenizer(["a low tone", "a high tone"], 100)
    published = new_t5(NewTextEncoder(width=24, layers=1, heads=2), len(tokenizer))
    tokenizer.save_pretrained(tmp_path / "t5")
    published.save_pretrained(tmp_path / "t5")
    parts = [*diffusion_parts(stages), f"text_encoder={tmp_path / 't5'}", "clap=null"]
    output = train(debug_config("diffusion", tones, tmp_path / "run", *parts))
    pipe = TextToAudioPipeline.from_pretrained(output / "pipeline")
    assert pipe.clap is None and pipe.unet.config.cross_attention_dim == 24
    for name, tensor in published.state_dict().items():
        assert torch.equal(tensor, pipe.text_encoder.state_dict()[name]), name


def test_clap_alone_conditions_like_audioldm(stages: dict[str, Path], tones: Path, tmp_path: Path) -> None:
    """FiLM on the audio embedding in training and the text embedding at use; no token sequence at all."""
    parts = [*diffusion_parts(stages), "text_encoder=null", "clap_condition=audio"]
    output = train(debug_config("diffusion", tones, tmp_path / "run", *parts))
    pipe = TextToAudioPipeline.from_pretrained(output / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.text_encoder is None and pipe.unet.config.class_embed_type == "simple_projection"
    low, high = (
        pipe(text, generator=torch.Generator().manual_seed(0), output_type="latent").audios
        for text in ("a low tone", "a high tone")
    )
    assert (low - high).abs().max() > 1e-5


def test_mean_of_tokens_conditions_too(stages: dict[str, Path], tones: Path, tmp_path: Path) -> None:
    """The starter's way. Padding must not move the mean: a prompt alone is the prompt in a mixed batch."""
    parts = [*diffusion_parts(stages), "clap=null", "pooled_tokens=true"]
    output = train(debug_config("diffusion", tones, tmp_path / "run", *parts))
    pipe = TextToAudioPipeline.from_pretrained(output / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.clap is None and not pipe.unet.config.class_embeddings_concat
    alone = pipe("tone", generator=[torch.Generator().manual_seed(1)], output_type="latent").audios
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    both = pipe(["a low tone and then a high tone", "tone"], generator=generators, output_type="latent").audios
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)


def test_the_library_autoencoder_trains_too(tones: Path, tmp_path: Path) -> None:
    kind = "autoencoder={kind: kl, block_out_channels: [8, 8, 8], layers_per_block: 1, norm_num_groups: 4}"
    output = train(debug_config("vae", tones, tmp_path / "run", kind))
    vae = AutoencoderKL.from_pretrained(output / "vae")
    assert vae.config.mel["n_mels"] == 64 and vae.config.scaling_factor != AutoencoderKL().config.scaling_factor


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["vae=nowhere/at/all"], "nowhere/at/all"),
        (["text_encoder=null", "clap=null"], "text_encoder and clap are both null"),
        (["text_encoder=null", "clap=null", "pooled_tokens=true"], "both null"),
        (["unet.attention=[true]"], "unet.attention has 1 entries"),
        (["data.path=/does/not/exist"], "/does/not/exist"),
    ],
)
def test_bad_diffusion_configurations(
    overrides: list[str], words: str, stages: dict[str, Path], tones: Path, tmp_path: Path
) -> None:
    config = debug_config("diffusion", tones, tmp_path, *diffusion_parts(stages), *overrides)
    with pytest.raises(InputError, match=words.replace("[", r"\[")):
        RECIPES["diffusion"](config, torch.device("cpu"))


def test_vae_and_vocoder_of_different_mels_are_refused(stages: dict[str, Path], tones: Path, tmp_path: Path) -> None:
    shutil.copytree(stages["vocoder"] / "vocoder", tmp_path / "vocoder")
    path = tmp_path / "vocoder" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "mel": {**values["mel"], "hop_length": 160}}))
    parts = [*diffusion_parts(stages), f"vocoder={tmp_path / 'vocoder'}"]
    with pytest.raises(InputError, match="hop_length: 256 / 160"):
        RECIPES["diffusion"](debug_config("diffusion", tones, tmp_path / "run", *parts), torch.device("cpu"))


def test_step_generators_differ_and_repeat() -> None:
    draws = {
        torch.rand(1, generator=seeded_generator(*key)).item() for key in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0))
    }
    assert len(draws) == 4
    assert torch.equal(
        torch.rand(3, generator=seeded_generator(1, 2, 3)), torch.rand(3, generator=seeded_generator(1, 2, 3))
    )


def test_terms_without_a_weight_are_only_logged() -> None:
    terms = {"a": torch.tensor(2.0), "b": torch.tensor(5.0)}
    assert weighted_sum(terms, {"a": 3.0}).item() == 6.0
