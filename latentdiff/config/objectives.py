"""The objectives of the ``diffusion`` stage, by their key ``kind``; `latentdiff.training.objective` makes them.

Those on discrete times run the process of the key ``schedule``; the others say their own.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from latentdiff.config.sections import Section


class _OnDiscreteTimes(Section):
    prediction: Literal["epsilon", "sample", "v_prediction"] | None = "epsilon"
    """What the network says: the noise, z_0, or v (diffusers' names); null where ``init`` says it."""
    times: Literal["uniform", "importance"] = "uniform"
    """How t is drawn: alike, or more often where the loss varies more (improved DDPM, section 3.3)."""


class _WithFixedVariance(_OnDiscreteTimes):
    variance: Literal["fixed_small", "fixed_large"] = "fixed_small"
    """Of p(z_t-1 | z_t), for the sampler ``ddpm`` and the likelihood; not trained (DDPM, section 3.2)."""
    channel_weights: Literal["even", "decoded"] = "even"
    """How much the error of each channel of z counts: alike, or by how far the VAE's decoder moves x when it changes.
    A latent whose channels are whitened, as `PatchAutoencoder`'s, has some that hardly show."""


class SimpleObjective(_WithFixedVariance):
    """DDPM's L_simple: the squared error, every t alike."""

    kind: Literal["simple"] = "simple"


class MinSNRObjective(_WithFixedVariance):
    """L_simple with the weight min(snr, gamma) on the error of z_0 (Hang et al. 2023)."""

    kind: Literal["min_snr"]
    gamma: float = Field(5.0, gt=0)


class P2Objective(_WithFixedVariance):
    """L_simple with the weight 1 / (k + snr)^gamma on the error of eps (Choi et al. 2022)."""

    kind: Literal["p2"]
    gamma: float = Field(1.0, ge=0)
    k: float = Field(1.0, gt=0)


class HybridObjective(_OnDiscreteTimes):
    """L_simple + vlb_weight L_vlb, with a learned variance (improved DDPM)."""

    kind: Literal["hybrid"]
    vlb_weight: float = Field(0.001, gt=0)


class VLBObjective(_OnDiscreteTimes):
    """The variational bound itself, in bits a dimension."""

    kind: Literal["vlb"]
    variance: Literal["fixed_small", "fixed_large", "learned_range"] = "learned_range"


class OneStepVAEObjective(Section):
    """The bound of a diffusion of one step: a VAE with a latent as large as its data and a fixed encoder."""

    kind: Literal["one_step_vae"]
    beta: float = Field(1.0, gt=0, le=1)
    """Variance of the encoder and of the decoder; at 1 the latent is nothing but noise."""


class EDMObjective(Section):
    """Karras et al. 2022: x_0 + sigma eps with a preconditioned network."""

    kind: Literal["edm"]
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    sigma_data: float | None = Field(None, gt=0)
    """Standard deviation of z; null: 0.5 for pixels, and 1 for latents, which are scaled to it."""
    rho: float = Field(7.0, gt=0)
    mean: float = -1.2
    """Of ln sigma in training."""
    std: float = Field(1.2, gt=0)


class FlowObjective(Section):
    """The straight flow (rectified flow) at logit-normal times (Esser et al. 2024)."""

    kind: Literal["flow"]
    shift: float = Field(1.0, gt=0)
    """Above 1, more of the steps at high noise."""
    mean: float = 0.0
    """Of logit sigma in training."""
    std: float = Field(1.0, gt=0)
    num_train_timesteps: int = Field(1000, gt=0)


class VDMObjective(Section):
    """The bound in continuous time (Kingma et al. 2021), in bits a dimension."""

    kind: Literal["vdm"]
    gamma: Literal["fixed", "learned_ends", "learned"] = "learned"
    """-log snr over t: a line, a line whose ends are learned, or learned and monotone."""
    gamma_min: float = -13.3
    gamma_max: float = 5.0
    prediction: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    num_train_timesteps: int = Field(1000, gt=1)
    """Levels of the schedule that samplers get."""


ContinuousObjective = EDMObjective | FlowObjective | VDMObjective | OneStepVAEObjective
"""Those that say their own process (one step is no schedule)."""
AnyObjective = Annotated[
    Annotated[
        SimpleObjective | MinSNRObjective | P2Objective | HybridObjective | VLBObjective | ContinuousObjective,
        Field(discriminator="kind"),
    ],
    # L_simple is what a section without a kind means.
    BeforeValidator(lambda objective: {"kind": "simple", **objective} if isinstance(objective, dict) else objective),
]
