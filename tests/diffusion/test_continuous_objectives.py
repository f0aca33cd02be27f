"""EDM, flow and VDM: targets and weights against their papers, drawn times, VDM's bound and its learned schedule."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentdiff.diffusion.continuous_objectives import EDM, ContinuousTime, Flow, Precondition, stratified_normal
from latentdiff.diffusion.coordinates import in_coordinate
from latentdiff.diffusion.learned_schedule import LearnedSchedule
from latentdiff.diffusion.likelihood import BIN, antithetic_times, continuous_bound
from latentdiff.diffusion.process import EDMSchedule, FlowSchedule
from latentdiff.diffusion.schedule import LogLinearSchedule, NoiseSchedule, alpha_bar_of_sigma
from latentdiff.errors import InputError


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def draw(batch: int = 6) -> tuple[Tensor, Tensor]:
    z_0, eps = torch.randn(2, batch, 3, 2, generator=seed(), dtype=torch.float64)
    return z_0, eps


def test_normal_numbers_are_stratified() -> None:
    drawn = stratified_normal(1000, seed())
    parts = (torch.special.ndtr(drawn) * 1000).long()
    assert sorted(parts.tolist()) == list(range(1000))
    assert not torch.equal(drawn, drawn.sort().values)


def test_edm_is_the_papers_loss() -> None:
    """Equation 8 with table 1, one number at a time; t = ln sigma / 4."""
    z_0, eps = draw()
    edm, t = EDM(EDMSchedule(sigma_data=0.7)), torch.linspace(-1.5, 1.0, 6, dtype=torch.float64)

    def network(scaled: Tensor, told: Tensor) -> Tensor:
        assert torch.allclose(told, t)
        return scaled.sin()

    loss = edm.loss(network, z_0, t, eps)
    for i, sigma in enumerate((4 * t).exp().tolist()):
        scale = math.sqrt(sigma**2 + 0.49)
        total = 0.0
        for y, n in zip(z_0[i].flatten().tolist(), eps[i].flatten().tolist(), strict=True):
            x = y + sigma * n
            d = 0.49 / (sigma**2 + 0.49) * x + sigma * 0.7 / scale * math.sin(x / scale)
            total += (sigma**2 + 0.49) / (sigma * 0.7) ** 2 * (d - y) ** 2
        assert float(loss[i]) == pytest.approx(total / 6, rel=1e-10)


def test_edm_with_unit_data_predicts_minus_v() -> None:
    """Preconditioning is v-prediction with another name (Salimans & Ho 2022 against EDM, table 1)."""
    z_0, eps = draw()
    t = torch.linspace(-1.5, 1.0, 6, dtype=torch.float64)
    v = in_coordinate(z_0, eps, alpha_bar_of_sigma((4 * t).exp()), "v_prediction")
    assert float(EDM(EDMSchedule(sigma_data=1.0)).loss(lambda x, t: -v, z_0, t, eps).max()) < 1e-20


def test_edm_preconditions_both_ends_to_unit_variance() -> None:
    z_0 = 0.5 * torch.randn(200_000, generator=seed())
    eps = torch.randn(200_000, generator=seed(1))
    for sigma in torch.tensor([0.01, 0.5, 20.0]):
        precondition, x = Precondition(0.5), z_0 + sigma * eps
        target = (z_0 - precondition.c_skip(sigma) * x) / precondition.c_out(sigma)
        assert float((precondition.c_in(sigma) * x).var()) == pytest.approx(1, rel=0.02)
        assert float(target.var()) == pytest.approx(1, rel=0.02)


def test_edm_draws_log_normal_sigmas() -> None:
    log_sigma = 4 * EDM().draw_times(4000, seed()).double()
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=0.01)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=0.01)


def test_flow_is_the_error_of_the_velocity() -> None:
    z_0, eps = draw()
    t = torch.linspace(1, 999, 6, dtype=torch.float64)

    def network(z_t: Tensor, told: Tensor) -> Tensor:
        assert torch.equal(told, t)
        share = (t / 1000)[:, None, None]
        assert torch.allclose(z_t, (1 - share) * z_0 + share * eps, rtol=0, atol=1e-14)
        return eps - z_0 + torch.arange(6.0)[:, None, None]

    assert torch.allclose(Flow().loss(network, z_0, t, eps), torch.arange(6.0).double() ** 2)


@pytest.mark.parametrize(("mean", "std", "shift"), [(0.0, 1.0, 1.0), (-0.5, 0.8, 1.0), (0.0, 1.0, 3.0)])
def test_flow_times_are_logit_normal(mean: float, std: float, shift: float) -> None:
    """logit of the shifted sigma is that of the unshifted one plus ln shift."""
    t = Flow(FlowSchedule(shift), mean, std).draw_times(4000, seed()).double()
    logit = torch.logit(t / 1000)
    assert float(logit.mean()) == pytest.approx(mean + math.log(shift), abs=0.01)
    assert float(logit.std()) == pytest.approx(std, abs=0.01)
    assert torch.equal(Flow().draw_times(5, seed(3)), Flow().draw_times(5, seed(3)))


def pixels(*shape: int) -> Tensor:
    return torch.randint(256, shape, generator=seed(5)).double() * BIN - 1


def network(z_t: Tensor, t: Tensor) -> Tensor:
    return 0.9 * z_t.tanh()


@pytest.mark.parametrize("kind", ["fixed", "learned"])
def test_the_vdm_objective_is_the_continuous_bound(kind: str) -> None:
    """The mean over many draws of t and eps is `continuous_bound`'s; both are estimates of one number."""
    torch.manual_seed(0)
    schedules: dict[str, NoiseSchedule] = {
        "fixed": LogLinearSchedule(-9.0, 5.0),
        "learned": LearnedSchedule(-9.0, 5.0, width=16).double(),
    }
    schedule, x_0 = schedules[kind], pixels(1, 2, 3).expand(4000, 2, 3)
    objective = ContinuousTime(schedule, "epsilon", "discretised", 1000)
    eps = torch.randn(x_0.shape, dtype=torch.float64, generator=seed(1))
    with torch.no_grad():
        loss = objective.loss(network, x_0, objective.draw_times(4000, seed()), eps)
    options = {"prediction": "epsilon", "dequantisation": "discretised", "draws": 1, "generator": seed(2)}
    bound = continuous_bound(schedule, network, x_0, **options).bits_per_dim()  # type: ignore[arg-type]
    error = math.hypot(float(loss.std()) / math.sqrt(4000), bound.standard_error)
    assert abs(float(loss.mean()) - bound.mean) < 4 * error < 0.08 * bound.mean


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_network_leaves_the_ends_of_vdm_alone(prediction: str) -> None:
    z_0, eps = draw()
    objective = ContinuousTime(LogLinearSchedule(), prediction, "none")  # type: ignore[arg-type]
    t = objective.draw_times(6, seed())
    alpha_bar = torch.sigmoid(-LogLinearSchedule().gamma(t.double() / 999))
    loss = objective.loss(lambda z_t, t: in_coordinate(z_0, eps, alpha_bar, prediction), z_0, t, eps)  # type: ignore[arg-type]
    prior = 0.5 * (z_0.square() * torch.sigmoid(torch.tensor(-5.0).double()) + math.log1p(math.exp(-5)))
    prior += 0.5 * (torch.sigmoid(torch.tensor(5.0).double()) - 1)
    decoder = 0.5 * (eps.square() + math.log(2 * math.pi) - 13.3)
    expected = (prior + decoder).flatten(1).mean(1) / math.log(2)
    assert torch.allclose(loss, expected, rtol=0, atol=1e-6)


def test_vdm_times_are_antithetic() -> None:
    t = ContinuousTime(LogLinearSchedule(), num_train_timesteps=101).draw_times(20, seed())
    assert torch.allclose(t, (antithetic_times(20, seed()) * 100).float())
    assert torch.allclose(t.sort().values.diff(), torch.full((19,), 5.0), atol=1e-4)
    free = torch.rand(500, 20, generator=seed()).mean(1).var()
    even = torch.stack([antithetic_times(20, seed(i)) for i in range(500)]).mean(1).var()
    assert even < 0.08 * free  # 1 / 20, where t itself is averaged


def trained(schedule: LearnedSchedule, loss: Callable[[], Tensor], steps: int, lr: float) -> None:
    optimiser = torch.optim.Adam(schedule.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()


def best_for_gaussian(schedule: NoiseSchedule, variance: float, levels: int) -> Callable[[Tensor, Tensor], Tensor]:
    def denoise(z_t: Tensor, t: Tensor) -> Tensor:
        gamma = schedule.gamma(t.double() / (levels - 1)).detach()[:, None]
        return torch.sigmoid(gamma).sqrt() / (variance * torch.sigmoid(-gamma) + torch.sigmoid(gamma)) * z_t

    return denoise


def test_a_learned_schedule_finds_its_ends() -> None:
    """Ends that are too close cost bits: the prior keeps signal and the decoder blurs. Training moves them apart."""
    schedule, x_0 = LearnedSchedule(-3.0, 0.0, width=0).double(), 0.7 * torch.randn(500, 2, generator=seed()).double()
    objective = ContinuousTime(schedule, "epsilon", "none", 100)
    generator = seed(1)

    def loss() -> Tensor:
        eps = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
        return objective.loss(
            best_for_gaussian(schedule, 0.49, 100), x_0, objective.draw_times(500, generator), eps
        ).mean()

    def bound() -> float:
        return sum(float(loss()) for _ in range(100)) / 100

    before = bound()
    trained(schedule, loss, 100, 0.05)
    assert float(schedule.gamma(torch.ones(1))) > 2 and float(schedule.gamma(torch.zeros(1))) < -4
    entropy = 0.5 * math.log2(2 * math.pi * math.e * 0.49)
    assert before > entropy + 0.1
    assert bound() < entropy + 0.07


def test_a_learned_schedule_between_its_ends_lowers_the_variance_and_not_the_bound() -> None:
    """VDM, section 5: the gradient of the squared loss makes the diffusion term the same at every t."""
    torch.manual_seed(0)
    schedule = LearnedSchedule(-8.0, 8.0, width=32).double()
    for end in (schedule.gamma_min, schedule.log_span):
        end.requires_grad_(False)
    objective = ContinuousTime(schedule, "epsilon", "none", 100)
    generator, x_0 = seed(1), 0.3 * torch.randn(1000, 8, generator=seed()).double()

    def losses() -> Tensor:
        eps = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
        t = objective.draw_times(1000, generator)
        return objective.loss(best_for_gaussian(schedule, 0.09, 100), x_0, t, eps)

    def moments() -> tuple[float, float]:
        drawn = torch.cat([losses().detach() for _ in range(10)])
        return float(drawn.mean()), float(drawn.var())

    mean, variance = moments()
    trained(schedule, lambda: losses().mean(), 60, 0.06)
    again, less = moments()
    assert less < 0.75 * variance
    assert again == pytest.approx(mean, abs=0.05)


def test_bad_settings_are_refused() -> None:
    class Falling:
        t_end = 1.0

        def gamma(self, t: Tensor) -> Tensor:
            return -t

    with pytest.raises(InputError, match="not monotone"):
        ContinuousTime(Falling())
    with pytest.raises(InputError, match="num_train_timesteps is 1; both ends"):
        ContinuousTime(LogLinearSchedule(), num_train_timesteps=1)
    with pytest.raises(InputError, match="not finite"):
        ContinuousTime(FlowSchedule()).loss(network, pixels(1, 2), torch.ones(1), torch.ones(1, 2))
    with pytest.raises(InputError, match="0..255"):
        ContinuousTime(LogLinearSchedule()).loss(network, torch.full((1, 2), 1.3), torch.ones(1), torch.ones(1, 2))
