"""The command line: signatures and help of every verb. What they do is imported when they run."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from latentdiff import __version__
from latentdiff.errors import InputError
from latentdiff.names import METRIC_NAMES, SAMPLER_NAMES

app = typer.Typer(
    name="latentdiff",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Sounds and pictures from text, and models of your own from a folder of captioned ones.",
)
data_app = typer.Typer(rich_markup_mode=None, help="Check data sets and make them.")
app.add_typer(data_app, name="data")


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns its exit code.

    Bad input of any kind is one sentence on stderr and exit code 2; Ctrl-C is 130.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(arguments or ["--help"], prog_name="latentdiff", standalone_mode=False)
    except InputError as error:
        return _complain(str(error))
    except typer.TyperException as error:  # an unknown option, a word where a number belongs, ...
        return _complain(error.format_message())
    except KeyboardInterrupt:
        return 130
    return code if isinstance(code, int) else 0


def _complain(sentence: str) -> int:
    print(f"latentdiff: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"latentdiff {__version__}")
        raise typer.Exit


@app.callback(epilog='Begin with: latentdiff generate "dog barking"')
def top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end."),
    ] = False,
) -> None:
    """Sounds and pictures from text, and models of your own from a folder of captioned ones."""


@app.command()
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="What should be heard or seen.")] = None,
    model: Annotated[str, typer.Option("-m", "--model", help="Bundled name, folder or hub id.")] = "starter-audio",
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="File or folder; .wav, .flac, .ogg or .png.")
    ] = None,
    duration: Annotated[float | None, typer.Option("-d", "--duration", help="Seconds of a sound.")] = None,
    size: Annotated[str | None, typer.Option("--size", help="Pixels of a picture, WIDTHxHEIGHT or a side.")] = None,
    num: Annotated[int, typer.Option("-n", "--num", help="Sounds or pictures of each prompt.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How strongly the prompt steers; 1: plain.")] = None,
    negative: Annotated[str | None, typer.Option(help="What should not be heard or seen.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first file; each next takes the next.")] = None,
    sampler: Annotated[str | None, typer.Option(help=f"{', '.join(SAMPLER_NAMES)}.")] = None,
    file: Annotated[Path | None, typer.Option("--prompts", help="More prompts, one a line.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; else the best.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw a spectrogram PNG beside each sound.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what is there, make the rest.")] = False,
    candidates: Annotated[int | None, typer.Option(help="Sounds made for each file; CLAP keeps one.")] = None,
    ranker: Annotated[str | None, typer.Option(help="CLAP that does it. [default: the model's own]")] = None,
    lora: Annotated[list[str] | None, typer.Option(help="Folder of a LoRA; may be repeated.")] = None,
) -> None:
    """Make sounds or pictures from prompts.

    Which of the two is the model's matter. What is not said is its own choice, the seed is drawn, and the file
    gets a fresh name in the current folder. Several pictures of a prompt also come as one, NAME-grid.png. Each
    file carries its recipe, which `latentdiff info FILE` shows. With --resume and --seed a stopped run goes on, and
    several processes share the prompts (torchrun --nproc-per-node 8 -m latentdiff.cli generate ...).
    With --candidates K a file takes K seeds; the one whose sound is kept is in its recipe.

    \b
    Examples:
      latentdiff generate "dog barking"
      latentdiff generate "a slow piano melody" "rain" -n 3 --seed 7 -o sounds/
      latentdiff generate "birds" -m runs/diffusion/pipeline -d 8 --steps 30 -o birds.flac --plot
      latentdiff generate "woman firefighter" -m starter-image -n 9 -o firefighter.png
    """
    from latentdiff.commands.generate import generate as run
    from latentdiff.commands.request import Request, read_prompts, read_size

    request = Request(
        prompts=[*(prompts or []), *(read_prompts(file) if file else [])],
        model=model, output=output, duration=duration, size=read_size(size) if size is not None else None, num=num,
        steps=steps, guidance=guidance, negative=negative, seed=seed, sampler=sampler, device=device, dtype=dtype,
        overwrite=overwrite, plot=plot, resume=resume, candidates=candidates, ranker=ranker, lora=tuple(lora or ()),
    )  # fmt: skip
    run(request)


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A YAML file, for example configs/debug/audio_vae.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Win over the file.")] = None,
) -> int:
    """Train a model from a configuration.

    The configuration's `stage` says which: vae, vocoder, clap, diffusion, consistency or judge. It runs in this one
    process, so that Ctrl-C and a cluster's signals reach it. For several GPUs let accelerate start it,
    with the same configuration:

    \b
      accelerate launch train.py CONFIG [KEY=VALUE]...

    \b
    Example:
      latentdiff train configs/debug/audio_vae.yaml data.path=my-sounds output=runs/vae
    """
    from latentdiff.training.launch import main as launch

    return launch([config, *(overrides or [])])


@data_app.command()
def scan(
    folder: Annotated[Path, typer.Argument(help="Media with metadata.jsonl, metadata.csv or .txt sidecars.")],
    caption_key: Annotated[
        str | None, typer.Option(help="Metadata column with the caption. [default: text, else caption]")
    ] = None,
) -> int:
    """List all faults of a folder of sounds or pictures.

    Every caption and every sample or pixel is read. The exit code is 1 if there is a fault.

    \b
    Example:
      latentdiff data scan my-sounds
    """
    from latentdiff.data.scan import scan_folder

    report = scan_folder(folder, caption_key)
    print(report.render(), end="")
    return 1 if report.faults else 0


@data_app.command()
def encode(
    config: Annotated[Path, typer.Argument(help="A YAML file of the stage diffusion.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Win over the file.")] = None,
) -> None:
    """Encode media and captions once, before training.

    Latents (mean and deviation) and, where the text encoder or CLAP does not learn, embeddings go into OUTPUT/latents,
    or where the configuration's `latents` says. Run again, it makes what is missing. For several processes:

    \b
      torchrun --nproc-per-node 8 -m latentdiff.cli data encode CONFIG [KEY=VALUE]...

    \b
    Example:
      latentdiff data encode configs/audio/diffusion.yaml data.path=my-sounds latents=my-latents
    """
    from latentdiff.training.encode import encode as run

    if said := run(config, overrides or []):
        print(said)


@data_app.command()
def soundbank(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    clips: Annotated[int, typer.Option(help="How many.")] = 1000,
    seconds: Annotated[float, typer.Option(help="Length of each.")] = 4.096,
    seed: Annotated[int, typer.Option(help="The same seed gives the same clips.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes. [default: one a core]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is not empty.")] = False,
) -> None:
    """Render captioned sounds with FluidSynth.

    The bundled model starter-audio was trained on them.

    \b
    Example:
      latentdiff data soundbank data/soundbank --clips 2000 --seconds 4.096 --seed 0
    """
    from latentdiff.data.soundbank.render import render_soundbank

    render_soundbank(out, clips, seconds, seed, workers=workers, overwrite=overwrite)
    print(f"{out}  {clips} clips of {seconds:g} s")


@data_app.command()
def emoji(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    size: Annotated[int, typer.Option(help="Height and width in pixels, up to 136.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the combinations that are held out.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is not empty.")] = False,
) -> None:
    """Draw captioned emoji from Noto Color Emoji.

    OUT/train is to train on; OUT/held_out has combinations of role, gender and skin tone that training never
    sees. The bundled model starter-image is trained on them.

    \b
    Example:
      latentdiff data emoji data/emoji --size 64
    """
    from latentdiff.data.emoji.write import write_emoji

    for split, count in write_emoji(out, size, seed, overwrite=overwrite).items():
        print(f"{out / split}  {count} pictures of {size} x {size}")


@data_app.command()
def digits(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Of which scans are held out.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is not empty.")] = False,
) -> None:
    """Write scikit-learn's handwritten digits.

    1,797 scans of 8 x 8 pixels with captions such as "the digit three": OUT/train, and a fifth in OUT/held_out. Small
    enough to compare objectives within minutes.

    \b
    Example:
      latentdiff data digits data/digits
    """
    from latentdiff.data.digits import write_digits

    for split, count in write_digits(out, seed, overwrite=overwrite).items():
        print(f"{out / split}  {count} pictures of 8 x 8")


@data_app.command()
def swissroll(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    points: Annotated[int, typer.Option(help="How many; a fifth is held out.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of the points.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is not empty.")] = False,
) -> None:
    """Write points of the swiss roll as pictures of two pixels.

    \b
    Example:
      latentdiff data swissroll data/swissroll
    """
    from latentdiff.data.swiss_roll import write_swiss_roll

    for split, count in write_swiss_roll(out, points, seed, overwrite).items():
        print(f"{out / split}  {count} points")


@app.command()
def evaluate(
    subject: Annotated[str, typer.Argument(metavar="MODEL_OR_FOLDER", help="What to judge: a model, or its media.")],
    data: Annotated[Path, typer.Option(help="Real captioned media that no training saw.")],
    reference: Annotated[
        Path | None, typer.Option(help="Other real media, best the training data. [default: a half of --data]")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help=f"Of {','.join(METRIC_NAMES)}. [default: all that fit]")] = None,
    extractor: Annotated[
        list[str] | None, typer.Option(help="Folder or hub id; may be repeated. [default: the bundled judge]")
    ] = None,
    count: Annotated[int | None, typer.Option(help="Real media that are asked for. [default: all]")] = None,
    seed: Annotated[int, typer.Option(help="Of the first medium and of the intervals.")] = 0,
    bootstrap: Annotated[int, typer.Option(help="Replicates an interval.")] = 200,
    duration: Annotated[float | None, typer.Option("-d", "--duration", help="Seconds of a sound.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How strongly the prompt steers.")] = None,
    sampler: Annotated[str | None, typer.Option(help=f"{', '.join(SAMPLER_NAMES)}.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; else the best.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the report.")] = Path("evaluation"),
    cache: Annotated[Path | None, typer.Option(help="Folder of features. [default: OUTPUT/features]")] = None,
    against: Annotated[Path | None, typer.Option(help="report.json of another run, to show beside this one.")] = None,
    show: Annotated[int, typer.Option(help="Media on the page.")] = 12,
    keep_faulty: Annotated[bool, typer.Option("--keep-faulty", help="Count silent and clipped files in.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report that exists.")] = False,
) -> None:
    """Measure a model, or media that it has made, against real ones.

    A model is asked for the first wording of each real file. Every figure comes with its interval, with what made it,
    and with its floor: what other real media get. OUTPUT keeps features and media, so a stopped run goes on.

    \b
    Examples:
      latentdiff evaluate starter-audio --data my-test-sounds --reference my-sounds
      latentdiff evaluate sounds/ --data my-test-sounds --extractor laion/clap-htsat-unfused --metrics clap,kid
      latentdiff evaluate runs/b/pipeline --data my-test-sounds -o b --against a/report.json
      accelerate launch -m latentdiff.cli evaluate starter-audio --data my-test-sounds
    """
    from latentdiff.commands.evaluate import Request
    from latentdiff.commands.evaluate import evaluate as run

    request = Request(
        subject=subject, data=data, reference=reference, extractors=extractor or [], count=count, seed=seed,
        metrics=[name.strip() for name in metrics.split(",")] if metrics is not None else None,
        replicates=bootstrap, duration=duration, steps=steps, guidance=guidance, sampler=sampler, device=device,
        output=output, cache=cache, against=against, shown=show, keep_faulty=keep_faulty, overwrite=overwrite,
    )  # fmt: skip
    run(request)


@app.command()
def info(
    subject: Annotated[
        str, typer.Argument(metavar="MODEL_OR_FILE", help="Bundled name, folder, hub id, sound or PNG.")
    ],
) -> None:
    """Show a model's parts or the recipe of a sound or picture.

    \b
    Examples:
      latentdiff info starter-audio
      latentdiff info dog-barking.wav
    """
    from latentdiff.commands.info import describe

    print(describe(subject))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="File of weights, or a model's folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; a .ckpt or .safetensors on the way back.")],
    like: Annotated[
        str | None, typer.Option(help="Model that gives what no weight says: tokenizers, heads, schedule.")
    ] = None,
) -> None:
    """Convert original weight files to a model's folder, or back.

    In: one-file checkpoints of CompVis, AudioLDM and AudioLDM2, Tango's folder, HiFi-GAN's g_*, LAION-CLAP's .pt.
    Back: a pipeline's folder to CompVis's layout, a vocoder's to HiFi-GAN's. No code in a file is ever run, and
    OUT appears only when it is whole.

    \b
    Examples:
      latentdiff convert audioldm-s-full.ckpt audioldm-s --like cvssp/audioldm
      latentdiff convert hifi-gan/g_02500000 vocoder
      latentdiff convert runs/diffusion/pipeline model.ckpt
    """
    from latentdiff.commands.convert import convert as run

    print(run(source, out, like))


@app.command()
def words(
    model: Annotated[Path, typer.Argument(help="Folder of a finished pipeline, which gets a words.txt.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of the captions that it learnt from.")],
    encoder: Annotated[str, typer.Option("--encoder", help="Sentence encoder: folder or hub id.")],
    word_list: Annotated[Path, typer.Option("--list", help="Text file with one word a line.")],
    nearness: Annotated[float, typer.Option(help="Cosine from which on a word is read as another.")] = 0.45,
) -> None:
    """Let a model read words that its captions never had.

    Each word of the list is read as the captions' word that a sentence encoder finds it most like, if that is near
    enough; else the nearest is named when a prompt has it.

    \b
    Example:
      latentdiff words runs/diffusion/pipeline --data my-sounds --list words.txt \\
        --encoder sentence-transformers/all-MiniLM-L6-v2
    """
    from latentdiff.commands.words import write_words

    write_words(model, data, encoder, word_list, nearness)


@app.command()
def doctor() -> int:
    """Check this machine and say what to mend.

    Versions, the torch/torchaudio pair, audio formats, bundled models, sound fonts, devices and disk.

    \b
    Example:
      latentdiff doctor
    """
    from latentdiff.doctor import report

    return report()


if __name__ == "__main__":
    sys.exit(main())
