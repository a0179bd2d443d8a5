"""RetriBooruXLPipeline: Stable Diffusion XL that retrieves face and clothes from reference images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput
from diffusers.schedulers import KarrasDiffusionSchedulers
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from .checkpoint import CheckpointMixin
from .denoising_mixin import DenoisingMixin
from .guidance import RetrievalScale
from .reference_arguments import read_references  # noqa: F401 (a checkpoint takes along what is imported here)
from .reference_mixin import ReferenceMixin
from .reference_processor import ReferenceProcessor  # noqa: F401 (likewise)
from .retrieval_unet import RetrievalEncoder, RetrievalUNet2DConditionModel
from .retrieved_features import RetrievedFeatures


class RetriBooruXLPipeline(CheckpointMixin, ReferenceMixin, DenoisingMixin, StableDiffusionXLPipeline):
    """`RetriBooruPipeline` on Stable Diffusion XL.

    All of `StableDiffusionXLPipeline`'s loaders and components, and `unet`, `retrieval_encoder` and `controlnet` as in
    `RetriBooruPipeline`. The retrieval encoder reads a reference with both texts of its concept, and is told that the
    image is whole and of the size it is read at.
    """

    _plain = StableDiffusionXLPipeline
    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->retrieval_encoder->unet->vae"
    _optional_components = [*StableDiffusionXLPipeline._optional_components, "controlnet"]
    _callback_tensor_inputs = [*StableDiffusionXLPipeline._callback_tensor_inputs, "negative_prompt_embeds"]
    _callback_conditions = {"prompt_embeds": "text", "add_text_embeds": "text_embeds", "add_time_ids": "time_ids"}

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: RetrievalUNet2DConditionModel,
        retrieval_encoder: RetrievalEncoder,
        scheduler: KarrasDiffusionSchedulers,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        controlnet: ControlNetModel | None = None,
    ):
        super().__init__(
            vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2, unet, scheduler, image_encoder,
            feature_extractor, force_zeros_for_empty_prompt, add_watermarker,
        )  # fmt: skip
        self.register_modules(retrieval_encoder=retrieval_encoder, controlnet=controlnet)

    @staticmethod
    def _options(stable_diffusion: StableDiffusionXLPipeline) -> dict:
        return {
            "force_zeros_for_empty_prompt": stable_diffusion.config.force_zeros_for_empty_prompt,
            "add_watermarker": stable_diffusion.watermark is not None,
        }

    def _encode_concepts(self, texts: list[str], size: int) -> dict[str, torch.Tensor]:
        embeds, _, pooled, _ = self.encode_prompt(
            texts, device=self._execution_device, do_classifier_free_guidance=False
        )
        time_ids = torch.tensor([[size, size, 0, 0, size, size]] * len(texts), device=embeds.device)
        return {
            "encoder_hidden_states": embeds,
            "text_embeds": pooled,
            "time_ids": time_ids,
        }  # (K, T, D), (K, P), (K, 6)

    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        with _wide(self.vae):
            latents = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode()
        mean, std = _latents_mean_and_std(self.vae, latents)
        return (latents - mean) * self.vae.config.scaling_factor / std

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, c, h, w) latents -> pixels (B, 3, H, W), mostly in [-1, 1]."""
        with _wide(self.vae):
            latents = latents.to(self.vae.dtype)
            mean, std = _latents_mean_and_std(self.vae, latents)
            return self.vae.decode(latents * std / self.vae.config.scaling_factor + mean, return_dict=False)[0]

    def prepare_added_conditions(
        self,
        pooled_prompt_embeds: torch.Tensor,
        original_size: tuple[int, int],
        crops_coords_top_left: tuple[int, int],
        target_size: tuple[int, int],
    ) -> dict[str, torch.Tensor]:
        """What the U-Net is told beside the text, as `denoise` takes it.

        Args:
            pooled_prompt_embeds: (B, P).
            original_size, crops_coords_top_left, target_size: in pixels, height or top first.

        Returns:
            text_embeds (B, P) and time_ids (B, 6).
        """
        pairs = {"original_size": original_size, "crops_coords_top_left": crops_coords_top_left,
                 "target_size": target_size}  # fmt: skip
        for name, pair in pairs.items():
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ValueError(f"{name}: got {pair!r}, wanted two numbers of pixels, height or top first")
        width = pooled_prompt_embeds.shape[-1]
        time_ids = self._get_add_time_ids(*map(tuple, pairs.values()), pooled_prompt_embeds.dtype, width)  # (1, 6)
        time_ids = time_ids.to(pooled_prompt_embeds.device).repeat(len(pooled_prompt_embeds), 1)
        return {"text_embeds": pooled_prompt_embeds, "time_ids": time_ids}

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        reference_images: Sequence | None = None,
        reference_concepts: Sequence | None = None,
        reference_masks: Sequence | None = None,
        reference_weights: Sequence | None = None,
        reference_size: int | None = None,
        reference_features: str | RetrievedFeatures | Sequence | None = None,
        retrieval_scale: RetrievalScale = 1.0,
        retrieval_start: float = 0.0,
        retrieval_end: float = 1.0,
        prompt_2: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 5.0,
        reference_guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | None = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] = (0, 0),
        negative_target_size: tuple[int, int] | None = None,
        clip_skip: int | None = None,
        control_image: Image.Image | list[Image.Image] | torch.Tensor | None = None,
        controlnet_conditioning_scale: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> StableDiffusionXLPipelineOutput | tuple:
        """Generates images of the character that the references show, as the prompt says.

        Args:
            prompt: what to draw: comma-separated tags; or a list of P prompts.
            reference_images, reference_concepts, reference_masks, reference_weights, reference_size,
            reference_features, retrieval_scale, retrieval_start, retrieval_end, reference_guidance_scale, control_image: see
                `RetriBooruPipeline`.
            negative_original_size, negative_crops_coords_top_left, negative_target_size: of the negative prompt: both
                sizes, and the crop if it is to be another than (0, 0). Without them they are the prompt's.
            The other arguments are `StableDiffusionXLPipeline`'s.

        Returns:
            `StableDiffusionXLPipelineOutput` with `images`, or a tuple of them alone.
        """
        height, width = height or self.sample_size, width or self.sample_size
        self.check_inputs(
            prompt, prompt_2, height, width, None, negative_prompt, negative_prompt_2, prompt_embeds,
            negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds,
            callback_on_step_end_tensor_inputs=list(callback_on_step_end_tensor_inputs),
        )  # fmt: skip
        _check_negative_sizes(negative_original_size, negative_crops_coords_top_left, negative_target_size)
        self._guidance_scale, self._clip_skip, self._interrupt = guidance_scale, clip_skip, False
        device = self._execution_device
        prompts = len(prompt_embeds) if prompt_embeds is not None else 1 if isinstance(prompt, str) else len(prompt)

        features = self.prepare_references(
            prompts, reference_images, reference_concepts, reference_masks, reference_weights, reference_size,
            reference_features,
        )  # fmt: skip
        prompt_embeds, negative_prompt_embeds, pooled, negative_pooled = self.encode_prompt(
            prompt, prompt_2, device, num_images_per_prompt, self.do_classifier_free_guidance, negative_prompt,
            negative_prompt_2, prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds,
            negative_pooled_prompt_embeds, clip_skip=clip_skip,
        )  # fmt: skip
        sizes = (original_size or (height, width), crops_coords_top_left, target_size or (height, width))
        negative_sizes = sizes
        if negative_original_size is not None:
            negative_sizes = (negative_original_size, negative_crops_coords_top_left, negative_target_size)
        added, negative_added = self.prepare_added_conditions(pooled.to(device), *sizes), None
        if self.do_classifier_free_guidance:
            negative_added = self.prepare_added_conditions(negative_pooled.to(device), *negative_sizes)
        timesteps, _ = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps, sigmas)
        if hasattr(self.scheduler, "set_begin_index"):  # else it skips the first of two timesteps that round to one
            self.scheduler.set_begin_index(0)
        latents = self.prepare_latents(
            prompts * num_images_per_prompt, self.unet.config.in_channels, height, width, prompt_embeds.dtype, device,
            generator, latents,
        )  # fmt: skip
        latents = self.denoise(
            latents, timesteps, prompt_embeds, negative_prompt_embeds, features,
            guidance_scale=guidance_scale,
            reference_guidance_scale=reference_guidance_scale,
            guidance_rescale=guidance_rescale,
            retrieval_scale=retrieval_scale,
            retrieval_start=retrieval_start,
            retrieval_end=retrieval_end,
            added_cond_kwargs=added,
            negative_added_cond_kwargs=negative_added,
            control_image=self.prepare_control_image(control_image, height, width, latents),
            controlnet_conditioning_scale=controlnet_conditioning_scale,
            generator=generator,
            eta=eta,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )  # fmt: skip

        images = latents
        if output_type != "latent":
            images = self.decode(latents)
            images = images if self.watermark is None else self.watermark.apply_watermark(images)
            images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return StableDiffusionXLPipelineOutput(images=images) if return_dict else (images,)


@contextmanager
def _wide(vae: AutoencoderKL) -> Iterator[None]:
    """The VAE in float32 meanwhile, if it is in float16 and of those that overflow there."""
    dtype = vae.dtype
    if dtype != torch.float16 or not vae.config.force_upcast:
        yield
        return
    vae.to(torch.float32)
    try:
        yield
    finally:
        vae.to(dtype)


def _latents_mean_and_std(vae: AutoencoderKL, like: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """Of a VAE's latents, (1, c, 1, 1) in the dtype of `like`; 0 and 1 where its configuration has not both."""
    found = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if None in found:
        return 0.0, 1.0
    return tuple(torch.tensor(values).view(1, -1, 1, 1).to(like) for values in found)


def _check_negative_sizes(original_size, crops_coords_top_left, target_size) -> None:
    if (original_size is None) != (target_size is None):
        name, other = ("original", "target") if original_size is None else ("target", "original")
        raise ValueError(f"negative_{name}_size: got None with a negative_{other}_size, wanted both or neither")
    if original_size is None and tuple(crops_coords_top_left) != (0, 0):
        raise ValueError(
            f"negative_crops_coords_top_left: got {crops_coords_top_left} without negative sizes, wanted them too"
        )
