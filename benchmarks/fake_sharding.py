"""A training step of AudioLDM2's denoiser, sharded by FSDP2 over many processes that are not there.

    python benchmarks/fake_sharding.py --processes 8 64

The network of configs/papers/audioldm2.yaml (its test holds it to the paper's parameter count) is sharded as training
does it. Tensors without contents (`FakeTensorMode`) and a process group without processes (torch's ``fake`` backend) go
through two real steps: prediction, loss, backward pass, clipping, AdamW. What every rank would hold is counted, at its
peak and at rest, in single precision. It needs no GPU.
"""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from latentdiff.config import TwoStreamUNetConfig, load_config
from latentdiff.models.denoiser import new_denoiser, predict
from latentdiff.models.text import Conditioning
from latentdiff.training.sharding import Sharding

PAPER = Path(__file__).parents[1] / "configs" / "papers" / "audioldm2.yaml"
LATENT = (8, 256, 16)  # 10.24 s
LANGUAGE, T5 = (8, 768), (64, 1024)  # what GPT-2 says, and the prompt by flan-t5-large: tokens and their width


@contextlib.contextmanager
def processes(count: int) -> Iterator[DeviceMesh]:
    """A mesh of so many, of which this is the first."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield init_device_mesh("cpu", (count,))
    finally:
        torch.distributed.destroy_process_group()


def step(unet: nn.Module, optimizer: torch.optim.Optimizer, batch: int) -> None:
    """What the diffusion stage does in one."""
    z, t = torch.randn(batch, *LATENT), torch.randint(0, 1000, (batch,))
    language, t5 = ((torch.randn(batch, *shape), torch.ones(batch, shape[0])) for shape in (LANGUAGE, T5))
    tau = Conditioning(*language, tokens_1=t5[0], mask_1=t5[1])
    prediction = predict(unet, z, t, tau)
    nn.functional.mse_loss(prediction, torch.randn_like(z)).backward()
    nn.utils.clip_grad_norm_(unet.parameters(), 1.0, foreach=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class Tracker(FSDPMemTracker):
    """Peaks of the whole, and not of each of a thousand modules after every operation, which takes it minutes."""

    def _update_peak_stats(self, peak_state: Any) -> None:
        for device, snapshot in self._curr_mem_snap.items():
            total = max(snapshot.values())
            if total > self._peak_mem.get(device, 0):
                self._peak_mem[device], self._peak_mem_snap[device] = total, dict(snapshot)


def measure(count: int, batch: int, config: TwoStreamUNetConfig) -> dict[str, float]:
    """Bytes a rank: sharded weights, with AdamW's state, and at the peak of the second step."""
    with processes(count) as mesh, FakeTensorMode():
        unet = new_denoiser(config, LATENT[0], tokens_width=(LANGUAGE[1], T5[1]), pooled_width=None)
        whole = sum(p.numel() for p in unet.parameters())
        Sharding(mesh, reshard=True, least=1_000_000).shard(unet)  # as in fsdp2.yaml
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)
        step(unet, optimizer, batch)  # makes AdamW's state
        tracker = Tracker(unet, optimizer)
        tracker.track_inputs(())
        with tracker:
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
    options = parser.parse_args()
    config = load_config(PAPER, ["output=unused"]).unet
    for count in options.processes:
        found = measure(count, options.batch, config)
        parameters, weights, resting, peak = (value / 1e6 for value in found.values())
        print(
            f"{count:4d} processes: {parameters:.2f} M parameters; a rank holds {weights:.2f} MB of weights, "
            f"{resting:.2f} MB with AdamW's state, {peak:.1f} MB at its peak"
        )


if __name__ == "__main__":
    main()
