"""Coordinates and steps of the Gaussian path (claims C3, C6, C9) and agreement with diffusers."""

from itertools import product
from typing import Any, get_args

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.distributions import Normal

from latentdiff.diffusion.coordinates import (
    Coordinate,
    Variance,
    check_prediction,
    convert,
    ddim_step,
    diffuse,
    in_coordinate,
    posterior,
    posterior_variances,
    reverse_log_variance,
    reverse_step,
    velocity,
    z_0_and_eps,
)
from latentdiff.diffusion.schedule import (
    DiscreteSchedule,
    LogLinearSchedule,
    alpha_bar_of_flow_time,
    alpha_bar_of_sigma,
)
from latentdiff.errors import InputError

COORDINATES: tuple[Coordinate, ...] = get_args(Coordinate)
LINEAR = DiscreteSchedule.named("linear")


def draw(batch: int = 6, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_0, eps = torch.randn(2, batch, *(shape or (4, 8, 2)), generator=generator, dtype=torch.float64)
    return z_0, eps, torch.linspace(0.001, 0.999, batch, dtype=torch.float64)


@pytest.mark.parametrize(("source", "target"), list(product(COORDINATES, COORDINATES)))
def test_c9_every_coordinate_says_the_same(source: Coordinate, target: Coordinate) -> None:
    z_0, eps, a = draw()
    z_t = diffuse(z_0, eps, a)
    value = in_coordinate(z_0, eps, a, source)
    other = convert(value, z_t, a, source, target)
    assert torch.allclose(other, in_coordinate(z_0, eps, a, target), rtol=0, atol=1e-10)
    assert torch.allclose(convert(other, z_t, a, target, source), value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("source", COORDINATES)
def test_c9_any_prediction_goes_round_not_only_the_true_one(source: Coordinate) -> None:
    value, z_t, a = draw(6, 5)
    for target in COORDINATES:
        back = convert(convert(value, z_t, a, source, target), z_t, a, target, source)
        assert torch.allclose(back, value, rtol=0, atol=1e-10)


def test_score_is_the_gradient_of_the_log_density() -> None:
    z_0, eps, a = draw(6, 1)
    z_t = diffuse(z_0, eps, a).requires_grad_()
    Normal(a.sqrt()[:, None] * z_0, (1 - a).sqrt()[:, None]).log_prob(z_t).sum().backward()
    assert torch.allclose(in_coordinate(z_0, eps, a, "score"), z_t.grad, rtol=0, atol=1e-10)  # type: ignore[arg-type]


def test_the_straight_flow_and_edm_are_the_same_path_at_another_scale() -> None:
    z_0, eps, t = draw()
    t_column = t[:, None, None, None]
    straight = ((1 - t_column) * z_0 + t_column * eps).requires_grad_()
    a = alpha_bar_of_flow_time(t)
    scale = (a.sqrt() + (1 - a).sqrt())[:, None, None, None]
    assert torch.allclose(diffuse(z_0, eps, a) / scale, straight, rtol=0, atol=1e-12)
    sigma = 10 * t
    noisy = z_0 + sigma[:, None, None, None] * eps
    a = alpha_bar_of_sigma(sigma)
    assert torch.allclose(diffuse(z_0, eps, a) / a.sqrt()[:, None, None, None], noisy, rtol=0, atol=1e-10)


@pytest.mark.parametrize("coordinate", ["v_prediction", "flow"])
def test_v_and_flow_hold_where_nothing_of_the_signal_is_left(coordinate: Coordinate) -> None:
    z_0, eps, _ = draw(2)
    a = torch.tensor([0.0, 1.0], dtype=torch.float64)
    again = z_0_and_eps(in_coordinate(z_0, eps, a, coordinate), diffuse(z_0, eps, a), a, coordinate)
    for found, true in zip(again, (z_0, eps), strict=True):
        assert torch.allclose(found, true, rtol=0, atol=1e-14)


def test_c3_the_diffused_density_is_the_data_density_smoothed() -> None:
    """A 1-D mixture: samples of q(z_t), and the convolution by quadrature, against each other."""
    generator = torch.Generator().manual_seed(0)
    count, a = 200_000, torch.tensor([0.7], dtype=torch.float64)
    side = torch.randint(2, (count, 1), generator=generator)
    z_0, eps = torch.randn(2, count, 1, generator=generator, dtype=torch.float64)
    z_0 = 0.2 * z_0 + 2.0 * side - 1.0
    z_t = diffuse(z_0, eps, a)

    grid = torch.linspace(-5, 5, 801, dtype=torch.float64)
    centres = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    data = Normal(centres, torch.full_like(centres, 0.2)).log_prob(grid).exp().mean(0)
    kernel = Normal(a.sqrt() * grid[None, :], (1 - a).sqrt()).log_prob(grid[:, None]).exp()
    smoothed = (kernel * data).sum(1) * (grid[1] - grid[0])
    expected = Normal(centres * a.sqrt(), (0.04 * a + 1 - a).sqrt()).log_prob(grid).exp().mean(0)
    assert torch.allclose(smoothed, expected, rtol=0, atol=1e-10)
    # Bins of the samples against the integral of the density over each, within 4 standard errors.
    bins = 40
    found = torch.histogram(z_t[:, 0], bins, range=(-5.0, 5.0)).hist / count
    exact = torch.cumulative_trapezoid(smoothed, grid)[19::20].diff(prepend=torch.zeros(1, dtype=torch.float64))
    assert ((found - exact).abs() <= 4 * (exact / count).sqrt() + 1e-5).all()


@pytest.mark.parametrize("t", [1, 10, 500, 999])
def test_c6_the_posterior_is_bayes_rule_on_a_grid(t: int) -> None:
    """q(z_t-1 | z_t, z_0) proportional to q(z_t | z_t-1) q(z_t-1 | z_0), normalised numerically in 1-D."""
    z_0, z_t = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[-0.4]], dtype=torch.float64)
    z_t = LINEAR.alpha_bar[t].sqrt() * z_0 + (1 - LINEAR.alpha_bar[t]).sqrt() * z_t
    mean, variance = posterior(z_0, z_t, LINEAR.alpha_bar[t : t + 1], LINEAR.alpha_bar[t - 1 : t])
    grid = mean[0] + variance[0].sqrt() * torch.linspace(-9, 9, 2001, dtype=torch.float64)
    step = Normal((1 - LINEAR.betas[t]).sqrt() * grid, LINEAR.betas[t].sqrt())
    before = Normal(LINEAR.alpha_bar[t - 1].sqrt() * z_0[0], (1 - LINEAR.alpha_bar[t - 1]).sqrt())
    density = torch.softmax(step.log_prob(z_t[0]) + before.log_prob(grid), dim=0)
    found = (density * grid).sum()
    assert float(found - mean) == pytest.approx(0, abs=1e-10)
    assert float((density * (grid - found).square()).sum()) == pytest.approx(float(variance), rel=1e-10)


def test_the_posterior_of_a_longer_step_chains_the_shorter_ones() -> None:
    """q(z_s | z_t, z_0) is q(z_s | z_m, z_0) averaged over q(z_m | z_t, z_0), s < m < t."""
    z_0, z_t, _ = draw(1, 3)
    a_t, a_m, a_s = (torch.tensor([a], dtype=torch.float64) for a in (0.2, 0.5, 0.8))
    middle, middle_variance = posterior(z_0, z_t, a_t, a_m)
    mean, variance = posterior(z_0, middle, a_m, a_s)
    slope = posterior(z_0, middle + 1, a_m, a_s)[0] - mean
    whole, whole_variance = posterior(z_0, z_t, a_t, a_s)
    assert torch.allclose(mean, whole, rtol=0, atol=1e-12)
    assert torch.allclose(variance + slope[:, :1].square() * middle_variance, whole_variance, rtol=1e-12)


def test_variances_of_the_reverse_step() -> None:
    small = posterior_variances(LINEAR)
    assert (small[1:] < LINEAR.betas[1:]).all() and (small > 0).all()
    assert small[0] == small[1]
    assert posterior_variances(DiscreteSchedule(torch.tensor([0.3]))).tolist() == pytest.approx([0.3])
    vdm = DiscreteSchedule.from_gamma(LogLinearSchedule(-13.3, 5.0), 1000)  # its first step makes nearly all of a level
    assert posterior_variances(vdm)[0] == vdm.betas[0] > 50 * posterior_variances(vdm)[1]
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    learned = reverse_log_variance(LINEAR, 5, "learned_range", ends, ends)
    fixed = [reverse_log_variance(LINEAR, 5, kind, ends) for kind in ("fixed_small", "fixed_large")]
    assert torch.allclose(learned, torch.cat(fixed), rtol=1e-12)


@pytest.mark.parametrize("variance", get_args(Variance))
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_reverse_step_is_that_of_diffusers(prediction: Coordinate, variance: Variance) -> None:
    """To 1e-8 once its float32 levels, 1 - alpha_bar to three digits at small t, are the exact ones."""
    scheduler: Any = DDPMScheduler(prediction_type=prediction, variance_type=variance, clip_sample=False)
    scheduler.alphas_cumprod = LINEAR.alpha_bar
    z_t, output, _ = draw(2, 3, 4, 4)
    if variance == "learned_range":
        output = torch.cat([output, output.tanh()], dim=1)
    for t in (1, 20, 500, 999):
        mean, log_variance = reverse_step(LINEAR, t, output, z_t, prediction, variance)
        step = scheduler.step(output, t, z_t, generator=torch.Generator().manual_seed(5)).prev_sample
        noise = torch.randn(z_t.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        assert torch.allclose(mean + (0.5 * log_variance).exp() * noise, step, rtol=0, atol=1e-8)
    mean, _ = reverse_step(LINEAR, 0, output, z_t, prediction, variance)
    assert torch.allclose(mean, scheduler.step(output, 0, z_t).prev_sample, rtol=0, atol=1e-8)


@pytest.mark.parametrize("variance", get_args(Variance))
def test_the_reverse_step_takes_a_time_for_each(variance: Variance) -> None:
    z_t, output, _ = draw(4, 3, 4)
    if variance == "learned_range":
        output = torch.cat([output, output.tanh()], dim=1)
    t = torch.tensor([0, 3, 500, 999])
    mean, log_variance = reverse_step(LINEAR, t, output, z_t, "epsilon", variance)
    for i, step in enumerate(t.tolist()):
        one = slice(i, i + 1)
        alone = reverse_step(LINEAR, step, output[one], z_t[one], "epsilon", variance)
        assert torch.equal(mean[one], alone[0]) and torch.equal(log_variance[one], alone[1])


@pytest.mark.parametrize("coordinate", COORDINATES)
def test_ddim_steps_chain_where_the_prediction_is_right(coordinate: Coordinate) -> None:
    """With one z_0 the path is known: any step along it lands on it."""
    z_0, eps, a_t = draw()
    a_s = torch.linspace(0.9, 0.2, 6, dtype=torch.float64)
    value = in_coordinate(z_0, eps, a_t, coordinate)
    landed = ddim_step(value, diffuse(z_0, eps, a_t), a_t, a_s, coordinate)
    assert torch.allclose(landed, diffuse(z_0, eps, a_s), rtol=0, atol=1e-10)


def test_eps_without_any_signal_is_refused() -> None:
    levels = DiscreteSchedule.named("linear", zero_terminal_snr=True).alpha_bar
    for prediction in ("epsilon", "score"):
        with pytest.raises(InputError, match=f"'{prediction}' says nothing.*v_prediction"):
            check_prediction(prediction, levels)
    check_prediction("v_prediction", levels)
    check_prediction("epsilon", LINEAR.alpha_bar)


def test_velocity_of_any_rank() -> None:
    for shape in ((3,), (2, 3), (2, 3, 4)):
        z_0, eps, a = draw(4, *shape)
        flat = velocity(z_0.flatten(1), eps.flatten(1), a)
        assert torch.equal(velocity(z_0, eps, a).flatten(1), flat)
