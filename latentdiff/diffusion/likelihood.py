"""How likely are the data under a diffusion model: two bounds and one integral, in nats and bits per dimension.

- `vlb`: the discrete bound of DDPM, all its terms.
- `continuous_bound`: the bound of VDM, for any schedule with a log-snr.
- `ode_likelihood`: the density under the probability-flow ODE, which is no bound.

A model is a function (z_t, t) -> prediction; x_0 (B, ...) is what it was trained on (for a latent model: z, and the
result then belongs to latent space). t is an index (B,) int64 in `vlb` and a real time (B,) float64 elsewhere. The
network gets z_t in the type of x_0, everything else is float64. Whoever wants the prediction clipped to the data's
range wraps the function and says ``sample``.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from latentdiff.diffusion.coordinates import (
    Coordinate,
    Denoise,
    Variance,
    check_prediction,
    column,
    convert,
    diffuse,
    posterior,
    posterior_variances,
    reverse_step,
)
from latentdiff.diffusion.schedule import DiscreteSchedule, NoiseSchedule, check_increasing, time_of_log_snr
from latentdiff.errors import InputError

Dequantisation = Literal["none", "discretised", "uniform"]
"""What the number is about. none: a density, of continuous data (differential entropy, may be negative).
discretised: the probability of 0..255, or of so many ``levels``, by a decoder that integrates over each value's bin.
uniform: a bound on that probability, by the density of the data plus uniform noise as wide as a bin."""
BIN = 2 / 255
"""Distance of two of the values 0..255 in [-1, 1]."""


class Estimate(NamedTuple):
    """A mean over examples and its standard error (nan for a single example)."""

    mean: float
    standard_error: float


@dataclass(frozen=True)
class Likelihood:
    """-log p(x_0), or a bound on it from above, as a sum of named terms.

    Args:
        terms: Nats for each example, (B,), or (B, steps) for a term that has one value a step.
        dimensions: Elements of an example.
    """

    terms: dict[str, Tensor]
    dimensions: int
    dequantisation: Dequantisation

    def per_example(self, term: str | None = None) -> Tensor:
        """Nats (B,): one term, or their sum."""
        chosen = self.terms.values() if term is None else [self.terms[term]]
        return torch.stack([value.reshape(len(value), -1).sum(1) for value in chosen]).sum(0)

    def nats(self, term: str | None = None) -> Estimate:
        """Nats an example."""
        values = self.per_example(term)
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return Estimate(values.mean().item(), error)

    def bits_per_dim(self, term: str | None = None) -> Estimate:
        """Bits a dimension."""
        return Estimate(*(value / (self.dimensions * math.log(2)) for value in self.nats(term)))


def gaussian_kl(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """KL(N(mean_1, var_1) || N(mean_2, var_2)) in nats for each element; the arguments broadcast."""
    difference = log_variance_1 - log_variance_2
    return 0.5 * (torch.expm1(difference) - difference + (mean_1 - mean_2).square() * torch.exp(-log_variance_2))


def prior_kl(x_0: Tensor, alpha_bar_T: Tensor) -> Tensor:
    """L_T = KL(q(z_T | x_0) || N(0, I)), nats (B,), for the last level (1,)."""
    a = column(alpha_bar_T, x_0)
    zero = torch.zeros((), dtype=torch.float64, device=x_0.device)
    return _sum(gaussian_kl(a.sqrt() * x_0.double(), torch.log1p(-a), zero, zero))


def discretised_log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor, levels: int = 256) -> Tensor:
    """log probability of each element (B, ...) under a Gaussian integrated over the bins of 0..255 (DDPM, equation 13).

    The bins of -1 and 1 reach to infinity, so the 256 probabilities, or so many ``levels``, sum to one.

    Raises:
        InputError: if x_0 is not on the grid of these values in [-1, 1].
    """
    _check_grid(x_0, levels)
    half = 1 / (levels - 1)
    x_0, scale = x_0.double(), torch.exp(-0.5 * log_variance.double())
    above = torch.where(x_0 > 1 - half, torch.inf, (x_0 + half - mean) * scale)
    below = torch.where(x_0 < -1 + half, -torch.inf, (x_0 - half - mean) * scale)
    # The normal distribution is symmetric; its logarithm is accurate on the left, so look from there.
    flip = below + above > 0
    high, low = torch.where(flip, -below, above), torch.where(flip, -above, below)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return log_high + torch.log(-torch.expm1(log_low - log_high))


def gaussian_log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(x_0; mean, variance) for each element (B, ...)."""
    squared = (x_0.double() - mean).square() * torch.exp(-log_variance)
    return -0.5 * (squared + log_variance + math.log(2 * math.pi))


def eps_weight(schedule: DiscreteSchedule, variance: Literal["fixed_large", "fixed_small"]) -> Tensor:
    """beta_t^2 / (2 sigma_t^2 alpha_t (1 - alpha_bar_t)): what |eps - eps_theta|^2 counts in L_t-1 (DDPM, equation 12).

    Returns:
        (T,); L_simple puts 1 in its place.
    """
    sigma_squared = schedule.betas if variance == "fixed_large" else posterior_variances(schedule)
    return schedule.betas.square() / (2 * sigma_squared * (1 - schedule.betas) * (1 - schedule.alpha_bar))


@torch.no_grad()
def vlb(
    schedule: DiscreteSchedule,
    denoise: Denoise,
    x_0: Tensor,
    *,
    prediction: Coordinate,
    variance: Variance,
    dequantisation: Literal["none", "discretised"],
    generator: torch.Generator,
    levels: int = 256,
) -> Likelihood:
    """-log p(x_0) <= L_T + sum of L_t-1 + L_0 (DDPM, equation 5), one draw of z_t for each of the T steps.

    Returns:
        The terms "L_T" (B,), "L_t-1" (B, T-1), from t = 2 on, and "L_0" (B,).

    Raises:
        InputError: if the data do not fit the decoder or the prediction cannot be read off z_T.
    """
    check_prediction(prediction, schedule.alpha_bar)
    steps = []
    for step in reversed(range(len(schedule.betas))):
        t = torch.full((len(x_0),), step, device=x_0.device)
        z_t = diffuse(x_0.double(), _noise(x_0, generator), schedule.alpha_bar[step : step + 1])
        output = denoise(z_t.to(x_0.dtype), t)
        steps.append(vlb_term(schedule, t, output, z_t, x_0, prediction, variance, dequantisation, levels))
    middle = torch.stack(steps[-2::-1], dim=1) if len(steps) > 1 else steps[-1].new_zeros(len(x_0), 0)
    terms = {"L_T": prior_kl(x_0, schedule.alpha_bar[-1:]), "L_t-1": middle, "L_0": steps[-1]}
    return Likelihood(terms, x_0[0].numel(), dequantisation)


def vlb_term(
    schedule: DiscreteSchedule,
    t: Tensor,
    output: Tensor,
    z_t: Tensor,
    x_0: Tensor,
    prediction: Coordinate,
    variance: Variance,
    dequantisation: Dequantisation,
    levels: int = 256,
) -> Tensor:
    """L_t-1, or L_0 where t is 0, in nats (B,); the network's output (B, C or 2 C, ...) has a gradient."""
    x, z_t = x_0.double(), z_t.double()
    mean, log_variance = reverse_step(schedule, t, output.double(), z_t, prediction, variance)
    log_variance = log_variance.expand_as(mean)
    nats = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    last, rest = (t == 0).nonzero()[:, 0], (t > 0).nonzero()[:, 0]
    if len(rest):
        alpha_bar, t = schedule.alpha_bar.to(t.device), t[rest]
        true_mean, true_variance = posterior(x[rest], z_t[rest], alpha_bar[t], alpha_bar[t - 1])
        kl = gaussian_kl(true_mean, true_variance.log(), mean[rest], log_variance[rest])
        nats = nats.index_put((rest,), _sum(kl))
    if len(last):
        decoded = decoder_nats(x_0[last], mean[last], log_variance[last], dequantisation, levels)
        nats = nats.index_put((last,), decoded)
    return nats


def antithetic_times(batch: int, generator: torch.Generator) -> Tensor:
    """u + i / B modulo 1, (B,) float64: each uniform on [0, 1), together evenly spaced (VDM, appendix)."""
    offset = torch.rand(1, dtype=torch.float64, generator=generator, device=generator.device)
    return (offset + torch.arange(batch, device=generator.device) / batch) % 1


@torch.no_grad()
def continuous_bound(
    schedule: NoiseSchedule,
    denoise: Denoise,
    x_0: Tensor,
    *,
    prediction: Coordinate,
    dequantisation: Literal["none", "discretised"],
    draws: int,
    generator: torch.Generator,
) -> Likelihood:
    """-log p(x_0) <= prior + 1/2 E_t gamma'(t) |eps - eps_theta|^2 + reconstruction (VDM, continuous time).

    The decoder is N(z_0 / alpha_0, sigma_0^2 / alpha_0^2), a density or integrated over bins.

    Args:
        draws: How many times t (antithetic over the batch) and eps are drawn for each example.

    Returns:
        The terms "prior", "diffusion" and "reconstruction" (B,). The batch shares its antithetic t, so the standard
        error of "diffusion" is rather too large than too small.
    """
    check_increasing(schedule)
    terms = end_terms(schedule, x_0, _noise(x_0, generator), dequantisation)
    terms["diffusion"] = torch.zeros_like(terms["prior"])
    for _ in range(draws):
        t = antithetic_times(len(x_0), generator).to(x_0.device) * schedule.t_end
        gamma, slope = torch.func.jvp(schedule.gamma, (t,), (torch.full_like(t, schedule.t_end),))[:2]
        eps = _noise(x_0, generator)
        terms["diffusion"] += diffusion_term(gamma, slope, denoise, x_0, t, eps, prediction) / draws
    return Likelihood(terms, x_0[0].numel(), dequantisation)


def end_terms(schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, dequantisation: Dequantisation) -> dict[str, Tensor]:
    """The terms "prior" and "reconstruction" of VDM's bound, nats (B,), for one draw of eps (B, ...).

    Their gradient reaches a learned schedule's ends.
    """
    first, last = _end_levels(schedule, x_0.device)
    z_first = diffuse(x_0.double(), eps.double(), torch.sigmoid(-first))
    reconstruction = decoder_nats(x_0, z_first / torch.sigmoid(-first).sqrt(), first, dequantisation)
    return {"prior": prior_kl(x_0, torch.sigmoid(-last)), "reconstruction": reconstruction}


def diffusion_term(
    gamma: Tensor, slope: Tensor, denoise: Denoise, x_0: Tensor, t: Tensor, eps: Tensor, prediction: Coordinate
) -> Tensor:
    """1/2 gamma'(t) |eps - eps_theta(z_t, t)|^2 in nats (B,), with gamma and its slope at t (B,)."""
    alpha_bar_t, eps = torch.sigmoid(-gamma.double()), eps.double()
    z_t = diffuse(x_0.double(), eps, alpha_bar_t)
    guess = convert(denoise(z_t.to(x_0.dtype), t).double(), z_t, alpha_bar_t, prediction, "epsilon")
    return 0.5 * slope * _sum((eps - guess).square())


def ode_likelihood(
    schedule: NoiseSchedule,
    denoise: Denoise,
    x_0: Tensor,
    *,
    prediction: Coordinate,
    dequantisation: Literal["none", "uniform"],
    steps: int,
    probes: int | None,
    generator: torch.Generator,
    levels: int = 256,
) -> Likelihood:
    """-log p(x_0) under the probability-flow ODE (Song et al. 2021, equation 39), by Runge-Kutta of order 4.

    With gamma as the time the ODE is dz/dgamma = 1/2 alpha sigma v(z, gamma), and log p grows along it by minus its
    divergence. It runs from z = alpha_0 x_0, so this is the density of the data smoothed by the schedule's first noise.

    Args:
        steps: Runge-Kutta steps, equal in gamma, of four evaluations each.
        probes: Rademacher vectors of Hutchinson's estimate of the divergence, the same along the path;
            None for the exact trace, one backward pass a dimension.

    Returns:
        The terms "prior" = -log N(z_T; 0, I), "divergence" and "scale" = -log det of alpha_0, and for uniform
        dequantisation "bins", all (B,).
    """
    terms, dimensions = {}, x_0[0].numel()
    if dequantisation == "uniform":
        _check_grid(x_0, levels)
        offset = torch.rand(x_0.shape, generator=generator, device=generator.device) - 0.5
        x_0 = x_0 + 2 / (levels - 1) * offset.to(x_0)
        terms["bins"] = _constant(-dimensions * math.log(2 / (levels - 1)), x_0)
    first, last = (level.item() for level in _end_levels(schedule, x_0.device))
    gammas = torch.linspace(first, last, 2 * steps + 1, dtype=torch.float64, device=x_0.device)
    times = time_of_log_snr(schedule, -gammas)
    directions = _probes(x_0, probes, generator)

    def slope(z: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """dz/dgamma (B, ...) and its divergence (B,) at ``gammas[i]``."""
        alpha_bar_t, t = torch.sigmoid(-gammas[i : i + 1]), times[i].expand(len(z))
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            v = convert(denoise(z.to(x_0.dtype), t).double(), z, alpha_bar_t, prediction, "v_prediction")
            dz = 0.5 * column(alpha_bar_t * (1 - alpha_bar_t), z).sqrt() * v
            return dz.detach(), _divergence(dz, z, directions) / (probes or 1)

    z, divergence = diffuse(x_0.double(), torch.zeros_like(x_0.double()), torch.sigmoid(-gammas[:1])), _constant(0, x_0)
    h = (last - first) / steps
    for i in range(0, 2 * steps, 2):
        k_1, d_1 = slope(z, i)
        k_2, d_2 = slope(z + h / 2 * k_1, i + 1)
        k_3, d_3 = slope(z + h / 2 * k_2, i + 1)
        k_4, d_4 = slope(z + h * k_3, i + 2)
        z = z + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
        divergence = divergence + h / 6 * (d_1 + 2 * d_2 + 2 * d_3 + d_4)
    zero = torch.zeros((), dtype=torch.float64, device=x_0.device)
    terms["prior"] = -_sum(gaussian_log_likelihood(z, zero, zero))
    terms["divergence"] = -divergence
    terms["scale"] = _constant(0.5 * dimensions * math.log1p(math.exp(first)), x_0)
    return Likelihood(terms, dimensions, dequantisation)


def _probes(x_0: Tensor, probes: int | None, generator: torch.Generator) -> list[Tensor]:
    """Vectors whose quadratic forms add up to the trace: the unit vectors, or Rademacher draws (Hutchinson)."""
    if probes is None:
        unit = torch.eye(x_0[0].numel(), dtype=torch.float64, device=x_0.device)
        return [row.reshape(1, *x_0.shape[1:]).expand(x_0.shape) for row in unit]
    shape = (probes, *x_0.shape)
    signs = 2 * torch.randint(2, shape, generator=generator, device=generator.device) - 1
    return list(signs.to(x_0.device, torch.float64))


def _divergence(dz: Tensor, z: Tensor, directions: list[Tensor]) -> Tensor:
    """Sum over the directions u of u^T J u, J = d dz / d z, for each example (B,)."""
    products = [u * torch.autograd.grad(dz, z, u, retain_graph=True)[0] for u in directions]
    return torch.stack([_sum(product) for product in products]).sum(0)


def decoder_nats(
    x_0: Tensor, mean: Tensor, log_variance: Tensor, dequantisation: Dequantisation, levels: int = 256
) -> Tensor:
    """-log p(x_0 | mean, variance) in nats (B,)."""
    if dequantisation == "discretised":
        return -_sum(discretised_log_likelihood(x_0, mean, log_variance, levels))
    return -_sum(gaussian_log_likelihood(x_0, mean, log_variance))


def _end_levels(schedule: NoiseSchedule, device: torch.device) -> Tensor:
    """gamma at the first and the last time, (2, 1) float64.

    Raises:
        InputError: if one of them is not finite.
    """
    ends = torch.tensor([[0.0], [schedule.t_end]], dtype=torch.float64, device=device)
    gamma = schedule.gamma(ends).double()
    if not gamma.isfinite().all():
        raise InputError("the schedule begins without noise or ends without signal, so its log-snr is not finite.")
    return gamma


def _check_grid(x_0: Tensor, levels: int = 256) -> None:
    """Refuse data that are not 0 .. levels - 1 mapped to [-1, 1]."""
    last = levels - 1
    level = (x_0.detach().double() + 1) * last / 2
    if not ((level - level.round()).abs() < 0.01).all() or level.round().min() < 0 or level.round().max() > last:
        raise InputError(
            f"the data reach from {x_0.min():g} to {x_0.max():g}; for discretised data they must be whole numbers "
            f"0..{last} mapped to [-1, 1] (x / {last / 2:g} - 1). Continuous data have a density: use dequantisation "
            "'none'."
        )


def _noise(x_0: Tensor, generator: torch.Generator) -> Tensor:
    """eps, shaped like x_0, float64."""
    return torch.randn(x_0.shape, dtype=torch.float64, generator=generator, device=generator.device).to(x_0.device)


def _constant(value: float, x_0: Tensor) -> Tensor:
    """(B,) float64."""
    return torch.full((len(x_0),), value, dtype=torch.float64, device=x_0.device)


def _sum(values: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    return values.flatten(1).sum(1)
