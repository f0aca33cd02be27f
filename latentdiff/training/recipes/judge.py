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
        augment = augment_waves if isinstance(self.config.data, AudioData) else augment_pictures
        logits = self.logits(augment(batch["media"], step.generator))
        terms = {}
        for attribute, values in logits.items():
            target = self._target(attribute, batch["row"])
            said = target.sum(1) > 0  # not every picture has a skin tone
            loss = nn.functional.cross_entropy(values, target, label_smoothing=0.02, reduction="none")
            terms[attribute] = (loss * said).sum() / said.sum().clamp(min=1)
        yield "judge", terms

    def _target(self, attribute: str, rows: list[int]) -> Tensor:
        """(B, names): 1 / how many are true at each that is; nothing where nothing is said."""
        target = torch.zeros(len(rows), len(self.labels[attribute]))
        for line, row in enumerate(rows):
            names = truth(self.media.rows[row], self.config).get(attribute, set())
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
