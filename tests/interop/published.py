"""Tiny folders in the layouts of published systems, saved by diffusers itself; their weights are random.

The sizes are those of diffusers' own tests. The vocoder's weights are drawn ten times as wide as transformers draws
them, so that its output is heard.
"""

import copy
import json
import math
from pathlib import Path

import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    MusicLDMPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    RobertaTokenizer,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz,"
SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
TOKEN_LIMIT = 40


def roberta() -> RobertaTokenizer:
    letters = {letter: 5 + i for i, letter in enumerate("Ġ" + LETTERS)}
    return RobertaTokenizer(vocab=SPECIAL | letters, merges=[], model_max_length=TOKEN_LIMIT)


def t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *[(piece, -3.0) for piece in "▁" + LETTERS]]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TOKEN_LIMIT)


def clip_tokenizer() -> CLIPTokenizer:
    letters = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1} | {piece: 2 + i for i, piece in enumerate(letters)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKEN_LIMIT)


def clap_text(width: int) -> ClapTextConfig:
    return ClapTextConfig(
        vocab_size=100, hidden_size=8, intermediate_size=37, num_attention_heads=1, num_hidden_layers=1,
        projection_dim=width, bos_token_id=0, eos_token_id=2, pad_token_id=1, max_position_embeddings=TOKEN_LIMIT + 2,
    )  # fmt: skip


def clap(width: int = 32) -> ClapModel:
    audio = ClapAudioConfig(
        spec_size=64, window_size=4, num_mel_bins=64, patch_size=2, patch_stride=2, depths=[1, 1], hidden_size=192,
        num_attention_heads=[1, 1], patch_embeds_hidden_size=96, patch_embed_input_channels=4, projection_dim=width,
    )  # fmt: skip
    text = clap_text(width)
    config = ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=width)
    return ClapModel(config)


def clap_features() -> ClapFeatureExtractor:
    return ClapFeatureExtractor(feature_size=64, sampling_rate=48000, hop_length=7900)


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip


def vae(channels: int, latents: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=[8, 16], in_channels=channels, out_channels=channels, norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=latents,
        scaling_factor=0.9,
    )  # fmt: skip


def vocoder(mels: int = 8, rates: tuple[int, ...] = (2, 2)) -> SpeechT5HifiGan:
    made = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=mels,
            sampling_rate=16000,
            upsample_initial_channel=16,
            upsample_rates=list(rates),
            upsample_kernel_sizes=[2 * rate for rate in rates],
            resblock_kernel_sizes=[3, 7],
            resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
            normalize_before=False,
        )  # fmt: skip
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(10.0)
    return made


def unet(**sizes: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, sample_size=32, in_channels=4,
        out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **sizes,
    )  # fmt: skip


def film_unet() -> UNet2DConditionModel:
    return unet(
        cross_attention_dim=(8, 16), class_embed_type="simple_projection", projection_class_embeddings_input_dim=32,
        class_embeddings_concat=True,
    )  # fmt: skip


def audioldm() -> AudioLDMPipeline:
    text = ClapTextModelWithProjection(clap_text(32))
    return AudioLDMPipeline(vae(1), text, roberta(), film_unet(), scheduler(), vocoder())


def musicldm() -> MusicLDMPipeline:
    return MusicLDMPipeline(vae(1), clap(), roberta(), clap_features(), film_unet(), scheduler(), vocoder())


def audioldm2(head: bool = True) -> AudioLDM2Pipeline:
    config = GPT2Config(n_embd=16, n_head=1, n_layer=1, vocab_size=100, n_positions=99)
    config.max_new_tokens = 8
    return AudioLDM2Pipeline(
        vae=vae(1),
        text_encoder=clap(16),
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=100, d_model=32, d_ff=37, d_kv=8, num_heads=1, num_layers=1)),
        projection_model=AudioLDM2ProjectionModel(16, 32, 16),
        language_model=(GPT2LMHeadModel if head else GPT2Model)(config),
        tokenizer=roberta(),
        tokenizer_2=t5_tokenizer(),
        feature_extractor=clap_features(),
        unet=AudioLDM2UNet2DConditionModel(
            block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=8, sample_size=32, in_channels=4,
            out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=([None, 16, 32], [None, 16, 32]),
        ),
        scheduler=scheduler(),
        vocoder=vocoder(),
    )  # fmt: skip


def clip_text() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=8,
            intermediate_size=16,
            num_attention_heads=2,
            num_hidden_layers=2,
            vocab_size=100,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            max_position_embeddings=77,
        )  # fmt: skip
    )


def stable_diffusion() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae(3), clip_text(), clip_tokenizer(), unet(cross_attention_dim=8), scheduler(), None, None,
        requires_safety_checker=False,
    )  # fmt: skip


PUBLISHED = {
    "audioldm": audioldm,
    "musicldm": musicldm,
    "audioldm2": audioldm2,
    "audioldm2-without-head": lambda: audioldm2(head=False),
    "stable_diffusion": stable_diffusion,
}


def save(name: str, folder: Path) -> Path:
    """The folder of one of `PUBLISHED`, its weights drawn from seed 0; the prompt reaches the latents."""
    torch.manual_seed(0)
    pipe: DiffusionPipeline = PUBLISHED[name]()
    with torch.no_grad():
        for part, tensor in pipe.unet.named_parameters():
            if "class_embedding" in part or "attn2.to_v" in part or "attn2.to_out" in part:
                tensor.mul_(5.0)
        for tensor in pipe.text_encoder.parameters():
            if tensor.ndim == 2:
                tensor.mul_(20.0)
    pipe.save_pretrained(folder)
    return folder


def save_auffusion(folder: Path) -> Path:
    """A folder in Auffusion's own layout: pickles for the vocoder and the adapter, and no ``model_index.json``."""
    torch.manual_seed(0)
    vae(3).save_pretrained(folder / "vae")
    unet(cross_attention_dim=8).save_pretrained(folder / "unet")
    PNDMScheduler(skip_prk_steps=True, steps_offset=1).save_pretrained(folder / "scheduler")
    clip_text().save_pretrained(folder / "text_encoder_0")
    clip_tokenizer().save_pretrained(folder / "text_encoder_0")
    adapter = {"proj.weight": torch.randn(8, 8), "proj.bias": torch.randn(8)}
    adapter |= {"norm.weight": torch.rand(8) + 0.5, "norm.bias": torch.randn(8)}
    (folder / "condition_adapter_0").mkdir()
    torch.save(adapter, folder / "condition_adapter_0" / "condition_adapter.pt")
    sizes = {"condition_dim": 8, "cross_attention_dim": 8, "model_name": "clip"}
    (folder / "condition_adapter_0" / "config.json").write_text(json.dumps(sizes))
    (folder / "condition_config.json").write_text(json.dumps([{"text_encoder_name": "text_encoder_0"}]))
    save_hifigan(folder / "vocoder", "vocoder.pt", vocoder())
    return folder


def save_hifigan(folder: Path, name: str, made: SpeechT5HifiGan, new_keys: bool = False) -> None:
    """A vocoder as HiFi-GAN's own code saves it: under weight normalisation, of the old or the new spelling."""
    made = copy.deepcopy(made)
    made.apply_weight_norm() if new_keys else _old_weight_norm(made)
    with torch.no_grad():  # as training leaves it: lengths that are not those of the directions
        for part, tensor in made.named_parameters():
            if part.endswith(("weight_g", "original0")):
                tensor.mul_(1.5)
    state = {key.replace("upsampler.", "ups."): tensor for key, tensor in made.state_dict().items()}
    state = {key: tensor for key, tensor in state.items() if key not in ("mean", "scale")}
    config = made.config
    sizes = {
        "resblock": getattr(config, "resblock", "1"), "sampling_rate": 16000,
        "n_fft": 1024, "win_size": 1024, "fmin": 0, "fmax": 8000,
        "hop_size": math.prod(config.upsample_rates), "num_mels": config.model_in_dim,
        "upsample_initial_channel": config.upsample_initial_channel, "upsample_rates": config.upsample_rates,
        "upsample_kernel_sizes": config.upsample_kernel_sizes, "resblock_kernel_sizes": config.resblock_kernel_sizes,
        "resblock_dilation_sizes": config.resblock_dilation_sizes,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"generator": state}, folder / name)
    (folder / "config.json").write_text(json.dumps(sizes))


def _old_weight_norm(made: SpeechT5HifiGan) -> None:
    for module in made.modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
            torch.nn.utils.weight_norm(module)


def edit_index(folder: Path, **entries: object) -> None:
    """Change entries of ``model_index.json``."""
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | entries))
