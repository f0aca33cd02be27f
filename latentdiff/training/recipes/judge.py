"""Stage ``judge``: a classifier of real media by what their metadata says of them, which then judges a generator."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from latentdiff.config import AudioData, JudgeRecipe
from latentdiff.data.folder import Row
from latentdiff.data.items import MediaItems, PictureItems, WaveItems, split_usable
from latentdiff.errors import InputError
from latentdiff.media.mel import resolve_mel
from latentdiff.models.judge import AudioJudge, PictureJudge
from latentdiff.training.recipe import Losses, Recipe, Step

Truth = dict[str, set[str]]
"""What is true of a media, by attribute: the ``sources`` of a sound may be two, else it is one name each."""


class JudgeTraining(Recipe[JudgeRecipe]):
    """Cross-entropy of each attribute, against the uniform distribution over the names that are true."""

    def __init__(self, config: JudgeRecipe, device: torch.device) -> None:
        super().__init__(config, device)
        train, held_out = ([row for row in rows if truth(row, config)] for rows in split_usable(config.data))
        if not train:
            key = "sources" if isinstance(config.data, AudioData) else "attributes"
            raise InputError(f"{config.data.path}: no row of the metadata has '{key}', which a judge learns from.")
        known: Truth = {}
        for row in train:
            for attribute, names in truth(row, config).items():
                known[attribute] = known.get(attribute, set()) | names
        self.labels = {attribute: sorted(names) for attribute, names in sorted(known.items())}
        self.media, self.held_out, self.judge = self._of_the_medium(train, held_out)
        self.networks: dict[str, nn.Module] = {"judge": self.judge}
        self.phases, self.averaged = {"judge": ("judge",)}, ("judge",)
        self.weights = dict.fromkeys(self.labels, 1.0)

    def _of_the_medium(
        self, train: list[Row], held_out: list[Row]
    ) -> tuple[MediaItems, MediaItems, AudioJudge | PictureJudge]:
        data, width = self.config.data, self.config.width
        if isinstance(data, AudioData):
            assert self.config.mel is not None  # the configuration was checked
            mel = resolve_mel(self.config.mel)
            rate, samples = mel.sampling_rate, int(data.seconds * mel.sampling_rate)
            judge = AudioJudge(self.labels["sources"], width, mel.to_dict())
            return WaveItems(train, rate, samples), WaveItems(held_out, rate, samples), judge
        framing = data.framing
        if min(framing.size) < 16 or any(side % 2 for side in framing.size):
            raise InputError(f"data.size is {list(framing.size)}; a judge of pictures takes even sides of 16 and more.")
        looker = PictureJudge(self.labels, width, framing.model_dump(mode="json"))
        return PictureItems(train, framing), PictureItems(held_out, framing), looker

    @property
    def items(self) -> Dataset[dict[str, Any]]:
        return self.media

    def logits(self, media: Tensor) -> dict[str, Tensor]:
        """(B, names) by attribute."""
        logits = self.networks["judge"](media)
        return {"sources": logits} if isinstance(logits, Tensor) else logits

    def losses(self, batch: dict[str, Any], step: Step) -> Iterator[tuple[str, Losses]]:
        media, partners = batch["media"], list(range(len(batch["row"])))
        if isinstance(self.config.data, AudioData):
            media, partners = joined_waves(media, self.config.joined, step.generator)
            media = augment_waves(media, step.generator)
        else:
            media = augment_pictures(media, step.generator)
        rows = [{row, batch["row"][partner]} for row, partner in zip(batch["row"], partners, strict=True)]
        terms = {}
        for attribute, values in self.logits(media).items():
            target = self._target(attribute, rows)
            said = target.sum(1) > 0  # not every picture has a skin tone
            loss = nn.functional.cross_entropy(values, target, label_smoothing=0.02, reduction="none")
            terms[attribute] = (loss * said).sum() / said.sum().clamp(min=1)
        yield "judge", terms

    def _target(self, attribute: str, rows: list[set[int]]) -> Tensor:
        """(B, names) of media that hold these rows: 1 / how many are true at each that is; else, or where nothing is
        said, 0."""
        target = torch.zeros(len(rows), len(self.labels[attribute]))
        for line, held in enumerate(rows):
            names = set().union(*(truth(self.media.rows[row], self.config).get(attribute, set()) for row in held))
            for name in names:
                target[line, self.labels[attribute].index(name)] = 1 / len(names)
        return target.to(self.device)

    def validate(self, folder: Path) -> dict[str, float]:
        """For each attribute, how many held-out media that have one name known from training are told right."""
        right: dict[str, list[bool]] = {attribute: [] for attribute in self.labels}
        wrong = []
        for start in range(0, len(self.held_out.rows), 32):
            rows = self.held_out.rows[start : start + 32]
            logits = self.logits(self.held_out.stack(rows).to(self.device))
            for line, row in enumerate(rows):
                for attribute, names in truth(row, self.config).items():
                    (name, *others), known = sorted(names), self.labels.get(attribute, [])
                    if others or name not in known:
                        continue
                    told = known[int(logits[attribute][line].argmax())]
                    right[attribute].append(told == name)
                    if told != name:
                        wrong.append(f"{attribute} {name} taken for {told}: {row.path.name}")
        (folder / "wrong.txt").write_text("\n".join(sorted(wrong)) + "\n")
        return {f"accuracy/{attribute}": sum(hits) / len(hits) for attribute, hits in right.items() if hits}

    def export(self, folder: Path) -> None:
        """``OUTPUT/judge``."""
        self.judge.save_pretrained(folder / "judge")


def truth(row: Row, config: JudgeRecipe) -> Truth:
    """What the metadata says that is to be seen or heard."""
    if isinstance(config.data, AudioData):
        return {"sources": set(row.labels)} if row.labels else {}
    return {attribute: {name} for attribute, name in row.attributes}


def joined_waves(wave: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, list[int]]:
    """A share of the waveforms (B, S) joined with the next one of the batch: half of them added to it, their levels up
    to 6 dB apart, half with its beginning in the place of their own second half.

    So a judge hears any two names together (between-class learning, Tokozume et al. 2018), of which the data have few.

    Returns:
        The waveforms, and for each the place of the one that it holds too; its own, if none.
    """
    count, samples = wave.shape
    drawn = torch.rand(count, generator=generator)
    decibels = (torch.rand(count, 1, generator=generator) * 12 - 6).to(wave)
    other = wave.roll(-1, dims=0)
    level, beside = (w.square().mean(1, keepdim=True).sqrt().clamp(min=1e-5) for w in (wave, other))
    added = wave + other * (level / beside) * 10 ** (decibels / 20)
    added = added * (wave.abs().amax(1, keepdim=True) / added.abs().amax(1, keepdim=True).clamp(min=1e-5))
    in_turn = torch.cat([wave[:, : samples // 2], other[:, : samples - samples // 2]], dim=1)
    add, turn = ((low <= drawn) & (drawn < high) for low, high in ((0.0, share / 2), (share / 2, share)))
    wave = torch.where(add[:, None].to(wave.device), added, torch.where(turn[:, None].to(wave.device), in_turn, wave))
    return wave, [(i + 1) % count if drawn[i] < share else i for i in range(count)]


def augment_waves(wave: Tensor, generator: torch.Generator) -> Tensor:
    """Gain of -12 to +6 dB, a shift in time by up to an eighth, and faint noise, for each waveform (B, S)."""
    count, samples = wave.shape
    decibels = torch.rand(count, 1, generator=generator) * 18 - 12
    shifts = torch.randint(-samples // 8, samples // 8, (count,), generator=generator).tolist()
    moved = torch.stack([row.roll(shift) for row, shift in zip(wave, shifts, strict=True)])
    noise = (
        torch.randn(wave.shape, generator=generator).to(wave)
        * 1e-3
        * torch.rand(count, 1, generator=generator).to(wave)
    )
    return (moved * 10 ** (decibels.to(wave) / 20) + noise).clamp(-1, 1)


def augment_pictures(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each of the pictures (B, C, H, W), 0 to 255, moved, sized, turned and sheared a little, brighter or darker,
    blurred and noisy; never mirrored, since a hand may point left or right."""
    count = len(pixels)

    def within(low: float, high: float, *shape: int) -> Tensor:
        return (torch.rand(count, *shape, generator=generator) * (high - low) + low).to(pixels.device)

    identity = torch.eye(2, 3, device=pixels.device).expand(count, 2, 3)
    size, turn = within(0.9, 1.15, 1, 1), within(-0.12, 0.12, 1, 1)
    turning = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]], device=pixels.device)
    place = torch.cat([torch.zeros(count, 2, 2, device=pixels.device), within(-0.1, 0.1, 2, 1)], dim=2)
    matrix = identity * size + turn * turning + within(-0.04, 0.04, 2, 3) + place
    grid = nn.functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    x = nn.functional.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    x = (x - 127.5) * within(0.9, 1.1, 1, 1, 1) + 127.5 + within(-12, 12, pixels.shape[1], 1, 1)
    soft = nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, soft, within(0, 1, 1, 1, 1))
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    return (x + noise * within(0, 12, 1, 1, 1)).clamp(0, 255)
