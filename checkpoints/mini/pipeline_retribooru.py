"""RetriBooruPipeline: Stable Diffusion that retrieves face and clothes from reference images."""

from collections.abc import Callable, Sequence

import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput, StableDiffusionSafetyChecker
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from diffusers.schedulers import KarrasDiffusionSchedulers
from PIL import Image
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from .checkpoint import CheckpointMixin
from .denoising_mixin import DenoisingMixin
from .guidance import RetrievalScale
from .reference_arguments import read_references  # noqa: F401 (a checkpoint takes along what is imported here)
from .reference_mixin import ReferenceMixin
from .reference_processor import ReferenceProcessor  # noqa: F401 (likewise)
from .retrieval_unet import RetrievalEncoder, RetrievalUNet2DConditionModel
from .retrieved_features import RetrievedFeatures


class RetriBooruPipeline(CheckpointMixin, ReferenceMixin, DenoisingMixin, StableDiffusionPipeline):
    """Draws a character from a prompt and reference images.

    All of `StableDiffusionPipeline`'s loaders and components, and:

    Args:
        unet: a `RetrievalUNet2DConditionModel`.
        retrieval_encoder: a `RetrievalEncoder`.
        controlnet: a `ControlNetModel` for the pose, say, where a call has a control_image.

    The steps of a call are public: `encode_prompt`, `encode_references`, `prepare_latents`, `denoise`.

    Source: "Retrieving Conditions from Reference Images for Diffusion Models", section 4.
    """

    _plain = StableDiffusionPipeline
    model_cpu_offload_seq = "text_encoder->image_encoder->retrieval_encoder->unet->vae"
    _optional_components = [*StableDiffusionPipeline._optional_components, "controlnet"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: RetrievalUNet2DConditionModel,
        retrieval_encoder: RetrievalEncoder,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        requires_safety_checker: bool = False,
        controlnet: ControlNetModel | None = None,
    ):
        super().__init__(
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
            requires_safety_checker,
        )  # fmt: skip
        self.register_modules(retrieval_encoder=retrieval_encoder, controlnet=controlnet)

    @staticmethod
    def _options(stable_diffusion: StableDiffusionPipeline) -> dict:
        return {"requires_safety_checker": stable_diffusion.config.requires_safety_checker}

    def _encode_concepts(self, texts: list[str], size: int) -> dict[str, torch.Tensor]:
        return {"encoder_hidden_states": self.encode_prompt(texts, self._execution_device, 1, False)[0]}  # (K, T, D)

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
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 9.0,
        reference_guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        clip_skip: int | None = None,
        control_image: Image.Image | list[Image.Image] | torch.Tensor | None = None,
        controlnet_conditioning_scale: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> StableDiffusionPipelineOutput | tuple:
        """Generates images of the character that the references show, as the prompt says.

        Args:
            prompt: what to draw: comma-separated tags; or a list of P prompts.
            reference_images, reference_concepts, reference_masks, reference_weights, reference_size: see
                `encode_references`. One list serves all prompts; a list of P lists gives each prompt its own. None of
                them, and no reference_features: plain Stable Diffusion.
            reference_features: in place of these, what `encode_references` returned or a file of it; or a list of P
                such.
            retrieval_scale: multiplies what is retrieved; 0 is plain Stable Diffusion, 1 as trained. A number, one for
                each level from the finest, or a function of the share of the steps that are done.
            retrieval_start, retrieval_end: shares of the steps that retrieval begins and ends at.
            guidance_scale: pulls towards the prompt and away from the negative prompt; off up to 1.
            reference_guidance_scale: pulls towards the references. None (default): as guidance_scale, prompt and
                references are guided as one, at the least cost. 1: every prediction sees them, as ControlNet's default.
                Else each step asks for three predictions. See `guidance`.
            control_image: for `controlnet`: one for all images, or one for each prompt.
            The other arguments are `StableDiffusionPipeline`'s.

        Returns:
            `StableDiffusionPipelineOutput` with `images` and `nsfw_content_detected`, or the tuple of the two.
        """
        height, width = height or self.sample_size, width or self.sample_size
        self.check_inputs(
            prompt, height, width, None, negative_prompt, prompt_embeds, negative_prompt_embeds,
            callback_on_step_end_tensor_inputs=list(callback_on_step_end_tensor_inputs),
        )  # fmt: skip
        self._guidance_scale, self._clip_skip, self._interrupt = guidance_scale, clip_skip, False
        device = self._execution_device
        prompts = len(prompt_embeds) if prompt_embeds is not None else 1 if isinstance(prompt, str) else len(prompt)

        features = self.prepare_references(
            prompts, reference_images, reference_concepts, reference_masks, reference_weights, reference_size,
            reference_features,
        )  # fmt: skip
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt, device, num_images_per_prompt, self.do_classifier_free_guidance, negative_prompt, prompt_embeds,
            negative_prompt_embeds, clip_skip=clip_skip,
        )  # fmt: skip
        timesteps, _ = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps, sigmas)
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
            control_image=self.prepare_control_image(control_image, height, width, latents),
            controlnet_conditioning_scale=controlnet_conditioning_scale,
            generator=generator,
            eta=eta,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )  # fmt: skip

        images, nsfw = latents, None
        if output_type != "latent":
            latents = latents / self.vae.config.scaling_factor
            images = self.vae.decode(latents, return_dict=False, generator=generator)[0]
            images, nsfw = self.run_safety_checker(images, device, prompt_embeds.dtype)
            denormalize = [not found for found in nsfw] if nsfw else [True] * len(images)
            images = self.image_processor.postprocess(images, output_type=output_type, do_denormalize=denormalize)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, nsfw
        return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=nsfw)
