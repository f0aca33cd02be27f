"""The one home of sampling rate, FFT size, hop and mel bands: waveform <-> log-mel <-> x.

Shapes: B batch, S samples, T frames, F mel bands, C channels of x.
Every mel model in the field belongs to exactly one such definition: a vocoder fed with another one's
mels gives noise, so the definition travels inside the VAE's and the vocoder's ``config.json`` as ``mel``.
"""

import math
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal

import torch
import torchaudio.functional as F_audio
from torch import Tensor, nn

from latentdiff.errors import InputError


@dataclass(frozen=True, kw_only=True)
class MelConfig:
    """A mel front end, complete enough to be compared with another one."""

    sampling_rate: int
    """Hz."""
    n_fft: int
    hop_length: int
    win_length: int
    n_mels: int
    fmin: float
    """Lowest edge of the filter bank, Hz."""
    fmax: float
    log: Literal["ln", "log10"] = "ln"
    clamp: float = 1e-5
    """Magnitudes below this are raised to it before the logarithm."""
    padding: Literal["frame", "center"] = "frame"
    """Reflected at each end: ``frame`` (n_fft - hop)/2, as HiFi-GAN; ``center`` n_fft/2, as TacotronSTFT."""
    subtract_mean: bool = False
    """Remove the waveform's mean first (AudioLDM)."""
    peak: float | None = None
    """Scale the waveform to this peak first; None keeps its natural level."""
    shift: float = 0.0
    scale: float = 1.0
    """x = (log_mel - shift) / scale."""
    flip: bool = False
    """Highest band first in x (Auffusion)."""
    frequency_first: bool = False
    """x is (B, C, F, T) and not (B, C, T, F) (Auffusion)."""
    channels: int = 1
    """Copies of the mel in x (Auffusion: 3, for an RGB autoencoder)."""

    def __post_init__(self) -> None:
        """Refuse what no front end can be.

        Raises:
            InputError: naming the field and its value.
        """
        positive = ("sampling_rate", "n_fft", "hop_length", "win_length", "n_mels", "channels")
        for name in (*positive, "clamp"):
            value, kind = getattr(self, name), int if name in positive else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind) or value <= 0:
                raise InputError(f"mel definition: {name} is {value!r}; it must be a positive number.")
        if not self.hop_length <= self.win_length <= self.n_fft:
            raise InputError(
                f"mel definition: hop_length {self.hop_length}, win_length {self.win_length} and n_fft "
                f"{self.n_fft} must not decrease in this order."
            )
        if not 0 <= self.fmin < self.fmax <= self.sampling_rate / 2:
            raise InputError(
                f"mel definition: fmin {self.fmin} and fmax {self.fmax} must lie in this order between 0 and "
                f"half the sampling rate, {self.sampling_rate / 2:g} Hz."
            )
        if self.log not in ("ln", "log10"):
            raise InputError(f"mel definition: log is {self.log!r}; choose ln or log10.")
        if self.padding not in ("frame", "center"):
            raise InputError(f"mel definition: padding is {self.padding!r}; choose frame or center.")
        if self.scale == 0 or self.peak == 0:
            raise InputError("mel definition: scale and peak must not be 0.")

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, for a ``config.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MelConfig":
        """The inverse of `to_dict`.

        Raises:
            InputError: if a key is unknown, one without a default is missing, or a value makes no sense.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise InputError(f"mel definition has unknown keys {unknown}; known are {sorted(known)}.")
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"mel definition is incomplete: {error}.") from error

    @property
    def reflected(self) -> tuple[int, int]:
        """Samples reflected at the beginning and at the end; the end gets the odd one, if there is one."""
        both = self.n_fft if self.padding == "center" else self.n_fft - self.hop_length
        return both // 2, both - both // 2

    def frames(self, samples: int) -> int:
        """Number of mel frames of a waveform of ``samples`` samples."""
        before, after = self.reflected
        samples = max(samples, after + 1)  # what `LogMel` lengthens a shorter one to
        return (samples + before + after - self.n_fft) // self.hop_length + 1


# Sources of the constants: AudioLDM audioldm_train/config and audioldm2/utils.py (inference pads n_fft/2,
# the trainer (n_fft-hop)/2: half a hop apart); Auffusion converter.py; Make-An-Audio preprocess/NAT_mel.py;
# HiFi-GAN config_v1.json and meldataset.py.
_MOMENTUM = 0.5
"""Of `LogMel.impose`: of 0, 0.3, 0.5, 0.7 the one that comes nearest in eight iterations."""
_LN_CLAMP, _LN_200 = math.log(1e-5), math.log(200.0)
PRESETS: dict[str, MelConfig] = {
    "audioldm-16k-64": MelConfig(
        sampling_rate=16000, n_fft=1024, hop_length=160, win_length=1024, n_mels=64, fmin=0.0, fmax=8000.0,
        padding="center", subtract_mean=True, peak=0.5,
    ),
    "audioldm-48k-256": MelConfig(
        sampling_rate=48000, n_fft=2048, hop_length=480, win_length=2048, n_mels=256, fmin=20.0, fmax=24000.0,
        padding="center", subtract_mean=True, peak=0.5,
    ),
    "auffusion-16k-256": MelConfig(
        sampling_rate=16000, n_fft=2048, hop_length=160, win_length=1024, n_mels=256, fmin=0.0, fmax=8000.0,
        peak=0.95, shift=(_LN_CLAMP + _LN_200) / 2, scale=(_LN_200 - _LN_CLAMP) / 2,
        flip=True, frequency_first=True, channels=3,
    ),
    "maa-16k-80": MelConfig(
        sampling_rate=16000, n_fft=1024, hop_length=256, win_length=1024, n_mels=80, fmin=0.0, fmax=8000.0,
        log="log10",
    ),
    "hifigan-22k-80": MelConfig(
        sampling_rate=22050, n_fft=1024, hop_length=256, win_length=1024, n_mels=80, fmin=0.0, fmax=8000.0,
        peak=0.95,
    ),
    # Ours. 62.5 frames a second keep the latent and the vocoder small on a laptop; the natural level is kept,
    # because "quiet" and "loud" are words of the prompt; shift and scale bring x to about zero mean and unit
    # variance on the sound bank.
    "starter-16k-64": MelConfig(
        sampling_rate=16000, n_fft=1024, hop_length=256, win_length=1024, n_mels=64, fmin=0.0, fmax=8000.0,
        shift=-7.0, scale=3.5,
    ),
}  # fmt: skip


def resolve_mel(mel: "str | dict[str, Any] | MelConfig") -> MelConfig:
    """A mel definition from a preset's name, a dict of its fields, or itself.

    Raises:
        InputError: if the name is no preset (the nearest one is suggested) or the dict is not complete.
    """
    if isinstance(mel, MelConfig):
        return mel
    if isinstance(mel, dict):
        return MelConfig.from_dict(mel)
    if mel not in PRESETS:
        near = get_close_matches(mel, PRESETS, n=1, cutoff=0.0)[0]
        raise InputError(f"unknown mel preset '{mel}'; did you mean '{near}'? Presets: {', '.join(PRESETS)}.")
    return PRESETS[mel]


def require_same_mel(first: MelConfig, first_name: str, second: MelConfig, second_name: str) -> None:
    """Refuse two components whose mels differ.

    Raises:
        InputError: with both definitions and the fields in which they differ.
    """
    if first == second:
        return
    a, b = first.to_dict(), second.to_dict()
    differing = ", ".join(f"{key}: {a[key]} / {b[key]}" for key in a if a[key] != b[key])
    raise InputError(
        f"{first_name} and {second_name} do not speak the same mel ({differing}); use a pair trained on one "
        f"definition.\n  {first_name}: {a}\n  {second_name}: {b}"
    )


class LogMel(nn.Module):
    """Waveform -> log-mel -> x and back to log-mel, for one `MelConfig` (slaney filters, magnitude STFT)."""

    window: Tensor
    filters: Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.win_length), persistent=False)
        filters = F_audio.melscale_fbanks(
            config.n_fft // 2 + 1, config.fmin, config.fmax, config.n_mels, config.sampling_rate,
            norm="slaney", mel_scale="slaney",
        )  # fmt: skip
        self.register_buffer("filters", filters, persistent=False)  # (n_fft // 2 + 1, F)

    def prepare(self, wave: Tensor) -> Tensor:
        """Level the waveform (B, S) as this front end wants it: mean, peak, and never beyond +-1."""
        if self.config.subtract_mean:
            wave = wave - wave.mean(-1, keepdim=True)
        if self.config.peak is not None:
            wave = wave * (self.config.peak / wave.abs().amax(-1, keepdim=True).clamp(min=1e-8))
        return wave.clamp(-1.0, 1.0)

    def forward(self, wave: Tensor) -> Tensor:
        """Log-mel (B, T, F) of a waveform (B, S) in [-1, 1] that was `prepare`d already."""
        mel = (self._spectrum(wave).abs().mT @ self.filters).clamp(min=self.config.clamp)
        return mel.log() if self.config.log == "ln" else mel.log10()

    def impose(self, wave: Tensor, log_mel: Tensor, iterations: int) -> Tensor:
        """Scale the waveform's STFT, bin by bin and frame by frame, until its mel is the one asked for.

        A vocoder that works on log-mels must learn an exponential to follow 100 dB of level; this follows it and leaves
        the fine structure, which no mel holds, to the vocoder. Phases are kept. With m the waveform's mel, t the one
        asked for and F the filters, magnitudes are multiplied by (F 1/m) / (F 1/t): the multiplicative update of the
        Itakura-Saito divergence sum(m/t - log(m/t) - 1), which like a log-mel weighs all levels alike (Fevotte et al.
        2009), so that the gaps between loud parts are not filled. The waveform is then the one nearest to all frames
        (Griffin & Lim 1984, equation 6), each one's error counted by 1 / its level: where frames contradict each other
        the quiet one is right, or a sharp onset would be heard before it begins. Each spectrum goes on a little in the
        direction of its last change (Perraudin et al. 2013). Differentiable.

        Args:
            wave: (B, S), S a multiple of the hop.
            log_mel: (B, T, F) with T = S / hop.
            iterations: how often; overlapping frames contradict each other, so each comes closer. 0 does nothing.
        """
        floor = self.config.clamp
        target = log_mel.exp() if self.config.log == "ln" else 10**log_mel
        target = target.clamp(min=floor, max=1 / floor)  # an untrained model asks for more than any waveform has
        wanted = ((1 / target) @ self.filters.mT).clamp(min=1e-12)
        heard = self.filters.sum(1) > 0  # bins outside [fmin, fmax] stay as they are
        level = target.square().mean(-1, keepdim=True).sqrt()  # (B, T, 1)
        trust = level.amax(1, keepdim=True) / level
        weight = self._add_up(self._padded_window.square() * trust).clamp(min=1e-6)
        last = None
        for _ in range(iterations):
            spectrum = self._spectrum(wave)[..., : target.shape[1]]
            ahead = spectrum if last is None else spectrum + _MOMENTUM * (spectrum - last)
            last = spectrum
            present = (1 / (ahead.abs().mT @ self.filters).clamp(min=floor)) @ self.filters.mT
            gain = torch.where(heard, present / wanted, 1.0).clamp(max=100.0)  # 40 dB at once
            wave = self._overlap_add(ahead * (gain * trust).mT, weight, wave.shape[-1])
        return wave

    def _spectrum(self, wave: Tensor) -> Tensor:
        """Complex STFT (B, n_fft / 2 + 1, T)."""
        config, (before, after) = self.config, self.config.reflected
        if wave.shape[-1] <= after:  # reflection needs more samples than it mirrors
            wave = nn.functional.pad(wave, (0, after + 1 - wave.shape[-1]))
        wave = nn.functional.pad(wave[:, None], (before, after), mode="reflect")[:, 0]
        sizes = (config.n_fft, config.hop_length, config.win_length)
        return torch.stft(wave, *sizes, self.window, center=False, return_complex=True)

    def _overlap_add(self, spectrum: Tensor, weight: Tensor, samples: int) -> Tensor:
        """Waveform (B, samples) of weighted frames, windowed again; ``weight`` is the sum of their squared windows."""
        frames = torch.fft.irfft(spectrum.mT, self.config.n_fft) * self._padded_window
        wave = (self._add_up(frames) / weight)[:, self.config.reflected[0] :]
        return nn.functional.pad(wave, (0, max(0, samples - wave.shape[-1])))[:, :samples]

    @property
    def _padded_window(self) -> Tensor:
        edge = (self.config.n_fft - self.config.win_length) // 2
        return nn.functional.pad(self.window, (edge, self.config.n_fft - self.config.win_length - edge))

    def _add_up(self, frames: Tensor) -> Tensor:
        """Frames (B, T, n_fft), one a hop, added up where they overlap (B, samples).

        Hop by hop: `torch.nn.functional.fold` takes five times as long, a third of what all of `impose` then does.
        """
        hop = self.config.hop_length
        parts = math.ceil(self.config.n_fft / hop)
        pieces = nn.functional.pad(frames, (0, parts * hop - self.config.n_fft)).unflatten(-1, (parts, hop))
        shifted = [nn.functional.pad(pieces[:, :, i], (0, 0, i, parts - 1 - i)) for i in range(parts)]
        return torch.stack(shifted).sum(0).flatten(1)

    def to_x(self, log_mel: Tensor) -> Tensor:
        """x (B, C, T, F), or (B, C, F, T) if ``frequency_first``, of a log-mel (B, T, F)."""
        x = (log_mel - self.config.shift) / self.config.scale
        if self.config.flip:
            x = x.flip(-1)
        if self.config.frequency_first:
            x = x.mT
        return x[:, None].expand(-1, self.config.channels, -1, -1)

    def from_x(self, x: Tensor) -> Tensor:
        """Log-mel (B, T, F) of x; the exact inverse of `to_x`. Channels are averaged."""
        log_mel = x.mean(1)
        if self.config.frequency_first:
            log_mel = log_mel.mT
        if self.config.flip:
            log_mel = log_mel.flip(-1)
        return log_mel * self.config.scale + self.config.shift
