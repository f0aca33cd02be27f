"""The figures of starter-audio's model card: what a judge hears, round trips, conditioning and speed.

    latentdiff data soundbank data/soundbank-test --clips 1500 --seconds 4.096 --seed 2
    python benchmarks/starter_audio.py --data data/soundbank-test

Every figure comes from renders and wordings that no training saw; the judge shares nothing with the generator.
Prints one JSON object; each section can be run alone with --only.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from unseen_words import FRAMES, UNSEEN

from latentdiff import TextToAudioPipeline
from latentdiff.data.folder import Row, read_folder
from latentdiff.data.items import WaveItems
from latentdiff.data.soundbank import prompts
from latentdiff.data.soundbank.captions import captions
from latentdiff.data.soundbank.catalogue import LABELS
from latentdiff.data.soundbank.scenes import draw_scene
from latentdiff.evaluation.counting import count_events
from latentdiff.evaluation.judging import accuracy, load_bundled_judge, name_sounds
from latentdiff.media.spectral import multi_resolution_stft
from latentdiff.models.autoencoder import decode, posterior
from latentdiff.models.judge import AudioJudge
from latentdiff.models.vocabulary import words_of
from latentdiff.models.vocoder import imposed_iterations, voice

COUNTED = {1: {"one", "single", "once"}, 2: {"two", "twice"}, 3: {"three"}, 4: {"four"}}
SAMPLES = 65536  # 4.096 s at 16 kHz


def generate(pipe: TextToAudioPipeline, texts: list[str], seed: int, **options: Any) -> Tensor:
    """Waveforms of the prompts, clip i from the seed ``seed + i``."""
    waves = []
    for start in range(0, len(texts), 16):
        part = texts[start : start + 16]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        waves.append(pipe(part, generator=generators, output_type="pt", audio_length_in_s=4.096, **options).audios)
    return torch.cat(waves)


def real_waves(rows: list[Row]) -> Tensor:
    items = WaveItems(rows, 16000, SAMPLES)
    return torch.stack([torch.from_numpy(items.crop(row)) for row in rows])


def sound(pipe: TextToAudioPipeline, log_mel: Tensor) -> Tensor:
    """The pipeline's own way from log-mel to waveform."""
    return voice(pipe.vocoder, log_mel, pipe.mel, imposed_iterations(pipe.vocoder))


def judge_itself(judge: AudioJudge, rows: list[Row]) -> dict[str, float]:
    return {
        "real_accuracy": accuracy(name_sounds(judge, real_waves(rows)), [r.labels[0] for r in rows]),
        "clips": len(rows),
    }


def generation(pipe: TextToAudioPipeline, judge: AudioJudge, count: int) -> dict[str, Any]:
    """Held-out wordings over all labels, the same clips against shuffled labels, and ten dogs."""
    asked = prompts(count, seed=7, held_out=True)
    truth = [label for _, label in asked]
    heard = name_sounds(judge, generate(pipe, [text for text, _ in asked], seed=1000))
    order = np.random.default_rng(0).permutation(count)
    wrong: dict[str, list[str]] = {}
    for (text, label), name in zip(asked, heard, strict=True):
        if name != label:
            wrong.setdefault(label, []).append(f"{text} -> {name}")
    dogs = name_sounds(judge, generate(pipe, ["dog barking"] * 10, seed=0))
    return {
        "accuracy": accuracy(heard, truth),
        "accuracy_shuffled": accuracy(heard, [truth[i] for i in order]),
        "dog_barking_of_10": dogs.count("dog"),
        "wrong": wrong,
    }


def unseen_words(pipe: TextToAudioPipeline, judge: AudioJudge) -> dict[str, Any]:
    """Prompts whose words for the source no caption has; those that have one all the same are left out."""
    pairs = [(word, label) for label, words in UNSEEN.items() for word in words]
    known = pipe.vocabulary.known if pipe.vocabulary else frozenset()
    pairs = [(word, label) for word, label in pairs if not set(words_of(word)) <= known]
    texts = [FRAMES[i % len(FRAMES)].format(word) for i, (word, _) in enumerate(pairs)]
    heard = name_sounds(judge, generate(pipe, texts, seed=4000))
    wrong = [f"{text} -> {name}" for text, name, (_, label) in zip(texts, heard, pairs, strict=True) if name != label]
    return {"accuracy": accuracy(heard, [label for _, label in pairs]), "words": len(pairs), "wrong": wrong}


@torch.no_grad()
def several(pipe: TextToAudioPipeline, judge: AudioJudge, rows: list[Row], count: int) -> dict[str, Any]:
    """Two sources in a prompt: how often both are the judge's first two names, and how often one is its first."""
    labels: list[str] = judge.config.labels

    def heard(waves: Tensor, truth: list[set[str]]) -> np.ndarray:
        """(B, 2) of whether both are heard, and whether one of them first."""
        order = torch.cat([judge(part) for part in waves.split(32)]).argsort(1, descending=True).tolist()
        told = [[labels[i] for i in line[:2]] for line in order]
        return np.array([(true == set(names), names[0] in true) for names, true in zip(told, truth, strict=True)])

    def shares(hits: np.ndarray) -> dict[str, float]:
        return {"both": float(hits[:, 0].mean()), "one": float(hits[:, 1].mean()), "clips": len(hits)}

    real = [row for row in rows if len(set(row.labels)) == 2][:count]
    rng = np.random.default_rng(13)
    scenes = [scene for scene in (draw_scene(rng, 4.0) for _ in range(8 * count)) if len(scene.events) == 2][:count]
    texts = [captions(scene, rng, 1, held_out=True)[0] for scene in scenes]
    truth = [{event.label for event in scene.events} for scene in scenes]
    hits = heard(generate(pipe, texts, seed=7000), truth)
    relations = np.array([scene.relation for scene in scenes])
    return {
        "real": shares(heard(real_waves(real), [set(row.labels) for row in real])),
        "generated": shares(hits),
        "in one": shares(heard(generate(pipe, texts, seed=7000, compose=False), truth)),
        **{relation: shares(hits[relations == relation]) for relation in ("together", "then")},
    }


def counts(pipe: TextToAudioPipeline, data: Path, rows: list[Row], count: int) -> dict[str, Any]:
    """How often a clip has as many strikes or notes, one to four, as the prompt says; and real ones as was rendered."""

    def right(waves: Tensor, truth: list[int]) -> dict[str, float]:
        same = np.array([count_events(wave.numpy()) == true for wave, true in zip(waves, truth, strict=True)])
        by_count = {str(n): float(same[np.array(truth) == n].mean()) for n in sorted(set(truth))}
        return {"right": float(same.mean()), **by_count, "clips": len(same)}

    facts = [json.loads(line) for line in (data / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    told = {
        fact["file_name"]: fact["count"][0]
        for fact in facts
        if len(fact["sources"]) == 1 and fact["pattern"][0] in ("strike", "repeat") and 1 <= fact["count"][0] <= 4
    }
    real = [row for row in rows if row.path.relative_to(data).as_posix() in told]
    rng, asked = np.random.default_rng(17), list[tuple[str, int]]()
    while len(asked) < count:
        wanted = 1 + len(asked) % 4
        scene = draw_scene(rng, 4.0, LABELS[int(rng.integers(len(LABELS)))])
        event = scene.events[0]
        if event.count == wanted and event.pattern in ("strike", "repeat"):
            texts = [text for text in captions(scene, rng, 4, held_out=True) if set(words_of(text)) & COUNTED[wanted]]
            asked.extend((text, wanted) for text in texts[:1])
    waves = generate(pipe, [text for text, _ in asked], seed=8000)
    return {
        "real": right(real_waves(real), [told[row.path.relative_to(data).as_posix()] for row in real]),
        "generated": right(waves, [wanted for _, wanted in asked]),
        "asked": [text for text, _ in asked[:8]],
    }


def guidance(pipe: TextToAudioPipeline, judge: AudioJudge, count: int) -> dict[str, float]:
    asked = prompts(count, seed=11, held_out=True)
    texts, truth = [text for text, _ in asked], [label for _, label in asked]
    sweep = {}
    for scale in (1.0, 1.5, 2.0, 3.0, 5.0):
        sweep[str(scale)] = accuracy(name_sounds(judge, generate(pipe, texts, 5000, guidance_scale=scale)), truth)
    return sweep


@torch.no_grad()
def round_trips(pipe: TextToAudioPipeline, judge: AudioJudge, rows: list[Row]) -> dict[str, float]:
    """VAE alone (on mels), vocoder alone, both; as the judge hears them."""
    truth, waves, mel = [r.labels[0] for r in rows], real_waves(rows), pipe.mel
    heard: dict[str, list[Tensor]] = {"original": [], "vae": [], "vocoder": [], "vae_vocoder": []}
    error = []
    for wave in waves.split(32):
        log_mel = mel(wave)[:, : SAMPLES // 256]
        x = mel.to_x(log_mel)
        smooth = mel.from_x(decode(pipe.vae, posterior(pipe.vae, x).mode()))
        error.append((smooth - log_mel).abs().mean((1, 2)))
        heard["original"].append(judge(wave))
        heard["vae"].append(judge.head(judge.features(smooth)))
        heard["vocoder"].append(judge(sound(pipe, log_mel)))
        heard["vae_vocoder"].append(judge(sound(pipe, smooth)))
    labels = judge.config.labels
    figures = {k: accuracy([labels[i] for i in torch.cat(v).argmax(1).tolist()], truth) for k, v in heard.items()}
    return {**figures, "vae_log_mel_l1": float(torch.cat(error).mean())}


@torch.no_grad()
def against_griffin_lim(pipe: TextToAudioPipeline, rows: list[Row]) -> dict[str, float]:
    """Vocoder and librosa's Griffin-Lim (64 iterations) from the same real mels; mean over clips."""
    config, mel = pipe.mel.config, pipe.mel
    distances: dict[str, list[float]] = {
        f"{a}_{b}": [] for a in ("vocoder", "vocoder_alone", "griffin_lim") for b in ("mel", "stft")
    }
    for row in rows:
        wave = real_waves([row])
        log_mel = mel(wave)[:, : SAMPLES // config.hop_length]
        inverse = librosa.feature.inverse.mel_to_audio(
            log_mel[0].exp().T.numpy(), sr=config.sampling_rate, n_fft=config.n_fft, hop_length=config.hop_length,
            win_length=config.win_length, power=1.0, n_iter=64, fmin=config.fmin, fmax=config.fmax,
        )  # fmt: skip
        # librosa's first frame is centred on sample 0, ours half a hop later: shift, or Griffin-Lim is wronged.
        lead = config.hop_length // 2
        inverse = np.pad(inverse, (lead, SAMPLES - lead - len(inverse)))
        made = {
            "vocoder": sound(pipe, log_mel),
            "vocoder_alone": pipe.vocoder(log_mel),
            "griffin_lim": torch.from_numpy(inverse)[None].float(),
        }
        for name, other in made.items():
            distances[f"{name}_mel"].append(float((mel(other)[:, : log_mel.shape[1]] - log_mel).abs().mean()))
            distances[f"{name}_stft"].append(float(multi_resolution_stft(other, wave)))
    figures = {name: float(np.mean(values)) for name, values in distances.items()}
    for kind in ("mel", "stft"):
        better = np.array(distances[f"vocoder_{kind}"]) < np.array(distances[f"griffin_lim_{kind}"])
        figures[f"share_of_clips_better_{kind}"] = float(better.mean())
    return {**figures, "clips": len(rows)}


@torch.no_grad()
def speed(pipe: TextToAudioPipeline, seconds: float = 10.0) -> dict[str, float]:
    """Ten seconds of sound at default settings, warm, best and median of 5; GFLOP a part; share of GEMM rate."""
    run = lambda: pipe("dog barking", audio_length_in_s=seconds, generator=torch.Generator().manual_seed(0))  # noqa: E731
    run()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    frames = -(-int(seconds * 16000) // 256 // 8) * 8
    z = torch.randn(1, pipe.unet.config.in_channels, frames // 8, 8)
    tau = pipe.encode_prompt(["", "dog barking"])
    parts = {
        "text": lambda: pipe.encode_prompt(["", "dog barking"]),
        "unet": lambda: pipe.unet(torch.cat([z, z]), 500, **tau.unet_arguments()),
        "vae": lambda: pipe.vae.decode(z),
        "vocoder": lambda: sound(pipe, torch.zeros(1, frames, 64)),
    }
    gflop = {}
    for name, part in parts.items():
        with FlopCounterMode(display=False) as counter:
            part()
        gflop[name] = counter.get_total_flops() / 1e9
    steps, (first, behind) = pipe.config.default_steps, pipe.config.default_guidance_interval or (0.0, 1.0)
    guided = sum(first * steps <= number < behind * steps for number in range(steps))
    gflop["unet"] *= (steps + guided) / 2  # a guided step's work is measured, one without has half of it
    a = torch.randn(2048, 2048)
    a @ a
    start = time.perf_counter()
    for _ in range(10):
        a @ a
    rate = 10 * 2 * 2048**3 / (time.perf_counter() - start) / 1e9
    total = sum(gflop.values())
    return {
        "seconds_best": min(times), "seconds_median": float(np.median(times)), "threads": torch.get_num_threads(),
        **{f"gflop_{name}": value for name, value in gflop.items()}, "gemm_gflop_per_s": rate,
        "share_of_gemm": total / min(times) / rate,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="renders with another seed than the training's")
    parser.add_argument("--judge", help="a judge's folder instead of the bundled one")
    parser.add_argument("--model", default="starter-audio")
    parser.add_argument("--count", type=int, default=300, help="generated clips")
    parser.add_argument(
        "--only", nargs="*", help="judge generation several counts unseen_words guidance round_trips griffin_lim speed"
    )
    options = parser.parse_args()
    judge = AudioJudge.from_pretrained(options.judge).eval() if options.judge else load_bundled_judge()
    pipe = TextToAudioPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    every = read_folder(options.data)
    rows = [row for row in every if len(set(row.labels)) == 1]
    sections = {
        "judge": lambda: judge_itself(judge, rows),
        "generation": lambda: generation(pipe, judge, options.count),
        "several": lambda: several(pipe, judge, every, 200),
        "counts": lambda: counts(pipe, options.data, rows, 200),
        "unseen_words": lambda: unseen_words(pipe, judge),
        "round_trips": lambda: round_trips(pipe, judge, rows[:600]),
        "griffin_lim": lambda: against_griffin_lim(pipe, rows[:100]),
        "guidance": lambda: guidance(pipe, judge, 75),
        "speed": lambda: speed(pipe),
    }
    report = {name: section() for name, section in sections.items() if not options.only or name in options.only}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
