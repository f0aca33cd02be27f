"""One file with all of a model in it, as CompVis, AudioLDM and AudioLDM2 write it, and Tango's three, to components.

Its parts have prefixes: `model.diffusion_model.` the U-Net, `model_ema.` its average with the dots left out of the
names, `first_stage_model.` the VAE, in it `vocoder.`, `cond_stage_model` the text encoders; `scale_factor` is 1 / the
latents' deviation. What is left (losses, schedules, an optimiser) is of no use after training.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    DDIMScheduler,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import (
    ClapConfig,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    CLIPTextConfig,
    CLIPTextModel,
    GPT2Config,
    GPT2LMHeadModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
)

from latentdiff.errors import InputError
from latentdiff.interop import sizes
from latentdiff.interop.folder import read_json
from latentdiff.interop.hifigan import generator_state, vocoder_from_state, without_weight_norm
from latentdiff.interop.original_names import clap_names, unet_names, vae_names
from latentdiff.interop.pickles import read_pickle
from latentdiff.interop.states import require_same_keys, wrong_keys

State = dict[str, Tensor]

UNET, EMA, VAE, VOCODER = "model.diffusion_model.", "model_ema.", "first_stage_model.", "first_stage_model.vocoder."
SD_SCALE = 0.18215
"""Stable Diffusion's latent scale, which stands in its configuration and in no weight file."""


def components(state: State) -> dict[str, Any]:
    """Components, by their names in our pipeline, of a checkpoint's ``state_dict``.

    Raises:
        InputError: if it holds no U-Net and VAE, or one of its parts has names missing.
    """
    if not any(name.startswith(UNET) for name in state) or not any(name.startswith(VAE) for name in state):
        raise InputError("the file holds no U-Net and VAE by the names of CompVis, AudioLDM or AudioLDM2.")
    names = _part(state, UNET)
    averaged = {name: f"{EMA}diffusion_model{name.replace('.', '')}" for name in names}
    if all(name in state for name in averaged.values()):  # what the authors evaluate with
        names = {name: state[other] for name, other in averaged.items()}
    vocoder = _part(state, VOCODER)
    first_stage = {name: tensor for name, tensor in _part(state, VAE).items() if not name.startswith("vocoder.")}
    scale = float(state.get("scale_factor", torch.tensor(SD_SCALE)))
    made: dict[str, Any] = {"unet": _unet(names), "vae": _vae(first_stage, scale)}
    if not made["unet"].config.use_linear_projection:  # Stable Diffusion 2 predicts v or eps, and no weight says which
        made["scheduler"] = _scheduler(0.0015, 0.0195) if vocoder else _scheduler(0.00085, 0.012)
    if vocoder:
        made["vocoder"] = embedded_vocoder(vocoder)
    return made | _text_parts(state)


def tango(folder: Path) -> dict[str, Any]:
    """Components of Tango's ``pytorch_model_main.bin`` and ``pytorch_model_vae.bin`` (Ghosal et al. 2023).

    Its U-Net and FLAN-T5 have our names, its VAE and vocoder AudioLDM's; the latents' scale is in ``vae_config.json``.

    Raises:
        InputError: if a file is missing or holds something else.
    """
    main, first_stage = (read_pickle(folder / f"pytorch_model_{part}.bin") for part in ("main", "vae"))
    scale = read_json(folder / "vae_config.json").get("scale_factor", 1.0)
    unet, text = _part(main, "unet."), _part(main, "text_encoder.")
    theirs = {other: unet[name] for name, other in unet_names(unet).items()}
    vae = {name: tensor for name, tensor in first_stage.items() if not name.startswith("vocoder.")}
    return {
        "unet": _unet(theirs),
        "vae": _vae(vae, float(scale)),
        "vocoder": embedded_vocoder(_part(first_stage, "vocoder.")),
        "text_encoder": _transformer(T5EncoderModel, T5Config(**sizes.t5_sizes(text)), text, "Tango's text encoder"),
        # Its training takes Stable Diffusion 2.1's.
        "scheduler": _scheduler(0.00085, 0.012, prediction_type="v_prediction"),
    }


def original_state(parts: Mapping[str, Any]) -> State:
    """The way back: the U-Net, VAE, vocoder and CLAP's text half of a pipeline by their original names.

    Raises:
        InputError: if the U-Net or the VAE is of a class that these layouts do not have.
    """
    unet, vae = parts["unet"], parts["vae"]
    for part, kinds in ((unet, (UNet2DConditionModel, AudioLDM2UNet2DConditionModel)), (vae, (AutoencoderKL,))):
        if not isinstance(part, kinds):
            raise InputError(f"a {type(part).__name__} has no place in CompVis's layout; only published models have.")
    state = {f"{UNET}{name}": tensor for name, tensor in _renamed(unet.state_dict(), unet_names).items()}
    for name, tensor in _renamed(vae.state_dict(), vae_names).items():
        flat = ".attn_1." in name and name.endswith("weight") and tensor.ndim == 2
        state[f"{VAE}{name}"] = tensor[:, :, None, None] if flat else tensor
    state["scale_factor"] = torch.tensor(float(vae.config.scaling_factor))
    if isinstance(parts.get("vocoder"), SpeechT5HifiGan):
        plain = without_weight_norm(generator_state(parts["vocoder"]))  # AudioLDM folds it before saving
        state |= {f"{VOCODER}{name}": tensor for name, tensor in plain.items()}
    if isinstance(parts.get("clap"), ClapTextModelWithProjection):
        clap = _renamed(parts["clap"].state_dict(), clap_names)
        state |= {f"cond_stage_model.model.{name}": tensor for name, tensor in clap.items()}
    if isinstance(parts.get("text_encoder"), CLIPTextModel):
        clip = parts["text_encoder"].state_dict()
        state |= {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in clip.items()}
    return {name: tensor.contiguous() for name, tensor in state.items()}


def clap_from_state(state: State) -> ClapModel:
    """LAION-CLAP's own checkpoint (Wu et al. 2023); also of distributed training, whose names begin with ``module.``.

    Raises:
        InputError: with both lists, if names are missing.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    text, audio = sizes.clap_text_sizes(plain), sizes.clap_audio_sizes(plain)
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=text["projection_dim"]))
    return _loaded(model, _clap(plain, model), "LAION-CLAP's checkpoint")


def embedded_vocoder(state: State) -> SpeechT5HifiGan:
    """AudioLDM's vocoder; its rate is told by its bands (64 at 16 kHz, 256 at 48 kHz)."""
    plain = without_weight_norm(state)
    config = sizes.vocoder_sizes(plain)
    rate = 48000 if config["model_in_dim"] == 256 else 16000
    return vocoder_from_state(plain, SpeechT5HifiGanConfig(sampling_rate=rate, **config), "the vocoder")


def _unet(state: State) -> nn.Module:
    arguments = sizes.unet_sizes(state)
    widths, linear = arguments["block_out_channels"], arguments["use_linear_projection"]
    head = 64 if linear or widths[0] == 256 else 32  # Stable Diffusion 2 and AudioLDM-L; AudioLDM, AudioLDM2
    cross = isinstance(arguments["cross_attention_dim"], int)
    heads = 8 if cross and not linear else [max(1, width // head) for width in widths]  # Stable Diffusion 1: 8
    several = not cross and isinstance(arguments["cross_attention_dim"][0], list)
    kind: Any = AudioLDM2UNet2DConditionModel if several else UNet2DConditionModel
    groups = 32 if all(width % 32 == 0 for width in widths) else min(widths)
    unet = kind(**arguments, attention_head_dim=heads, norm_num_groups=groups)
    return _loaded(unet, _looked_up(state, unet, unet_names, "the U-Net"), "the U-Net")


def _vae(state: State, scale: float) -> nn.Module:
    arguments = sizes.vae_sizes(state)
    widths = arguments["block_out_channels"]
    groups = 32 if all(width % 32 == 0 for width in widths) else min(widths)
    vae = AutoencoderKL(**arguments, norm_num_groups=groups, scaling_factor=scale)
    ours = _looked_up(state, vae, vae_names, "the VAE")
    ours = {
        name: tensor[:, :, 0, 0] if ".to_" in name and tensor.ndim == 4 else tensor for name, tensor in ours.items()
    }
    return _loaded(vae, ours, "the VAE")


def _text_parts(state: State) -> dict[str, Any]:
    """The text encoders that are in the file; the rest of a family's comes from elsewhere."""
    parts: dict[str, Any] = {}
    if clip := _part(state, "cond_stage_model.transformer.text_model."):
        parts["text_encoder"] = _transformer(CLIPTextModel, CLIPTextConfig(**sizes.clip_text_sizes(clip)), clip, "CLIP")
    for prefix in ("cond_stage_model.model.", "clap.model."):
        clap = _part(state, prefix)
        if "text_branch.embeddings.word_embeddings.weight" not in clap:
            continue
        if any(name.startswith("audio_branch.") for name in clap) and prefix == "clap.model.":
            parts["clap"] = clap_from_state(clap)
        else:
            half = ClapTextModelWithProjection(ClapTextConfig(**sizes.clap_text_sizes(clap)))
            parts["clap"] = _loaded(half, _clap(clap, half), "CLAP's text half")
    if t5 := _part(state, "cond_stage_models.1.model."):
        parts["text_encoder"] = _transformer(T5EncoderModel, T5Config(**sizes.t5_sizes(t5)), t5, "T5")
    if gpt := _part(state, "cond_stage_models.0.model."):
        head = {f"transformer.{name}": tensor for name, tensor in gpt.items()} | {"lm_head.weight": gpt["wte.weight"]}
        config = GPT2Config(**sizes.gpt2_sizes(gpt))
        parts["language_model"] = _transformer(GPT2LMHeadModel, config, head, "GPT-2")
        parts["projection_model"] = _projection(_part(state, "cond_stage_models.0."))
    return parts


def _projection(state: State) -> AudioLDM2ProjectionModel:
    first, second = (state[f"input_sequence_embed_linear.{n}.weight"] for n in (0, 1))
    model = AudioLDM2ProjectionModel(first.shape[1], second.shape[1], first.shape[0])
    ours: State = {}
    for n, end in ((0, ""), (1, "_1")):
        ours[f"projection{end}.weight"] = state[f"input_sequence_embed_linear.{n}.weight"]
        ours[f"projection{end}.bias"] = state[f"input_sequence_embed_linear.{n}.bias"]
        ours[f"sos_embed{end}"] = state["start_of_sequence_tokens.weight"][n]
        ours[f"eos_embed{end}"] = state["end_of_sequence_tokens.weight"][n]
    return _loaded(model, ours, "AudioLDM2's projection")


def _scheduler(first: float, last: float, prediction_type: str = "epsilon") -> DDIMScheduler:
    """A published schedule; called "linear" where it comes from, and linear in the square root."""
    return DDIMScheduler(
        beta_start=first,
        beta_end=last,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type=prediction_type,
    )


def _clap(state: State, model: nn.Module) -> State:
    """CLAP's tensors by our names; buffers that can be computed keep the model's own."""
    own = model.state_dict()
    ours: State = {}
    for name, theirs in clap_names(own).items():
        stem, third, leaf = theirs.partition("[")
        if third:
            which, _, leaf = leaf.partition("].")
            if f"{stem}.{leaf}" in state:
                ours[name] = state[f"{stem}.{leaf}"].chunk(3)[("query", "key", "value").index(which)]
        elif theirs in state:
            ours[name] = state[theirs]
        elif name.endswith(("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")):
            ours[name] = own[name]
    return ours


def _transformer(kind: Any, config: Any, state: State, what: str) -> Any:
    """A transformers model of tensors that already have its names, whatever the version that saved them."""
    model = kind(config)
    own = model.state_dict()
    buffers = ("position_ids", ".attn.bias", ".attn.masked_bias")
    ours = {name: tensor for name, tensor in state.items() if not name.endswith(buffers)}
    if "encoder.embed_tokens.weight" in own and "shared.weight" in ours:  # one tensor under two names
        ours["encoder.embed_tokens.weight"] = ours["shared.weight"]
    return _loaded(model, ours, what)


def _loaded(model: Any, state: State, what: str) -> Any:
    require_same_keys(state, model.state_dict(), what)
    model.load_state_dict(state)
    return model.eval()


def _looked_up(state: State, model: nn.Module, names: Callable[..., dict[str, str]], what: str) -> State:
    """The tensors that the model's names have there. More may be there: losses are."""
    wanted = names(model.state_dict())
    if missing := set(wanted.values()) - set(state):
        raise InputError(wrong_keys(what, set(state) - set(wanted.values()), missing))
    return {name: state[other] for name, other in wanted.items()}


def _renamed(state: State, names: Callable[..., dict[str, str]]) -> State:
    return {other: state[name] for name, other in names(state).items()}


def _part(state: Mapping[str, Tensor], prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
