"""Networks shared out over the processes by FSDP2, as ``accelerate launch --use_fsdp`` asks for it.

The launcher's wish is read here and kept from accelerate: its own way takes one network only (a GAN has two), and on
processors it silently trains replicas. What is sharded is a copy. It gives and takes whole tensors in `state_dict` and
`load_state_dict`, and so do its optimisers: a checkpoint does not show how many processes wrote it, or how.
"""

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from latentdiff.config import AnyRecipe
from latentdiff.errors import InputError

logger = logging.getLogger(__name__)

SHARDABLE = ("vae", "vocoder", "diffusion")
"""Not clap (single numbers among its parameters), consistency (a second network follows the weights) and judge (means
of batches that each process keeps to itself)."""


@dataclass(frozen=True)
class Sharding:
    """How the networks of a run are shared out."""

    mesh: DeviceMesh
    reshard: bool
    """Whether gathered weights are let go after the forward pass, and gathered again for the backward pass."""
    least: int
    """Parameters of a block (an element of a `ModuleList`) that is gathered by itself, when it is needed."""

    def shard(self, network: nn.Module) -> None:
        """Leave each process its part of every parameter."""
        blocks = [block for parent in network.modules() if isinstance(parent, nn.ModuleList) for block in parent]
        for block in reversed(blocks):  # from the inside out
            if sum(p.numel() for p in block.parameters()) >= self.least and not isinstance(block, nn.ModuleList):
                fully_shard(block, mesh=self.mesh, reshard_after_forward=self.reshard)
        fully_shard(network, mesh=self.mesh)
        network.register_state_dict_post_hook(_give_whole)
        network.register_load_state_dict_pre_hook(_take_whole)
        here, all_of_it = (sum(p.numel() for p in parts) for parts in (_local(network), network.parameters()))
        logger.info("sharded over %d processes: %d of %d parameters are here", self.mesh.size(), here, all_of_it)

    def share_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the state of an optimiser of sharded parameters come and go as whole tensors too."""
        optimizer.register_state_dict_post_hook(_give_whole_state)
        optimizer.register_load_state_dict_pre_hook(_take_whole_state)


def requested_sharding(config: AnyRecipe, device: torch.device, processes: int) -> Sharding | None:
    """What the launcher says, or None where it asks for no sharding.

    Raises:
        InputError: it asks for what there is not.
    """
    if not _is_on("FSDP_ASKED_FOR"):
        return None
    objective = getattr(config, "objective", None)
    faults = {
        f"the {config.stage} stage": config.stage not in SHARDABLE,
        "objective.kind=vdm": getattr(objective, "kind", "") == "vdm",
        "objective.times=importance": getattr(objective, "times", "") == "importance",
        "train.mixed_precision=fp16 (bf16 is)": config.train.mixed_precision == "fp16",
        "fsdp_version: 1 (2 is)": os.environ.get("FSDP_VERSION", "1") != "2",
        "fsdp_offload_params": _is_on("FSDP_OFFLOAD_PARAMS"),
        "fsdp_activation_checkpointing": _is_on("FSDP_ACTIVATION_CHECKPOINTING"),
    }
    if wrong := [what for what, is_so in faults.items() if is_so]:
        raise InputError(
            f"{' and '.join(wrong)}: not possible with sharded networks; change it, or train data parallel as "
            "configs/accelerate/one_node.yaml does."
        )
    reshard, least = _is_on("FSDP_RESHARD_AFTER_FORWARD"), int(os.environ.get("FSDP_MIN_NUM_PARAMS", "0"))
    return Sharding(init_device_mesh(device.type, (processes,)), reshard, least)


def keep_from_libraries() -> None:
    """Take the launcher's wish out of their sight, before there is an `Accelerator`.

    accelerate would shard by itself; transformers would leave out the weights on all processes but the first.

    Raises:
        InputError: DeepSpeed is asked for.
    """
    if _is_on("ACCELERATE_USE_DEEPSPEED"):
        raise InputError(
            "DeepSpeed keeps optimisers, clipping and checkpoints to itself, so this training cannot run in it: use "
            "configs/accelerate/fsdp2.yaml (its fsdp_reshard_after_forward: true is ZeRO-3, false is ZeRO-2)."
        )
    if asked := os.environ.pop("ACCELERATE_USE_FSDP", None):
        os.environ["FSDP_ASKED_FOR"] = asked


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, the same on every process, each of which must ask; any other one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_as(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, which every process has, shared out as another one is."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor):
        return tensor
    given = tensor.to(device=other.device, dtype=other.dtype)
    return distribute_tensor(given, other.device_mesh, other.placements, src_data_rank=None)


def _local(network: nn.Module) -> list[Tensor]:
    return [p.to_local() for p in network.parameters() if isinstance(p, DTensor)]


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def _give_whole(network: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict[str, Any]) -> None:
    """Tied parameters stay one tensor, so that they are written once."""
    names = {prefix + name: id(p) for name, p in network.named_parameters(remove_duplicate=False)}
    gathered: dict[int, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, DTensor):
            if names[name] not in gathered:
                gathered[names[name]] = whole(value).cpu()
            state[name] = gathered[names[name]]


def _take_whole(network: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if prefix + name in state and state[prefix + name].shape == parameter.shape:
            state[prefix + name] = shared_as(state[prefix + name], parameter)


def _give_whole_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    gathered = {
        number: {name: whole(value).cpu() if isinstance(value, DTensor) else value for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": gathered}


def _take_whole_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shared = {
        number: {
            name: shared_as(value, parameters[number]) if value.shape == parameters[number].shape else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": shared}
