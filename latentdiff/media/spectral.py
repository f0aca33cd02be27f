"""Distances between waveforms by their spectra: training terms and figures of merit alike."""

import torch
from torch import Tensor

RESOLUTIONS = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))
"""(n_fft, hop, window) of the multi-resolution STFT distance (Yamamoto et al. 2020, table 1)."""


def multi_resolution_stft(first: Tensor, second: Tensor) -> Tensor:
    """Spectral convergence plus log-magnitude L1, mean of three resolutions (Yamamoto et al. 2020, eq. 6-9).

    Args:
        first: the waveform that is judged, (B, S).
        second: the true waveform, (B, S).

    Returns:
        One value a waveform, (B,). Finite, with finite gradients, on silence too.
    """
    total = first.new_zeros(first.shape[0])
    for n_fft, hop, window in RESOLUTIONS:
        a, b = (_magnitude(wave, n_fft, hop, window) for wave in (first, second))
        # The floor keeps silence, of norm 0, from turning the ratio into 0/0; a clip at -40 dB has some 10.
        convergence = (b - a).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1).clamp(min=1.0)
        total = total + convergence + (a.log() - b.log()).abs().flatten(1).mean(1)
    return total / len(RESOLUTIONS)


def _magnitude(wave: Tensor, n_fft: int, hop: int, window: int) -> Tensor:
    taper = torch.hann_window(window, device=wave.device)
    spectrum = torch.stft(wave.float(), n_fft, hop, window, taper, return_complex=True)
    # sqrt(|.|^2 + floor): the gradient of a bare absolute value at silence is not defined.
    return (spectrum.real.square() + spectrum.imag.square() + 1e-6).sqrt()
