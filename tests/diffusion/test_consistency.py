"""Consistency models: the boundary, exact solutions, schedules of intervals against the papers, guidance as input."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler
from torch import Tensor

from latentdiff.diffusion.consistency import (
    ConsistencyForm,
    ConsistencyObjective,
    KarrasConsistency,
    LatentConsistency,
    doubling_intervals,
    draw_guidance,
    guidance_embedding,
    guided,
    pseudo_huber_distance,
    sample,
    squared_distance,
    target_decay,
    training_intervals,
)
from latentdiff.diffusion.continuous_objectives import Precondition
from latentdiff.diffusion.coordinates import in_coordinate
from latentdiff.diffusion.process import EDMSchedule
from latentdiff.diffusion.schedule import DiscreteSchedule
from latentdiff.errors import InputError

SCHEDULE = DiscreteSchedule.named("scaled_linear", beta_start=0.0015, beta_end=0.0195)
LATENT = LatentConsistency(SCHEDULE, "v_prediction")
KARRAS = KarrasConsistency()
FORMS: list[ConsistencyForm] = [KARRAS, LATENT]


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def noise(*shape: int, number: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seed(number))


def network(z_t: Tensor, t: Tensor) -> Tensor:
    return z_t.sin() + t.double().reshape(-1, *[1] * (z_t.dim() - 1)) / 1000


@pytest.mark.parametrize("form", FORMS, ids=["karras", "latent"])
def test_the_function_is_the_identity_at_the_first_time(form: ConsistencyForm) -> None:
    z = noise(3, 4)
    first = form.times(18)[:1].expand(3)
    assert torch.allclose(form.consistent(network, z, first), z, rtol=0, atol=1e-12)
    last = form.times(18)[-1:].expand(3)
    assert not torch.allclose(form.consistent(network, z, last), z, atol=0.1)


@pytest.mark.parametrize("form", FORMS, ids=["karras", "latent"])
def test_the_function_is_continuous_and_finite_everywhere(form: ConsistencyForm) -> None:
    for t in form.times(40):
        value = form.consistent(network, noise(2, 4), t.expand(2))
        assert value.isfinite().all() and value.dtype == torch.float64


def test_karras_scalings_are_the_papers() -> None:
    """Song et al. 2023, appendix C, with epsilon = 0.002."""
    x, sigma, d = noise(1, 3), 1.7, 0.5
    by_hand = d**2 / ((sigma - 0.002) ** 2 + d**2) * x
    scale = math.sqrt(sigma**2 + d**2)
    by_hand += d * (sigma - 0.002) / scale * network(x / scale, torch.tensor([250 * math.log(sigma)]))
    assert torch.allclose(KARRAS.consistent(network, x, torch.tensor([sigma])), by_hand, rtol=1e-6)


def test_a_copy_of_its_teacher_is_told_the_teachers_times() -> None:
    """At every sigma well above the first, f is then the teacher's own denoiser."""
    teacher, _ = exact_karras(0.25)
    x, sigma = noise(3, 2), torch.tensor([5.0, 20.0, 80.0]).double()
    found = KarrasConsistency(time_scale=0.25).consistent(teacher, x, sigma)
    assert torch.allclose(found, (0.25 / (0.25 + sigma**2))[:, None] * x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("form", FORMS, ids=["karras", "latent"])
def test_times_rise_from_end_to_end(form: ConsistencyForm) -> None:
    for intervals in (1, 2, 18, 50, 150):
        times = form.times(intervals)
        assert len(times) == intervals + 1 and (times.diff() > 0).all()
        assert (form.sigma(times).diff() > 0).all()
    assert float(KARRAS.times(5)[0]) == pytest.approx(0.002) and float(KARRAS.times(5)[-1]) == pytest.approx(80)
    assert LATENT.times(5).tolist() == [0, 199, 399, 599, 799, 999]


def test_latent_times_are_those_that_the_scheduler_samples_at() -> None:
    scheduler: Any = LCMScheduler()
    for steps in (1, 2, 4, 8, 50):
        scheduler.set_timesteps(steps, original_inference_steps=50)
        assert set(scheduler.timesteps.tolist()) <= set(LATENT.times(50).tolist())


@pytest.mark.parametrize("form", FORMS, ids=["karras", "latent"])
def test_consistency_training_pairs_lie_on_one_path(form: ConsistencyForm) -> None:
    """One z_0 and one eps: a network that knows z_0 has no loss at the first interval and little elsewhere."""
    z_0, eps = noise(4, 3), noise(4, 3, number=1)
    seen: list[Tensor] = []

    class Listening:
        def __getattr__(self, name: str) -> Any:
            return getattr(form, name)

        def consistent(self, given: Any, z: Tensor, t: Tensor) -> Tensor:
            seen.append(z)
            return form.consistent(given, z, t)

    times = form.times(20)
    t, s = times[[3, 9, 15, 20]], times[[2, 8, 14, 19]]
    ConsistencyObjective(Listening()).training_loss(network, network, z_0, t, s, eps)
    for z, at in zip(seen, (s, t), strict=True):  # the target comes first
        assert torch.allclose(z, form.noised(z_0, eps, at), rtol=1e-12)


def exact_karras(variance: float) -> Any:
    """The teacher (EDM's F) for data N(0, variance) and its ODE's solution x sqrt((v + s^2) / (v + t^2))."""
    precondition = Precondition(0.5)

    def teacher(scaled: Tensor, told: Tensor) -> Tensor:
        sigma = (4 * told).exp()[:, None]
        x = scaled / precondition.c_in(sigma)
        denoised = variance / (variance + sigma**2) * x
        return (denoised - precondition.c_skip(sigma) * x) / precondition.c_out(sigma)

    def solution(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return x * ((variance + s**2) / (variance + t**2)).sqrt()[:, None]

    return teacher, solution


def test_noise_put_back_counts_what_the_estimate_still_has() -> None:
    form, eps = KarrasConsistency(EDMSchedule(sigma_min=0.6)), noise(2, 3)
    s = torch.tensor([1.0, 0.6], dtype=torch.float64)
    assert torch.allclose(form.renoised(torch.zeros_like(eps), eps, s), torch.tensor([[0.8], [0.0]]).double() * eps)


def test_heuns_step_is_of_second_order() -> None:
    """A step half as long has an eighth of the error."""
    teacher, solution = exact_karras(0.25)
    x, t = noise(1, 3), torch.tensor([1.0]).double()
    errors = []
    for h in (0.2, 0.1, 0.05):
        s = t - h
        errors.append(float((KARRAS.ode_step(teacher, x, t, s) - solution(x, t, s)).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_ddims_step_is_of_first_order(prediction: Any) -> None:
    """For N(0, v) data the path is z sqrt((v a_s + 1 - a_s) / (v a_t + 1 - a_t))."""
    form, v = LatentConsistency(SCHEDULE, prediction), 0.25

    def teacher(z_t: Tensor, t: Tensor) -> Tensor:
        a = SCHEDULE.alpha_bar[t]
        z_0 = (a.sqrt() * v / (v * a + 1 - a))[:, None] * z_t
        return in_coordinate(z_0, (z_t - a.sqrt()[:, None] * z_0) / (1 - a).sqrt()[:, None], a, prediction)

    z, t = noise(1, 3), torch.tensor([600])
    errors = []
    for gap in (40, 20, 10):
        s = t - gap
        scale = [v * SCHEDULE.alpha_bar[i] + 1 - SCHEDULE.alpha_bar[i] for i in (s, t)]
        errors.append(float((form.ode_step(teacher, z, t, s) - z * (scale[0] / scale[1]).sqrt()).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.2)


def test_the_exact_consistency_function_has_no_distillation_loss() -> None:
    """f(x, t) = x sqrt((v + e^2) / (v + t^2)) follows the teacher's path up to its solver's error."""
    teacher, solution = exact_karras(0.25)
    precondition, form = Precondition(0.5), KARRAS

    def student(scaled: Tensor, told: Tensor) -> Tensor:
        sigma = (told / 250).exp()
        x = scaled / precondition.c_in(sigma[:, None])
        goal = solution(x, sigma, torch.full_like(sigma, 0.002))
        d, rise = 0.5, sigma[:, None] - 0.002
        return (goal - d**2 / (rise**2 + d**2) * x) / (d * rise * precondition.c_in(sigma[:, None])).clamp(min=1e-12)

    objective = ConsistencyObjective(form, squared_distance, "uniform", inverse_gap=False)
    t, s = objective.draw_pair(80, 64, seed())
    z_0, eps = 0.5 * noise(64, 5), noise(64, 5, number=1)
    exact = objective.distillation_loss(student, student, teacher, z_0, t, s, eps)
    wrong = objective.distillation_loss(lambda x, t: 0.9 * student(x, t), student, teacher, z_0, t, s, eps)
    assert float(exact.max()) < 1e-4 < 1e-3 < float(wrong.mean())


def test_one_step_of_the_exact_function_gives_the_data_and_more_steps_keep_it() -> None:
    _, solution = exact_karras(0.25)
    precondition = Precondition(0.5)

    def student(scaled: Tensor, told: Tensor) -> Tensor:
        sigma = (told / 250).exp()
        x = scaled / precondition.c_in(sigma[:, None])
        goal = solution(x, sigma, torch.full_like(sigma, 0.002))
        d, rise = 0.5, sigma[:, None] - 0.002
        return (goal - d**2 / (rise**2 + d**2) * x) / (d * rise * precondition.c_in(sigma[:, None]))

    z_T = 80.0 * noise(20_000, 1)
    for times in ((80.0,), (80.0, 1.0), (80.0, 5.0, 0.5)):
        made = sample(KARRAS, student, z_T, times, seed(2))
        assert float(made.std()) == pytest.approx(0.5, rel=0.02), times


@pytest.mark.parametrize("form", FORMS, ids=["karras", "latent"])
def test_the_target_has_no_gradient(form: ConsistencyForm) -> None:
    """A student that is its own target learns as if the target were a frozen copy."""
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    objective, z_0, eps = ConsistencyObjective(form), noise(2, 3), noise(2, 3, number=1)
    t, s = objective.draw_pair(10, 2, seed())
    gradients = []
    for target in (weight, weight.detach().clone()):
        loss = objective.training_loss(lambda z, t: weight * z, lambda z, t, w=target: w * z, z_0, t, s, eps)
        gradients.append(torch.autograd.grad(loss.sum(), weight)[0])
    assert torch.equal(*gradients) and float(gradients[0]) != 0


def test_distances() -> None:
    a, b = noise(4, 3, 2), noise(4, 3, 2, number=1)
    assert torch.allclose(squared_distance(a, b), (a - b).square().mean((1, 2)))
    c = 0.00054 * math.sqrt(6)
    assert torch.allclose(pseudo_huber_distance(a, b), ((a - b).square().sum((1, 2)) + c**2).sqrt() - c)
    assert pseudo_huber_distance(a, a).abs().max() == 0


def test_improved_pairs_are_log_normal() -> None:
    """Song & Dhariwal 2024: p(sigma_i) ~ erf of the interval's ends about ln sigma = -1.1, spread 2."""
    times, count = KARRAS.times(20), 40_000
    t, s = ConsistencyObjective(KARRAS).draw_pair(20, count, seed())
    index = torch.searchsorted(times, s)
    assert torch.equal(times[index + 1], t)
    ends = [math.erf((math.log(float(sigma)) + 1.1) / (math.sqrt(2) * 2.0)) for sigma in times]
    weight = torch.tensor(ends).diff()
    assert torch.allclose(index.bincount(minlength=20) / count, weight / weight.sum(), atol=0.01)
    t, s = ConsistencyObjective(KARRAS, pairs="uniform").draw_pair(20, count, seed())
    assert (torch.searchsorted(times, s).bincount(minlength=20) / count - 0.05).abs().max() < 0.01


def test_the_inverse_gap_weighs_by_the_distance_of_the_noises() -> None:
    z_0, eps = noise(3, 2), noise(3, 2, number=1)
    t, s = torch.tensor([0.5, 2.0, 40.0]).double(), torch.tensor([0.4, 1.0, 30.0]).double()
    plain = ConsistencyObjective(KARRAS, squared_distance, inverse_gap=False)
    weighted = ConsistencyObjective(KARRAS, squared_distance)
    losses = [o.training_loss(network, network, z_0, t, s, eps) for o in (plain, weighted)]
    assert torch.allclose(losses[0] / torch.tensor([0.1, 1.0, 10.0]).double(), losses[1])


def test_intervals_grow_as_the_papers_say() -> None:
    """N(k) counts points, one more than intervals."""
    total = 800_000
    for k in (0, 1, 400_000, total):
        n = math.ceil(math.sqrt(k / total * (151**2 - 2**2) + 2**2) - 1) + 1
        assert training_intervals(k, total) == n - 1
    assert [training_intervals(k, total) for k in (0, total)] == [1, 150]
    assert target_decay(training_intervals(0, total)) == pytest.approx(0.9)
    assert target_decay(training_intervals(total, total)) == pytest.approx(math.exp(2 * math.log(0.9) / 151))
    # Improved: 10, 20, ..., 1280, doubled after equal eighths.
    doubled = [doubling_intervals(k, 400_000) for k in range(0, 400_000, 50_000)]
    assert doubled == [10, 20, 40, 80, 160, 320, 640, 1280]
    assert doubling_intervals(400_000, 400_000) == 1280


def test_guidance_moves_the_teacher_each_example_by_its_own_scale() -> None:
    z, t = noise(3, 2), torch.zeros(3)
    scale = torch.tensor([1.0, 0.0, 4.0])
    out = guided(lambda z, t: z + 1, lambda z, t: z, scale)(z, t)
    assert torch.allclose(out, z + scale.double()[:, None])
    drawn = draw_guidance(2.0, 8.0, 4000, seed())
    assert 2 <= float(drawn.min()) < 2.05 and 7.95 < float(drawn.max()) <= 8


def test_the_guidance_embedding_is_that_of_diffusers_pipeline() -> None:
    scale = torch.tensor([1.0, 2.5, 8.0])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    for width in (256, 15):
        expected = theirs(SimpleNamespace(), scale - 1, embedding_dim=width)
        assert torch.allclose(guidance_embedding(scale, width), expected, atol=1e-5)
        assert expected.shape == (3, width)


def test_bad_settings_are_refused() -> None:
    zero = DiscreteSchedule.named("linear", zero_terminal_snr=True)
    with pytest.raises(InputError, match="use v_prediction"):
        LatentConsistency(zero, "epsilon")
    with pytest.raises(InputError, match="501 intervals do not fit in 1000 training times; take at most 500"):
        LATENT.times(501)
    for form in FORMS:
        with pytest.raises(InputError, match="0 intervals"):
            form.times(0)
    with pytest.raises(InputError, match="step 11 of 10"):
        training_intervals(11, 10)
    with pytest.raises(InputError, match="with 10 to 5 intervals"):
        doubling_intervals(0, 10, 10, 5)
    with pytest.raises(InputError, match="from 8.0 to 2.0 cannot be drawn"):
        draw_guidance(8.0, 2.0, 1, seed())
    with pytest.raises(InputError, match="sigma_min"):
        KarrasConsistency(EDMSchedule(1.0, 0.5))
