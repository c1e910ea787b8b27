"""Pipelines of diffusers with very small random networks, built without a network: what the adapter is tested on."""

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel

from mmgen.ldm.published.diffusers_open import random_diffusers

LETTERS = [chr(i) for i in range(33, 127)]


def img2img(pipe, latents, caption, strength, steps, guidance):
    "Image-to-image of diffusers from latents, with the noise of seed 3: float (H, W, 3) in 0 to 1."
    return pipe(
        caption,
        image=latents.clone(),
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images[0]


def clip_tokenizer():
    return random_diffusers().tokenizer


def clip_text(projection=False, seed=0, width=32):
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=1000,
        projection_dim=width,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def t5():
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    tokenizer = transformers.T5TokenizerFast(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0)
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=256, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return tokenizer, transformers.T5EncoderModel(config)


def qwen(model=transformers.Qwen3Model):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {word: i for i, word in enumerate([*LETTERS, "Ġ", "Ċ", *special])}
    tokenizer = transformers.Qwen2TokenizerFast(vocab=vocab, merges=[], pad_token="<|endoftext|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] if m['content'] is string else "
        "m['content'][0]['text'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=512,
        max_position_embeddings=512,
    )
    return tokenizer, model(config)


def unet(in_channels=4, xl=False, **more):
    torch.manual_seed(0)
    extra = dict(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
    )
    return UNet2DConditionModel(
        **dict(
            block_out_channels=(32, 64),
            layers_per_block=1,
            sample_size=32,
            in_channels=in_channels,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
        )
        | (extra if xl else {})
        | more
    )


def vae(channels=(32, 64), latent=4, groups=32, quant=True, **more):
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * len(channels),
        up_block_types=["UpDecoderBlock2D"] * len(channels),
        latent_channels=latent,
        norm_num_groups=groups,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        sample_size=32,
        **more,
    )


def flux_vae():
    return vae((4,), 1, 1, False, shift_factor=0.0609, scaling_factor=1.5035)


def stable_diffusion_xl(kind="StableDiffusionXLImg2ImgPipeline", in_channels=4):
    return getattr(diffusers, kind)(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(True, 1),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(in_channels, xl=True),
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        **({"requires_aesthetics_score": False} if "Img2Img" in kind else {}),
    )


def stable_diffusion_3():
    tokenizer, encoder = t5()
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=32,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )
    return diffusers.StableDiffusion3Img2ImgPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae((32,), 4, 32, False, shift_factor=0.0609, scaling_factor=1.5035),
        text_encoder=clip_text(True, 0),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(True, 1),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=encoder,
        tokenizer_3=tokenizer,
    )


def flux(kind="FluxImg2ImgPipeline"):
    tokenizer, encoder = t5()
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=kind == "FluxKontextPipeline",
    )
    return getattr(diffusers, kind)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=flux_vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        transformer=transformer,
    )


def flux_2_klein():
    tokenizer, encoder = qwen(transformers.Qwen3ForCausalLM)
    torch.manual_seed(0)
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=256,
        axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=False,
    )
    autoencoder = diffusers.AutoencoderKLFlux2(
        sample_size=32,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def z_image():
    tokenizer, encoder = qwen()
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for parameter in (transformer.x_pad_token, transformer.cap_pad_token):  # left unset by the constructor
        torch.nn.init.normal_(parameter, std=0.02)
    return diffusers.ZImageImg2ImgPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae((32, 64), 16, 32, True, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def chroma():
    tokenizer, encoder = t5()
    torch.manual_seed(0)
    transformer = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[4, 4, 8],
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return diffusers.ChromaImg2ImgPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=flux_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def latent_consistency():
    parts = random_diffusers().components | {"unet": unet(time_cond_proj_dim=32), "scheduler": diffusers.LCMScheduler()}
    return diffusers.LatentConsistencyModelImg2ImgPipeline(**parts, requires_safety_checker=False)


PIPELINES = {  # class → how it is built
    "StableDiffusionImg2ImgPipeline": random_diffusers,
    "StableDiffusionXLImg2ImgPipeline": stable_diffusion_xl,
    "StableDiffusion3Img2ImgPipeline": stable_diffusion_3,
    "FluxImg2ImgPipeline": flux,
    "ZImageImg2ImgPipeline": z_image,
    "ChromaImg2ImgPipeline": chroma,
    "LatentConsistencyModelImg2ImgPipeline": latent_consistency,
    "StableDiffusionInstructPix2PixPipeline": lambda: random_diffusers("StableDiffusionInstructPix2PixPipeline", 8),
    "StableDiffusionXLInstructPix2PixPipeline": lambda: stable_diffusion_xl(
        "StableDiffusionXLInstructPix2PixPipeline", 8
    ),
    "FluxKontextPipeline": lambda: flux("FluxKontextPipeline"),
    "Flux2KleinPipeline": flux_2_klein,
    "LEditsPPPipelineStableDiffusion": lambda: random_diffusers("LEditsPPPipelineStableDiffusion"),
}
