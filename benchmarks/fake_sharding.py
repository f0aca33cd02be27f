"""A training step of an AudioLDM2-size U-Net, sharded by FSDP2 over many processes that are not there.

    python benchmarks/fake_sharding.py --processes 8 64

Tensors without contents (`FakeTensorMode`) and a process group without processes (torch's ``fake`` backend) go through
one real training step: prediction, loss, backward pass, clipping, AdamW. What every rank would hold is counted, at its
peak and at rest, in single precision. It needs no GPU.

AudioLDM2 (Liu et al. 2023) has a U-Net of 346 million parameters; this one is ours, of 353 million.
"""

import argparse
import contextlib
import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from latentdiff.config import UNetConfig
from latentdiff.models.denoiser import new_denoiser

LATENT = (8, 256, 16)  # 10.24 s
TOKENS, WIDTH = 64, 1024  # flan-t5-large


@contextlib.contextmanager
def processes(count: int) -> Iterator[Any]:
    """A mesh of so many, of which this is the first."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield init_device_mesh("cpu", (count,))
    finally:
        torch.distributed.destroy_process_group()


def shard(unet: nn.Module, mesh: Any) -> None:
    """Each stage of the U-Net is gathered when it is needed, and so is the rest."""
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        fully_shard(block, mesh=mesh)
    fully_shard(unet, mesh=mesh)


def step(unet: nn.Module, optimizer: torch.optim.Optimizer, batch: int) -> None:
    """What the diffusion stage does in one."""
    z, tau = torch.randn(batch, *LATENT), torch.randn(batch, TOKENS, WIDTH)
    t, mask = torch.randint(0, 1000, (batch,)), torch.ones(batch, TOKENS)
    prediction: Tensor = unet(z, t, encoder_hidden_states=tau, encoder_attention_mask=mask).sample
    nn.functional.mse_loss(prediction, torch.randn_like(z)).backward()
    nn.utils.clip_grad_norm_(unet.parameters(), 1.0, foreach=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def measure(count: int, batch: int, config: UNetConfig) -> dict[str, float]:
    """Bytes a rank: sharded weights, with AdamW's state, and at the peak of the second step."""
    with processes(count) as mesh, FakeTensorMode():
        unet = new_denoiser(config, latent_channels=LATENT[0], tokens_width=WIDTH, pooled_width=None)
        whole = sum(p.numel() for p in unet.parameters())
        shard(unet, mesh)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, foreach=False)
        tracker = FSDPMemTracker(unet, optimizer)
        tracker.track_inputs(())
        with tracker:
            step(unet, optimizer, batch)  # makes AdamW's state
            tracker.reset_mod_stats()
            step(unet, optimizer, batch)
        resting = local(unet.parameters()) + sum(local(state.values()) for state in optimizer.state.values())
        peaks = tracker.get_tracker_snapshot("peak").values()
        most = max(size for kinds in peaks for size in kinds.values())  # the largest is the total of all kinds
        return {"parameters": whole, "weights": local(unet.parameters()), "resting": resting, "peak": most}


def local(tensors: Any) -> int:
    """Bytes of the parts that this rank holds."""
    parts = (t.to_local() if isinstance(t, DTensor) else t for t in tensors if isinstance(t, Tensor))
    return sum(part.numel() * part.element_size() for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--batch", type=int, default=8, help="items a process")
    parser.add_argument("--widths", type=int, nargs="+", default=[192, 384, 576, 832])
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    config = UNetConfig(
        block_out_channels=tuple(options.widths),
        layers_per_block=options.layers,
        attention=(True,) * len(options.widths),
        norm_num_groups=32,
    )
    for count in options.processes:
        found = measure(count, options.batch, config)
        parameters, weights, resting, peak = (value / 1e6 for value in found.values())
        print(
            f"{count:4d} processes: {parameters:.1f} M parameters; a rank holds {weights:.1f} MB of weights, "
            f"{resting:.1f} MB with AdamW's state, {peak:.1f} MB at its peak"
        )


if __name__ == "__main__":
    main()
