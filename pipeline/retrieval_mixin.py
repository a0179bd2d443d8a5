"""The steps that every RetriBooru pipeline shares: reading references, and denoising with what was read."""

import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from PIL import Image

from .guidance import RetrievalScale, guidance_branches, guide, retrieval_scales
from .reference_arguments import read_references
from .reference_processor import ReferenceProcessor
from .retrieved_features import RetrievedFeatures, fingerprint, kept_tokens, same_fingerprint, take_tokens


class RetrievalPipelineMixin:
    """For a Stable Diffusion pipeline whose `unet` retrieves and that has a `retrieval_encoder`."""

    @property
    def sample_size(self) -> int:
        """Side, in pixels, of the images the U-Net was made for."""
        size = self.unet.config.sample_size
        return (size if isinstance(size, int) else size[0]) * self.vae_scale_factor

    @property
    def reference_guidance_scale(self) -> float | None:
        """Of the running call; see `guidance`."""
        return self._reference_guidance_scale

    def fingerprint(self) -> torch.Tensor:
        """(K,) float32 that tells the models that encode and retrieve from others."""
        return fingerprint(self.retrieval_encoder, self.unet.retrieval_layers)

    # Reading references

    @torch.no_grad()
    def encode_references(
        self,
        reference_images: Sequence[Image.Image] | Sequence[Sequence[Image.Image]],
        reference_concepts: Sequence[str] | Sequence[Sequence[str]],
        reference_masks: Sequence | None = None,
        reference_weights: Sequence | None = None,
        reference_size: int | None = None,
    ) -> RetrievedFeatures:
        """Reads a character's references once, for any number of prompts.

        Args:
            reference_images: images of any size, padded to a square: a list for one item (one character), or a list of
                such lists for several items, which may differ in length. Order does not matter.
            reference_concepts: of each image one of the encoder's concepts: "figure", "face" or "body".
            reference_masks: of each image None or a mask of its size, 255 where the figure is: what lies outside is
                painted over, and tokens without any part of the figure are dropped. Without masks, only the tokens of
                the padding are.
            reference_weights: of each image a number of at least 0, in relation to the others of the item; 1 by
                default. 0 leaves the reference out, 2 equals giving it twice.
            reference_size: side in pixels that the references are read at; the pipeline's own by default.

        Returns:
            `RetrievedFeatures` of as many items as there are lists.
        """
        texts = self.retrieval_encoder.config.concept_texts
        items = read_references(texts, reference_images, reference_concepts, reference_masks, reference_weights)
        images, concepts, masks, weights = zip(*(reference for item in items for reference in item))
        size = self.check_reference_size(reference_size)
        pixels, content = ReferenceProcessor(size)(images, masks)  # (R, 3, H, W), (R, 1, H, W)
        for i, part in enumerate(content):
            if not part.any():
                raise ValueError(f"reference_masks: got a mask that keeps nothing at {size} pixels, for reference {i}")

        device, dtype = self._execution_device, self.retrieval_encoder.dtype
        sample = self._encode_pixels(pixels.to(device)).to(dtype).contiguous()  # (R, c, h, w)
        wanted = sorted(set(concepts))
        encoded = self._encode_concepts([texts[concept] for concept in wanted], size)
        chosen = torch.tensor([wanted.index(concept) for concept in concepts], device=device)
        inputs = {"sample": sample, **{name: tensor.to(dtype)[chosen] for name, tensor in encoded.items()}}

        indices, kept, token_weights = kept_tokens(
            content, [len(item) for item in items], torch.tensor(weights, dtype=torch.float32),
            self.retrieval_encoder.feature_sizes(*sample.shape[-2:]),
        )  # fmt: skip
        features = RetrievedFeatures(
            tokens=(), masks=tuple(kept), weights=tuple(token_weights), fingerprint=self.fingerprint(),
            indices=tuple(indices), encoder_inputs=inputs,
        ).to(device)  # fmt: skip
        if self.retrieval_encoder.config.reference_timestep == "denoising":
            return features
        features.tokens = self._read_tokens(features)
        features.indices, features.encoder_inputs = (), {}
        return features

    def _read_tokens(self, features: RetrievedFeatures, timestep: torch.Tensor | None = None) -> tuple:
        """Runs the retrieval encoder on what it is to read. Per level (I, S, C)."""
        inputs = dict(features.encoder_inputs)
        sample, text = inputs.pop("sample"), inputs.pop("encoder_hidden_states")
        read = self.retrieval_encoder(sample, text, timestep, added_cond_kwargs=inputs or None).features
        return take_tokens(read, features.indices)

    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """(R, 3, H, W) in [-1, 1] -> latents. The VAE's mode, not a sample: repeatable without a generator."""
        return self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mode() * self.vae.config.scaling_factor

    def _encode_concepts(self, texts: list[str], size: int) -> dict[str, torch.Tensor]:
        """What the retrieval encoder is told with each text, by argument, (K, ...) each."""
        raise NotImplementedError

    def check_reference_size(self, reference_size: int | None) -> int:
        """The side in pixels that references are read at."""
        size = self.sample_size if reference_size is None else reference_size
        if not isinstance(size, int) or size <= 0 or size % self.vae_scale_factor:
            raise ValueError(f"reference_size: got {size!r}, wanted a multiple of {self.vae_scale_factor}")
        return size

    def prepare_references(
        self,
        prompts: int,
        reference_images=None,
        reference_concepts=None,
        reference_masks=None,
        reference_weights=None,
        reference_features: RetrievedFeatures | Sequence[RetrievedFeatures] | None = None,
    ) -> RetrievedFeatures | None:
        """What a call with so many prompts retrieves from: one item for all of them or one for each, or None."""
        others = {"reference_concepts": reference_concepts, "reference_masks": reference_masks,
                  "reference_weights": reference_weights}  # fmt: skip
        if reference_images is not None:
            if reference_features is not None:
                raise ValueError("reference_features: got them and reference_images, wanted one of the two")
            name = "reference_images"
            features = self.encode_references(reference_images, **others)
        else:
            name = "reference_features"
            given = [key for key, value in others.items() if value is not None]
            if given:
                raise ValueError(f"reference_images: got none with {' and '.join(given)}, wanted them too")
            if reference_features is None:
                return None
            features = self.check_features(reference_features)
        if len(features) not in (1, prompts):
            raise ValueError(f"{name}: got {len(features)} lists of references for {prompts} prompts, wanted 1 for all "
                             "of them or one for each")  # fmt: skip
        return features

    def check_features(self, features: RetrievedFeatures | Sequence[RetrievedFeatures]) -> RetrievedFeatures:
        """The features on the pipeline's device and in its dtype; a list of them, one for each prompt, as one.

        Raises ValueError for features of another model.
        """
        if isinstance(features, (list, tuple)):
            features = RetrievedFeatures.stack(features)
        if type(features).__name__ != RetrievedFeatures.__name__:
            raise TypeError(f"reference_features: got {type(features).__name__}, wanted RetrievedFeatures")
        features.check("reference_features: their")
        kind = self.retrieval_encoder.config.reference_timestep
        channels = list(self.retrieval_encoder.config.block_out_channels)
        found = [level.shape[2] for level in features.tokens] or channels
        if bool(features.tokens) != (kind == "zero") or found != channels:
            raise ValueError(
                f"reference_features: got {features!r} with channels {found}, wanted those of a retrieval encoder with "
                f"channels {channels} and reference_timestep {kind!r}: they are of another model"
            )
        if not same_fingerprint(features.fingerprint, self.fingerprint()):
            raise ValueError(
                "reference_features: their fingerprint is not this pipeline's: they were encoded by another model, or "
                "before more training; encode the references again"
            )
        return features.to(self._execution_device, self.retrieval_encoder.dtype)

    # Denoising

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
        _check_guidance("guidance_scale", guidance_scale)
        if reference_guidance_scale is not None:
            _check_guidance("reference_guidance_scale", reference_guidance_scale)
        self._guidance_scale, self._reference_guidance_scale = guidance_scale, reference_guidance_scale
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
                if factors and guidance_rescale > 0:
                    noise = rescale_noise_cfg(noise, predictions[-1], guidance_rescale)
                latents = self.scheduler.step(noise, t, latents, **step_options, return_dict=False)[0]
                if callback_on_step_end is not None:
                    latents = self._call_back(
                        callback_on_step_end, callback_on_step_end_tensor_inputs, i, t, latents, positive, negative
                    )
                progress_bar.update()
        return latents

    def _call_back(self, callback, names, step, timestep, latents, positive: dict, negative: dict) -> torch.Tensor:
        """Shows a step's tensors and takes what is returned in their place. As in diffusers, `prompt_embeds` has the
        negative prompt's in its first half where there is guidance."""
        guided = self.do_classifier_free_guidance
        values = {
            "latents": latents,
            "negative_prompt_embeds": negative["text"],
            "prompt_embeds": torch.cat([negative["text"], positive["text"]]) if guided else positive["text"],
        }
        returned = callback(self, step, timestep, {name: values[name] for name in names}) or {}
        if returned.get("prompt_embeds") is not None:
            embeds = returned["prompt_embeds"]
            if len(embeds) == 2 * len(latents):
                negative["text"], embeds = embeds.chunk(2)
            positive["text"] = embeds
        if returned.get("negative_prompt_embeds") is not None:
            negative["text"] = returned["negative_prompt_embeds"]
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


def _check_guidance(name: str, value: float) -> None:
    if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: got {value!r}, wanted a finite number of at least 0")
