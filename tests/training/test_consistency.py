"""Few-step students: the pipeline they leave, what they hear, how the target follows, and that they learn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentdiff import InputError, TextToAudioPipeline, TextToImagePipeline
from latentdiff.cli import main
from latentdiff.config import AnyRecipe, PlainUNetConfig, load_config
from latentdiff.diffusion.process import EDMSchedule
from latentdiff.diffusion.samplers import make_scheduler
from latentdiff.models.denoiser import new_denoiser
from latentdiff.training.loop import Trainer
from latentdiff.training.recipes import RECIPES
from latentdiff.training.recipes.consistency import ConsistencyTraining
from tests.conftest import Digits
from tests.training.conftest import CONFIGS, debug_config, teacher_part, train


def recipe_of(data: Path, output: Path, *overrides: str) -> ConsistencyTraining:
    recipe = RECIPES["consistency"](debug_config("consistency", data, output, *overrides), torch.device("cpu"))
    assert isinstance(recipe, ConsistencyTraining)
    return recipe


@pytest.fixture(scope="module")
def student(stages: dict[str, Path]) -> Any:
    pipe = TextToAudioPipeline.from_pretrained(stages["consistency"] / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: Any, prompts: list[str], seeds: list[int], **options: Any) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(prompts, audio_length_in_s=0.5, generator=generators, output_type="latent", **options).audios


def test_the_student_is_an_ordinary_pipeline_with_lcms_sampler(student: Any, stages: dict[str, Path]) -> None:
    assert type(student.scheduler).__name__ == "LCMScheduler" and student.config.default_steps == 4
    assert student.scheduler.config.original_inference_steps == 50 and student.config.default_guidance == 3.0
    files = {path.name for path in (stages["consistency"] / "validation/step-00000006").iterdir()}
    assert files == {f"{i}.{kind}" for i in range(4) for kind in ("wav", "png")} | {"prompts.txt"}


def test_guidance_is_heard_in_one_evaluation_a_step(student: Any) -> None:
    batches: list[int] = []
    hook = student.unet.register_forward_pre_hook(lambda unet, given: batches.append(len(given[0])))
    weak, strong, default = (latents(student, ["a low tone"], [0], **({"guidance_scale": s} if s else {}))
                             for s in (1.0, 4.0, None))  # fmt: skip
    off = latents(student, ["a low tone"], [0], guidance_scale=0.0)
    hook.remove()
    assert batches == [1] * 16
    assert not torch.equal(weak, strong) and not torch.equal(default, strong) and torch.equal(weak, off)


def test_a_clip_is_the_same_alone_and_in_a_batch(student: Any) -> None:
    both = latents(student, ["a low tone", "tone, high"], [3, 4])
    alone = latents(student, ["tone, high"], [4])
    size = alone[0].abs().max()  # a student that has learnt nothing has latents of some hundreds
    assert (both[1] - alone[0]).abs().max() < 1e-4 * size and (both[0] - alone[0]).abs().max() > 1e-2 * size


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guidance_scale": 9.0}, "knows guidance from 1 to 4; 9 is outside"),
        ({"negative_prompt": "noise"}, "hears no negative_prompt"),
        ({"num_inference_steps": 51}, "51 steps cannot be taken: this few-step student has learnt 50"),
    ],
)
def test_what_a_student_cannot_do_is_refused(student: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        student("a low tone", **options)


@pytest.mark.parametrize(
    ("model", "sampler", "words"),
    [
        ("consistency", "lcm", ""),
        ("consistency", "ddim", "is a few-step student, which 'ddim' cannot sample; use its sampler, lcm"),
        ("diffusion", "lcm", "--sampler lcm is for another kind of model than"),
    ],
)
def test_a_student_has_one_sampler(
    model: str, sampler: str, words: str, stages: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["-m", str(stages[model] / "pipeline"), "--sampler", sampler, "-d", "0.3", "-o", f"{tmp_path}/x.wav"]
    assert main(["generate", "a low tone", *given]) == (2 if words else 0)
    assert words in capsys.readouterr().err and (tmp_path / "x.wav").exists() == (not words)


def test_a_copy_begins_as_its_teacher(stages: dict[str, Path], tones: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tones, tmp_path, teacher_part(stages))
    z, t = torch.randn(2, *recipe.latents.mean.shape[1:]), torch.tensor([5, 900])
    tau = recipe.teacher.encode_prompt(["a low tone", ""])
    hint = torch.randn(2, recipe.student.config.time_cond_proj_dim)
    made = recipe.student(z, t, **{**tau.unet_arguments(), "timestep_cond": hint}).sample
    assert torch.allclose(made, recipe.teacher.unet(z, t, **tau.unet_arguments()).sample, atol=1e-5)


def test_the_target_follows_each_step_once(stages: dict[str, Path], tones: Path, tmp_path: Path) -> None:
    """With two batches a step; the target of a checkpoint has followed the student of the one before."""
    output = train(
        debug_config(
            "consistency", tones, tmp_path / "run", teacher_part(stages), "train.max_steps=3", "train.batch_size=2",
            "train.gradient_accumulation=2", "train.checkpoint_every=1", "train.keep_checkpoints=9",
            "train.overfit_check_steps=1", "optimizer.warmup_steps=0",
        )
    )  # fmt: skip
    students, targets = (
        [load_file(output / "checkpoints" / f"step-{step:08d}" / name) for step in (1, 2, 3)]
        for name in ("model.safetensors", "model_1.safetensors")
    )
    for key, value in students[0].items():
        for step in (1, 2):
            followed = targets[step - 1][key].lerp(students[step - 1][key], 1 - 0.95)
            assert torch.allclose(targets[step][key], followed, atol=1e-7), (key, step)
        assert not torch.equal(targets[0][key], value), key


def test_training_without_a_teacher(stages: dict[str, Path], tones: Path, tmp_path: Path) -> None:
    """A new, smaller student; guidance is no input of it, so that it is run twice only if asked for."""
    sizes = "block_out_channels: [8, 16], attention: [false, true], attention_heads: 2, norm_num_groups: 4"
    own = ["method={kind: training, first_intervals: 2, intervals: 8}", f"unet={{{sizes}}}"]
    config = debug_config("consistency", tones, tmp_path, teacher_part(stages), *own)
    recipe = ConsistencyTraining(config, torch.device("cpu"))
    assert [recipe._intervals(step) for step in range(6)] == [2, 2, 4, 4, 8, 8] and list(recipe.networks) == ["student"]
    pipe = TextToAudioPipeline.from_pretrained(train(config) / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.time_cond_proj_dim is None and pipe.config.default_guidance == 1.0
    batches: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda unet, given: batches.append(len(given[0])))
    latents(pipe, ["a low tone"], [0], num_inference_steps=2)
    latents(pipe, ["a low tone"], [0], num_inference_steps=2, guidance_scale=2.0)
    assert batches == [1, 1, 2, 2]


def test_a_student_comes_nearer_to_its_teacher(digits: Digits, tmp_path: Path) -> None:
    """Of a teacher that has learnt something: digits, on their pixels."""
    config = load_config(
        CONFIGS / "image_consistency.yaml",
        [f"data.path={digits.folder}", "data.held_out=0.2", "data.size=8", "data.channels=1", f"output={tmp_path}",
         f"teacher={digits.pipeline}", "train.batch_size=16", "train.max_steps=80", "train.validate_every=80",
         "train.checkpoint_every=80", "train.trackers=[]", "train.overfit_check_steps=0", "train.ema_decay=0"],
    )  # fmt: skip
    trainer = Trainer(config, ConsistencyTraining)
    with torch.no_grad():
        before = trainer.recipe.validate(tmp_path)
    trainer.run()
    with torch.no_grad():
        after = trainer.recipe.validate(tmp_path)
    assert set(before) == {"loss", "distance_1", "distance_2", "distance_4"}
    # In several steps it puts fresh noise in between, so its samples are others than the teacher's, not worse ones.
    for figure in ("loss", "distance_1"):
        assert after[figure] < 0.95 * before[figure], (before, after)


def pixels(digits: Digits, output: Path, *overrides: str) -> AnyRecipe:
    """Two steps of a student of digits without prompts."""
    common = [f"data.path={digits.folder}", "data.held_out=0.05", "data.size=8", "data.channels=1", f"output={output}",
              "train.batch_size=4", "train.max_steps=2", "train.trackers=[]", "train.overfit_check_steps=0",
              "train.validate_every=2", "train.checkpoint_every=2", "default_steps=2"]  # fmt: skip
    return load_config(CONFIGS / "image_consistency.yaml", [*common, *overrides])


UNET = "unet={kind: plain, block_out_channels: [8, 16], attention: [false, true], norm_num_groups: 4}"


def teacher_without_prompt(folder: Path, process: dict[str, Any]) -> Path:
    unet = new_denoiser(PlainUNetConfig(kind="plain", block_out_channels=(8, 16), attention=(False, True),
                                        norm_num_groups=4), 1, None, None)  # fmt: skip
    for parameter in unet.parameters():  # the last layer begins at zero
        torch.nn.init.normal_(parameter, std=0.05)
    name = "euler" if "sigma_data" in process else "ddim"
    TextToImagePipeline(None, unet, make_scheduler(name, process), default_height=8, default_width=8).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize("teacher", ["variance preserving", "edm", "none"])
def test_students_that_hear_no_prompt(teacher: str, digits: Digits, tmp_path: Path) -> None:
    """Of the teacher's own process: distilled with no guidance to hear, or trained with no teacher at all."""
    process = {} if teacher == "variance preserving" else EDMSchedule().to_config()
    given = [f"teacher={teacher_without_prompt(tmp_path / 'teacher', process)}", "method={intervals: 20}"]
    if teacher == "none":
        given = ["teacher=null", "method={kind: training, first_intervals: 2, intervals: 20}"]
    given += [] if teacher == "variance preserving" else [UNET]
    output = train(pixels(digits, tmp_path / "run", *given))
    pipe = TextToImagePipeline.from_pretrained(output / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    sampler = "LCMScheduler" if teacher == "variance preserving" else "CMStochasticIterativeScheduler"
    assert type(pipe.scheduler).__name__ == sampler and not pipe.hears_prompts and pipe.config.guidance_range is None
    made = pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert made.shape == (1, 1, 8, 8)


def test_the_sampler_takes_the_students_own_function(digits: Digits, tmp_path: Path) -> None:
    """One step of CMStochasticIterativeScheduler is f(z, sigma_max), at the times that training told."""
    given = ["teacher=null", "method={kind: training, first_intervals: 2, intervals: 20}", UNET]
    recipe = ConsistencyTraining(pixels(digits, tmp_path, *given), torch.device("cpu"))
    for parameter in recipe.student.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    noise, sigma = torch.randn(2, 1, 8, 8), torch.full((2,), 80.0, dtype=torch.float64)
    pipe = recipe.pipeline()
    with torch.no_grad():
        wanted = recipe.form.consistent(lambda z, t: recipe.student(z, t).sample, 80 * noise, sigma)
        made = pipe(num_images_per_prompt=2, latents=noise, num_inference_steps=1, output_type="latent").images
    torch.testing.assert_close(made, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["teacher=null"], "teacher is missing: name the folder of a finished pipeline"),
        (["teacher=null", UNET], "teacher is missing: name the folder of a finished pipeline"),
        (["teacher={edm}"], "the teacher is told time as EDM has it"),
        (["teacher={edm}", "unet.kind=conditional"], "unet.kind is conditional, and the teacher hears no prompts"),
        (["teacher={prompted}", UNET], "unet.kind is plain, and the teacher hears prompts"),
        (["teacher={edm}", "unet.kind=two_stream"], "two_stream is for the stage diffusion"),
    ],
)
def test_students_that_do_not_fit(overrides: list[str], words: str, digits: Digits, tmp_path: Path) -> None:
    edm = teacher_without_prompt(tmp_path / "edm", EDMSchedule().to_config())
    # The braces of sections are no places to fill.
    given = [text.replace("{edm}", str(edm)).replace("{prompted}", str(digits.pipeline)) for text in overrides]
    with pytest.raises(InputError, match=words):
        ConsistencyTraining(pixels(digits, tmp_path / "run", *given), torch.device("cpu"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["teacher=nowhere"], "teacher nowhere is no pipeline folder: .* starter-audio or starter-image"),
        (["teacher={consistency}/pipeline"], "is a few-step student itself"),
        (["teacher={diffusion}/pipeline", "method.intervals=30"], "must divide the teacher's 1000 training times"),
        (["teacher={diffusion}/pipeline", "method.guidance=[1, 2]"], r"leaves out the teacher's own default, 3"),
        (["teacher={diffusion}/pipeline", "method.guidance=[3, 2]"], "the lowest scale comes first"),
        (["teacher={image}", "method.target_decay=1"], "target_decay"),
        (["teacher={image}"], "is a TextToImagePipeline, and data.kind is audio, which needs a TextToAudioPipeline"),
    ],
)
def test_bad_configurations(
    overrides: list[str],
    words: str,
    stages: dict[str, Path],
    tones: Path,
    tiny_image_pipeline: Path,
    tmp_path: Path,
) -> None:
    names = {name: str(path) for name, path in stages.items()} | {"image": str(tiny_image_pipeline)}
    with pytest.raises(InputError, match=words):
        recipe_of(tones, tmp_path, *(text.format(**names) for text in overrides))
