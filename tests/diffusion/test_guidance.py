import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from latentdiff.diffusion.guidance import guide


def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    without = torch.randn(3, 4, 8, 8, generator=generator)
    return without, without + 0.5 * torch.randn(3, 4, 8, 8, generator=generator)


@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("scale", [1.0, 2.5, 7.5])
def test_as_diffusers_has_it(scale: float, rescale: float) -> None:
    without, with_prompt = predictions()
    plain = without + scale * (with_prompt - without)
    wanted = rescale_noise_cfg(plain, with_prompt, guidance_rescale=rescale)
    assert torch.allclose(guide(without, with_prompt, scale, rescale), wanted, rtol=1e-6, atol=1e-6)


def test_wholly_rescaled_each_medium_is_as_large_as_unguided() -> None:
    without, with_prompt = predictions()
    made = guide(without, with_prompt, 5.0, 1.0)
    assert torch.allclose(made.std((1, 2, 3)), with_prompt.std((1, 2, 3)))
    assert (guide(without, with_prompt, 5.0).std((1, 2, 3)) > 1.5 * with_prompt.std((1, 2, 3))).all()


def test_a_scale_for_each_medium() -> None:
    without, with_prompt = predictions()
    made = guide(without, with_prompt, torch.tensor([1.0, 2.0, 4.0])[:, None, None, None], 0.5)
    for i, scale in enumerate((1.0, 2.0, 4.0)):
        assert torch.allclose(made[i], guide(without, with_prompt, scale, 0.5)[i])
