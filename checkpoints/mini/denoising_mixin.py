"""The denoising loop, retrieving."""

from collections.abc import Callable, Sequence

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from PIL import Image

from .guidance import RetrievalScale, check_scale, guidance_branches, guide, retrieval_scales
from .retrieved_features import RetrievedFeatures


class DenoisingMixin:
    """For a Stable Diffusion pipeline that reads references as `ReferenceMixin` does."""

    # What a callback may be shown of the conditions: its name there, and in the denoising loop.
    _callback_conditions = {"prompt_embeds": "text"}

    @property
    def reference_guidance_scale(self) -> float | None:
        """Of the running call; see `guidance`."""
        return self._reference_guidance_scale

    def prepare_control_image(
        self, image: Image.Image | Sequence[Image.Image] | torch.Tensor | None, height: int, width: int, latents
    ) -> torch.Tensor | None:
        """(B, 3, height, width) in [0, 1] for `controlnet`, of one image for all B latents or one for each prompt."""
        if image is None:
            return None
        if self.controlnet is None:
            raise ValueError("control_image: got one, but the pipeline has no controlnet")
        processor = VaeImageProcessor(self.vae_scale_factor, do_convert_rgb=True, do_normalize=False)
        images = processor.preprocess(image, height=height, width=width).to(latents)
        if len(latents) % len(images):
            raise ValueError(
                f"control_image: got {len(images)} for {len(latents)} pictures, wanted 1 or one per prompt"
            )
        return images.repeat_interleave(len(latents) // len(images), dim=0)

    @torch.no_grad()
    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None = None,
        reference_features: RetrievedFeatures | None = None,
        guidance_scale: float = 9.0,
        reference_guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        retrieval_scale: RetrievalScale = 1.0,
        retrieval_start: float = 0.0,
        retrieval_end: float = 1.0,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        negative_added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        control_image: torch.Tensor | None = None,
        controlnet_conditioning_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> torch.Tensor:
        """The denoising loop: as many forward passes of the U-Net as steps, each with the branches of the guidance.

        Args:
            latents: (B, c, h, w) noise, scaled as the scheduler wants it.
            timesteps: of `self.scheduler`, which has been set to them.
            prompt_embeds, negative_prompt_embeds: (B, T, D); the second only where guidance_scale is above 1.
            reference_features: of I items, B a multiple of I: the first B / I rows retrieve from the first item.
            guidance_scale, reference_guidance_scale: see `guidance`. The first is off up to 1, the second at 1; None
                is as the first.
            guidance_rescale: see `StableDiffusionPipeline`.
            retrieval_scale, retrieval_start, retrieval_end: see `retrieval_scales`.
            added_cond_kwargs, negative_added_cond_kwargs: what the U-Net of SDXL is told beside the text, (B, ...).
            control_image: (B, 3, H, W) in [0, 1], for `self.controlnet`; every branch sees it.

        Returns:
            (B, c, h, w) latents.
        """
        check_scale("guidance_scale", guidance_scale)
        if reference_guidance_scale is not None:
            check_scale("reference_guidance_scale", reference_guidance_scale)
        self._guidance_scale, self._reference_guidance_scale = guidance_scale, reference_guidance_scale
        self._guidance_rescale = guidance_rescale
        self._num_timesteps, self._interrupt = len(timesteps), False
        if self.do_classifier_free_guidance and negative_prompt_embeds is None:
            raise ValueError(f"negative_prompt_embeds: got None with guidance_scale {guidance_scale}, wanted them")
        scales = retrieval_scales(
            retrieval_scale, len(timesteps), len(self.unet.config.block_out_channels), retrieval_start, retrieval_end
        )
        retrieves = scales.any(dim=1).tolist() if reference_features is not None else [False] * len(timesteps)
        scales = scales.to(latents)
        keys_values = None
        if any(retrieves):
            biases = reference_features.biases
            if reference_features.tokens:
                keys_values = self.unet.project_references(reference_features.tokens, biases)
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        step_options = self.prepare_extra_step_kwargs(generator, eta)
        guidance_embedding = self._guidance_embedding(latents)
        positive = {"text": prompt_embeds, **(added_cond_kwargs or {})}
        negative = {"text": negative_prompt_embeds, **(negative_added_cond_kwargs or {})}

        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                branches, factors = guidance_branches(
                    self.guidance_scale if self.do_classifier_free_guidance else None,
                    self.reference_guidance_scale, retrieves[i],
                )  # fmt: skip
                references = None
                if retrieves[i]:
                    references = keys_values
                    if references is None:  # the encoder reads anew at every step
                        references = self.unet.project_references(self._read_tokens(reference_features, t), biases)
                items = 1 if references is None else len(reference_features)
                pictures = len(latents) // items
                sample = _to_rows([self.scheduler.scale_model_input(latents, t)] * len(branches), items)
                conditions = {
                    name: _to_rows([(positive if branch.text else negative)[name] for branch in branches], items)
                    for name in positive
                }
                text = conditions.pop("text")
                residuals = {}
                if control_image is not None:
                    down, mid = self.controlnet(
                        sample, t, text, _to_rows([control_image] * len(branches), items),
                        controlnet_conditioning_scale, added_cond_kwargs=conditions or None, return_dict=False,
                    )  # fmt: skip
                    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
                predicted = self.unet(
                    sample, t, text, references, scales[i, :, None],
                    plain=pictures * sum(not branch.references for branch in branches) if references else 0,
                    timestep_cond=None if guidance_embedding is None else _to_rows(
                        [guidance_embedding] * len(branches), items),
                    added_cond_kwargs=conditions or None, **residuals, return_dict=False,
                )[0]  # fmt: skip
                predictions = _from_rows(predicted, items, len(branches))
                noise = guide(predictions, factors)
                if factors and self.guidance_rescale > 0:
                    noise = rescale_noise_cfg(noise, predictions[-1], self.guidance_rescale)
                latents = self.scheduler.step(noise, t, latents, **step_options, return_dict=False)[0]
                if callback_on_step_end is not None:
                    latents = self._call_back(
                        callback_on_step_end, callback_on_step_end_tensor_inputs, i, t, latents, positive, negative
                    )
                progress_bar.update()
        return latents

    def _call_back(self, callback, names, step, timestep, latents, positive: dict, negative: dict) -> torch.Tensor:
        """Shows a step's tensors and takes what is returned in their place. As in diffusers, where there is guidance
        `prompt_embeds` and the like have the negative prompt's in their first half."""
        values = {"latents": latents, "negative_prompt_embeds": negative["text"]}
        for shown, name in self._callback_conditions.items():
            both = self.do_classifier_free_guidance
            values[shown] = torch.cat([negative[name], positive[name]]) if both else positive[name]
        returned = callback(self, step, timestep, {name: values[name] for name in names}) or {}
        for shown, name in self._callback_conditions.items():
            changed = returned.get(shown)
            if changed is not None and len(changed) == 2 * len(latents):
                negative[name], changed = changed.chunk(2)
            positive[name] = positive[name] if changed is None else changed
        other = returned.get("negative_prompt_embeds")
        if other is not None and other is not values["negative_prompt_embeds"]:  # merely handed back: as before
            negative["text"] = other
        return returned.get("latents", latents)

    def _guidance_embedding(self, latents: torch.Tensor) -> torch.Tensor | None:
        """(B, time_cond_proj_dim) for a U-Net that is told the guidance (as latent consistency models are)."""
        width = self.unet.config.time_cond_proj_dim
        if width is None:
            return None
        scale = torch.full((len(latents),), self.guidance_scale - 1, device=latents.device)
        return self.get_guidance_scale_embedding(scale, embedding_dim=width).to(latents)


def _to_rows(parts: Sequence[torch.Tensor], items: int) -> torch.Tensor:
    """One (B, ...) tensor per branch -> (branches * B, ...): item after item, and of each item branch after branch."""
    return torch.stack([part.unflatten(0, (items, -1)) for part in parts], dim=1).flatten(0, 2)


def _from_rows(rows: torch.Tensor, items: int, branches: int) -> list[torch.Tensor]:
    """The inverse of `_to_rows`."""
    return [part.flatten(0, 1) for part in rows.unflatten(0, (items, branches, -1)).unbind(1)]
