"""RetriBooruPipeline: Stable Diffusion that retrieves face and clothes from reference images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.utils import BaseOutput
from PIL import Image

from .reference_processor import ReferenceProcessor
from .retrieval_encoder import RetrievalEncoder
from .retrieval_unet import RetrievalUNet2DConditionModel


@dataclass
class RetrievedFeatures(BaseOutput):
    """What a call retrieves from: `tokens`, per level from the finest, (1, S, C); S grows with the references."""

    tokens: tuple[torch.Tensor, ...]


class RetriBooruPipeline(StableDiffusionPipeline):
    """Draws a character from a prompt and reference images.

    All of `StableDiffusionPipeline`'s loaders and components, and:

    Args:
        unet: a `RetrievalUNet2DConditionModel`.
        retrieval_encoder: a `RetrievalEncoder`.

    Source: "Retrieving Conditions from Reference Images for Diffusion Models", section 4.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->retrieval_encoder->unet->vae"

    def __init__(
        self,
        vae,
        text_encoder,
        tokenizer,
        unet,
        retrieval_encoder,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker: bool = False,
    ):
        super().__init__(
            vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
            requires_safety_checker,
        )  # fmt: skip
        self.register_modules(retrieval_encoder=retrieval_encoder)

    @classmethod
    def from_stable_diffusion(
        cls, stable_diffusion: str | StableDiffusionPipeline, retrieval_query: str = "decoder", **kwargs
    ) -> "RetriBooruPipeline":
        """An untrained pipeline: for any references it draws exactly what the Stable Diffusion it is made from draws.

        Args:
            stable_diffusion: a Hub id, a folder, or a pipeline. The U-Net's weights are copied, the rest is shared.
            retrieval_query: see `RetrievalUNet2DConditionModel`.
            kwargs: of `StableDiffusionPipeline.from_pretrained`, for an id or a folder.
        """
        if isinstance(stable_diffusion, StableDiffusionPipeline):
            if kwargs:
                raise ValueError(f"kwargs: got {', '.join(kwargs)} with a pipeline, wanted them with an id or a folder")
        else:
            stable_diffusion = StableDiffusionPipeline.from_pretrained(stable_diffusion, **kwargs)
        components = dict(stable_diffusion.components)
        unet = components.pop("unet")
        return cls(
            **components,
            unet=RetrievalUNet2DConditionModel.from_unet(unet, retrieval_query=retrieval_query),
            retrieval_encoder=RetrievalEncoder.from_unet(unet),
            requires_safety_checker=stable_diffusion.config.requires_safety_checker,
        )

    @property
    def sample_size(self) -> int:
        """Side, in pixels, of the images the U-Net was made for."""
        size = self.unet.config.sample_size
        return (size if isinstance(size, int) else size[0]) * self.vae_scale_factor

    def check_references(self, reference_images, reference_concepts, reference_masks) -> None:
        """Raises ValueError or TypeError naming the argument, what came and what was wanted."""
        concepts = self.retrieval_encoder.config.concept_texts
        if isinstance(reference_images, Image.Image) or not isinstance(reference_images, Sequence):
            raise TypeError(f"reference_images: got {type(reference_images).__name__}, wanted a list of images")
        if not reference_images:
            raise ValueError("reference_images: got an empty list, wanted at least one image")
        for image in reference_images:
            if not isinstance(image, Image.Image):
                raise TypeError(f"reference_images: got a {type(image).__name__} in the list, wanted PIL images")
        if isinstance(reference_concepts, str) or not isinstance(reference_concepts, Sequence):
            raise TypeError(f"reference_concepts: got {reference_concepts!r}, wanted a list, one concept per image")
        if len(reference_concepts) != len(reference_images):
            raise ValueError(
                f"reference_concepts: got {len(reference_concepts)}, wanted as many as reference_images: "
                f"{len(reference_images)}"
            )
        for concept in reference_concepts:
            if concept not in concepts:
                raise ValueError(f"reference_concepts: got {concept!r}, wanted one of {', '.join(sorted(concepts))}")
        if reference_masks is None:
            return
        if len(reference_masks) != len(reference_images):
            raise ValueError(
                f"reference_masks: got {len(reference_masks)}, wanted as many as reference_images: "
                f"{len(reference_images)}"
            )
        for image, mask in zip(reference_images, reference_masks):
            if mask is not None and mask.size != image.size:
                raise ValueError(f"reference_masks: got a mask of size {mask.size}, wanted the image's {image.size}")

    @torch.no_grad()
    def encode_references(
        self,
        reference_images: Sequence[Image.Image],
        reference_concepts: Sequence[str],
        reference_masks: Sequence[Image.Image | None] | None = None,
        reference_size: int | None = None,
    ) -> RetrievedFeatures:
        """Reads a character's references once, for any number of prompts.

        Args:
            reference_images: N >= 1 images of any size; padded to a square.
            reference_concepts: the concept of each: "figure", "face" or "body".
            reference_masks: of each image, above 0 where the figure is, or None; removes the background.
            reference_size: side in pixels that the references are read at; the pipeline's own by default.
        """
        self.check_references(reference_images, reference_concepts, reference_masks)
        device, dtype = self._execution_device, self.retrieval_encoder.dtype
        processor = ReferenceProcessor(reference_size or self.sample_size)
        pixels = processor(reference_images, reference_masks).to(device, self.vae.dtype)  # (N, 3, H, W)
        # The mode, not a sample, of the VAE: references carry no noise, and a call is repeatable without a generator.
        latents = self.vae.encode(pixels).latent_dist.mode() * self.vae.config.scaling_factor  # (N, c, h, w)
        texts = [self.retrieval_encoder.config.concept_texts[concept] for concept in reference_concepts]
        concept_embeds, _ = self.encode_prompt(texts, device, 1, False)  # (N, T, D)
        features = self.retrieval_encoder(latents.to(dtype), concept_embeds.to(dtype)).features
        return RetrievedFeatures(tokens=concatenate_references(features, batch_size=1))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        reference_images: Sequence[Image.Image] | None = None,
        reference_concepts: Sequence[str] | None = None,
        reference_masks: Sequence[Image.Image | None] | None = None,
        reference_features: RetrievedFeatures | None = None,
        retrieval_scale: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 9.0,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> StableDiffusionPipelineOutput | tuple:
        """Generates images of the character that the references show, as the prompt says.

        All prompts of a call share its references. Both branches of the guidance see them: `guidance_scale` pulls
        towards the prompt alone (as ControlNet's default does).

        Args:
            prompt: what to draw: comma-separated tags.
            reference_images, reference_concepts, reference_masks: see `encode_references`. None of them, and no
                reference_features: plain Stable Diffusion.
            reference_features: what `encode_references` returned, in place of the three.
            retrieval_scale: multiplies what is retrieved; 0 is plain Stable Diffusion, 1 as trained.
            The other arguments are `StableDiffusionPipeline`'s.

        Returns:
            `StableDiffusionPipelineOutput` with `images` and `nsfw_content_detected`, or the tuple of the two.
        """
        height, width = height or self.sample_size, width or self.sample_size
        self.check_inputs(
            prompt, height, width, None, negative_prompt, prompt_embeds, negative_prompt_embeds,
            callback_on_step_end_tensor_inputs=list(callback_on_step_end_tensor_inputs),
        )  # fmt: skip
        if reference_images is not None:
            if reference_features is not None:
                raise ValueError("reference_features: got them and reference_images, wanted one of the two")
            reference_features = self.encode_references(reference_images, reference_concepts, reference_masks)
        elif reference_concepts is not None or reference_masks is not None:
            raise ValueError("reference_images: got none with reference_concepts or reference_masks, wanted them too")

        device = self._execution_device
        self._guidance_scale, self._clip_skip, self._interrupt = guidance_scale, None, False
        guided = self.do_classifier_free_guidance
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt, device, num_images_per_prompt, guided, negative_prompt, prompt_embeds, negative_prompt_embeds
        )
        batch_size = prompt_embeds.shape[0]
        if guided:
            prompt_embeds = torch.cat([negative_prompt_embeds, prompt_embeds])  # (2B, T, D)
        tokens = None
        if reference_features is not None:
            tokens = tuple(level.expand(prompt_embeds.shape[0], -1, -1) for level in reference_features.tokens)

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        latents = self.prepare_latents(
            batch_size, self.unet.config.in_channels, height, width, prompt_embeds.dtype, device, generator, latents
        )  # (B, c, h, w)
        step_options = self.prepare_extra_step_kwargs(generator, eta)
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=num_inference_steps) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                model_input = self.scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
                noise = self.unet(model_input, t, prompt_embeds, tokens, retrieval_scale, return_dict=False)[0]
                if guided:
                    unconditional, conditional = noise.chunk(2)
                    noise = unconditional + guidance_scale * (conditional - unconditional)
                latents = self.scheduler.step(noise, t, latents, **step_options, return_dict=False)[0]
                if callback_on_step_end is not None:
                    values = {"latents": latents, "prompt_embeds": prompt_embeds,
                              "negative_prompt_embeds": negative_prompt_embeds}  # fmt: skip
                    wanted = {name: values[name] for name in callback_on_step_end_tensor_inputs}
                    returned = callback_on_step_end(self, i, t, wanted)
                    latents = returned.pop("latents", latents)
                    prompt_embeds = returned.pop("prompt_embeds", prompt_embeds)
                if i == len(timesteps) - 1 or (i + 1) % self.scheduler.order == 0:
                    progress_bar.update()

        images, nsfw = latents, None
        if output_type != "latent":
            images = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False, generator=generator)[
                0
            ]
            images, nsfw = self.run_safety_checker(images, device, prompt_embeds.dtype)
            denormalize = [not found for found in nsfw] if nsfw else [True] * images.shape[0]
            images = self.image_processor.postprocess(images, output_type=output_type, do_denormalize=denormalize)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, nsfw
        return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=nsfw)


def concatenate_references(features: Sequence[torch.Tensor], batch_size: int) -> tuple[torch.Tensor, ...]:
    """Features of each level, (batch * N, C, h, w) -> tokens of all N references of an item, (batch, N h w, C)."""
    return tuple(level.flatten(2).transpose(1, 2).reshape(batch_size, -1, level.shape[1]) for level in features)
