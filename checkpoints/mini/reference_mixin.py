"""How a pipeline reads references."""

import os
from collections.abc import Sequence

import torch
from PIL import Image

from .reference_arguments import read_references
from .reference_processor import ReferenceProcessor
from .retrieved_features import RetrievedFeatures, fingerprint, kept_tokens, same_fingerprint, take_tokens


class ReferenceMixin:
    """For a Stable Diffusion pipeline with a `retrieval_encoder` and a `unet` that retrieves."""

    @property
    def sample_size(self) -> int:
        """Side, in pixels, of the images the U-Net was made for."""
        size = self.unet.config.sample_size
        return (size if isinstance(size, int) else size[0]) * self.vae_scale_factor

    def fingerprint(self) -> torch.Tensor:
        """(K,) float32 that tells the models that encode and retrieve from others."""
        return fingerprint(self.retrieval_encoder, self.unet.retrieval_layers)

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
        # One by one: the VAE holds less in memory, and a reference is read alike whatever it is read with.
        latents = [self._encode_pixels(image) for image in pixels.to(device).split(1)]
        sample = torch.cat(latents).to(dtype).contiguous()  # (R, c, h, w)
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
        reference_size: int | None = None,
        reference_features: str | os.PathLike | RetrievedFeatures | Sequence | None = None,
    ) -> RetrievedFeatures | None:
        """What a call with so many prompts retrieves from: one item for all of them or one for each, or None."""
        others = {
            "reference_concepts": reference_concepts,
            "reference_masks": reference_masks,
            "reference_weights": reference_weights,
            "reference_size": reference_size,
        }
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

    def check_features(self, features: str | os.PathLike | RetrievedFeatures | Sequence) -> RetrievedFeatures:
        """The features, or those of a file, on the pipeline's device and in its dtype; of a list, all items as one.

        Raises ValueError for features of another model.
        """
        parts = list(features) if isinstance(features, (list, tuple)) else [features]
        parts = [RetrievedFeatures.load(part) if isinstance(part, (str, os.PathLike)) else part for part in parts]
        own = self.fingerprint()
        for part in parts:
            self._check_made_here(part, own)
        parts = [part.to(self._execution_device, self.retrieval_encoder.dtype) for part in parts]
        return parts[0] if len(parts) == 1 else RetrievedFeatures.stack(parts)

    def _check_made_here(self, features: RetrievedFeatures, own: torch.Tensor) -> None:
        """Raises TypeError or ValueError unless a model of the fingerprint `own` made the features."""
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
        if not same_fingerprint(features.fingerprint, own):
            raise ValueError(
                "reference_features: their fingerprint is not this pipeline's: they were encoded by another model, or "
                "before more training; encode the references again"
            )
