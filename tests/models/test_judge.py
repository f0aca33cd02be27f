"""The judges: shapes, every mel, and a folder that gives the same verdict."""

from pathlib import Path

import pytest
import torch

from latentdiff.config import Framing
from latentdiff.media.mel import PRESETS
from latentdiff.models.judge import FEATURES, AudioJudge, PictureJudge

LABELS = ["dog", "rain", "piano"]


def judge(mel: str = "starter-16k-64") -> AudioJudge:
    torch.manual_seed(0)
    return AudioJudge(LABELS, width=4, mel=PRESETS[mel].to_dict()).eval()


@pytest.mark.parametrize("mel", sorted(PRESETS))
@torch.no_grad()
def test_every_mel_gives_logits(mel: str) -> None:
    """Auffusion's too, whose x has three channels and its frequency first."""
    wave = torch.randn(2, PRESETS[mel].sampling_rate // 2) * 0.1
    assert judge(mel)(wave).shape == (2, len(LABELS))


@torch.no_grad()
def test_any_length_and_parts_of_the_forward_pass() -> None:
    model = judge()
    for samples in (4096, 16000, 40001):
        wave = torch.randn(2, samples, generator=torch.Generator().manual_seed(0)) * 0.1
        features = model.features(model.log_mel(wave))
        assert features.shape == (2, FEATURES)
        assert torch.equal(model.head(features), model(wave))


@torch.no_grad()
def test_a_waveform_is_judged_by_itself() -> None:
    model = judge()
    waves = torch.randn(3, 8192, generator=torch.Generator().manual_seed(0)) * 0.1
    together = model(waves)
    alone = torch.cat([model(wave[None]) for wave in waves])
    assert torch.allclose(together, alone, atol=1e-5)


def test_it_can_learn() -> None:
    """Two tones apart by pitch alone, within a few steps."""
    model = judge().train()
    t = torch.arange(8192) / 16000
    waves = torch.stack([0.3 * torch.sin(2 * torch.pi * pitch * t) for pitch in (200, 220, 3000, 3300)])
    truth = torch.tensor([0, 0, 1, 1])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(waves), truth).backward()
        optimizer.step()
    assert model(waves).argmax(1).tolist() == truth.tolist()


@torch.no_grad()
def test_saved_and_loaded_is_bit_identical(tmp_path: Path) -> None:
    """The filter bank is rebuilt from the mel and not stored."""
    model = judge().train()
    model(torch.randn(4, 8192) * 0.1)  # running statistics that are not those of a new one
    model.eval().save_pretrained(tmp_path)
    again = AudioJudge.from_pretrained(tmp_path).eval()
    wave = torch.randn(2, 8192) * 0.1
    assert again.config.labels == LABELS
    assert torch.equal(again(wave), model(wave))
    assert not [name for name in model.state_dict() if "filters" in name or "window" in name]


def picture_judge(size: tuple[int, int] = (32, 48)) -> PictureJudge:
    torch.manual_seed(0)
    labels = {"shape": ["circle", "square"], "colour": ["blue", "green", "red"]}
    return PictureJudge(labels, width=8, image=Framing(size=size).model_dump(mode="json")).eval()


@torch.no_grad()
def test_a_picture_is_judged_by_itself_and_by_each_attribute() -> None:
    model = picture_judge()
    pixels = torch.randint(0, 256, (3, 3, 32, 48), generator=torch.Generator().manual_seed(0)).byte()
    together = model(pixels)
    assert {name: logits.shape for name, logits in together.items()} == {"shape": (3, 2), "colour": (3, 3)}
    for name in together:
        alone = torch.cat([model(one[None])[name] for one in pixels])
        assert torch.allclose(together[name], alone, atol=1e-5)


@torch.no_grad()
def test_a_picture_judge_saved_and_loaded_is_bit_identical(tmp_path: Path) -> None:
    model = picture_judge().train()
    pixels = torch.randint(0, 256, (4, 3, 32, 48), generator=torch.Generator().manual_seed(0)).byte()
    model(pixels)
    model.eval().save_pretrained(tmp_path)
    again = PictureJudge.from_pretrained(tmp_path).eval()
    assert again.config.labels == model.config.labels
    assert all(torch.equal(again(pixels)[name], logits) for name, logits in model(pixels).items())
