"""What draws: a class for each kind of method, loaded once in a process.

Each is called with a character, a prompt, a generator for each picture and a scale, and gives PIL images.
"""

import warnings
from collections.abc import Callable, Sequence

import diffusers
import torch
from diffusers import ControlNetModel
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

import retribooru
from retribooru.checkpoint_facts import PIPELINES, pipeline_class
from retribooru.pipeline.reference_processor import pad_to_square, remove_background

from ..attributes import square
from ..truth.pictures import weights_digest
from .characters import Character
from .families import FUNCTION, RETRIBOORU, Family, resolve

WHITE = (255, 255, 255)


class StableDiffusion:
    """Draws the prompt alone: what the other kinds stand on."""

    def __init__(self, family: Family, device: torch.device):
        self.family, self.options, self.call, self.dtype = (
            family, family.options, family.call, getattr(torch, family.dtype)
        )  # fmt: skip
        self.pipeline = self.load().to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.weights = weights_digest(self.pipeline)
        self.tokenizer = self.pipeline.tokenizer

    def load(self, **components):
        """The pipeline of the checkpoint. Raises ValueError where it cannot be loaded."""
        name = self.options["checkpoint"]
        kind = pipeline_class(name)
        library = retribooru if kind in PIPELINES else diffusers
        load = getattr(library, kind).from_pretrained
        return self.loaded("checkpoint", load, name, torch_dtype=self.dtype, **components)

    def loaded(self, option: str, load: Callable, name: str, **more):
        """`load(name)` of safetensors alone; its error names the option."""
        try:
            with warnings.catch_warnings():  # of an argument's new name, which older versions do not know
                warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
                return load(name, use_safetensors=True, **more)
        except (OSError, ValueError, KeyError) as error:
            wanted = "a folder or a Hub id with safetensors"
            raise ValueError(f"methods: {self.family.name}: {option}: got {name}, wanted {wanted} ({error})") from error

    def conditions(self, character: Character, count: int, scale: float | None) -> dict:
        """Arguments of the pipeline's call, beside the prompt and the noise."""
        return {}

    def __call__(
        self, character: Character, prompt: str, generators: Sequence[torch.Generator], scale: float | None = None
    ) -> list[Image.Image]:
        more = self.conditions(character, len(generators), scale)
        return self.pipeline([prompt] * len(generators), generator=list(generators), **self.call, **more).images


class RetriBooru(StableDiffusion):
    """Ours. A character's references are encoded once, for all its prompts, seeds and scales."""

    _encoded: tuple = (None, None)  # the name of a character, and its features

    def conditions(self, character, count, scale):
        if self._encoded[0] != character.name:
            masks = character.reference_masks if self.options["remove_background"] else None
            features = self.pipeline.encode_references(character.reference_images, character.reference_concepts, masks)
            self._encoded = character.name, features
        return {
            "reference_features": self._encoded[1],
            "retrieval_scale": scale,
            "reference_guidance_scale": self.options["reference_guidance_scale"],
        }


class IPAdapter(StableDiffusion):
    """IP-Adapter (arXiv:2308.06721) as diffusers has it. All references are images of one adapter: their tokens lie
    side by side. Each is padded to a square, as the image encoder would cut off the rest, and keeps its background
    unless `remove_background`."""

    def load(self):
        adapter, subfolder = self.options["adapter"], self.options["subfolder"]
        name, folder = self.options["image_encoder"], ""
        if name is None:
            name, folder = adapter, f"{subfolder}/image_encoder".strip("/")
        load = CLIPVisionModelWithProjection.from_pretrained
        encoder = self.loaded("image_encoder", load, name, subfolder=folder, dtype=self.dtype)
        size = encoder.config.image_size
        try:
            processor = CLIPImageProcessor.from_pretrained(name, subfolder=folder)
        except OSError:  # the adapters on the Hub have none: diffusers takes CLIP's own
            processor = CLIPImageProcessor(size=size, crop_size=size)
        pipeline = super().load(image_encoder=encoder, feature_extractor=processor)
        try:
            pipeline.load_ip_adapter(
                adapter, subfolder=subfolder, weight_name=self.options["weight_name"], image_encoder_folder=None
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(
                f"methods: {self.family.name}: adapter: got {adapter}, wanted an IP-Adapter of this checkpoint: a "
                f"folder or a Hub id ({error})"
            ) from error
        return pipeline

    def conditions(self, character, count, scale):
        self.pipeline.set_ip_adapter_scale(scale)
        images = character.reference_images
        if self.options["remove_background"]:
            images = [remove_background(image, mask, WHITE) for image, mask in zip(images, character.reference_masks)]
        return {"ip_adapter_image": [[pad_to_square(image, WHITE) for image in images]]}


class ControlNet(StableDiffusion):
    """ControlNet (arXiv:2302.05543) as diffusers has it; the first reference, padded to a square, is what it sees."""

    def load(self):
        dtype = {"torch_dtype": self.dtype}
        controlnet = self.loaded("controlnet", ControlNetModel.from_pretrained, self.options["controlnet"], **dtype)
        load = diffusers.StableDiffusionControlNetPipeline.from_pretrained
        return self.loaded("checkpoint", load, self.options["checkpoint"], controlnet=controlnet, **dtype)

    def conditions(self, character, count, scale):
        side = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        image = square(character.reference_images[0], side)
        return {"image": [image] * count, "controlnet_conditioning_scale": scale}


class Function:
    """Anything: function(character, prompt, generators, **options), with `scale` where that is among the options."""

    weights = tokenizer = None

    def __init__(self, family: Family, device: torch.device):
        options = dict(family.options)
        self.name, self.function = family.name, resolve(f"methods: {family.name}: function", options.pop(FUNCTION))
        self.options = options

    def __call__(self, character, prompt, generators, scale=None):
        more = {} if scale is None else {"scale": scale}
        images = self.function(character, prompt, list(generators), **self.options, **more)
        if not isinstance(images, list):
            got = f"a {type(images).__name__}"
        elif len(images) != len(generators):
            got = f"{len(images)} items"
        else:
            strange = [type(image).__name__ for image in images if not isinstance(image, Image.Image)]
            got = f"a {strange[0]} among them" if strange else None
        if got:
            raise ValueError(
                f"methods: {self.name}: got {got} from its function, wanted a list of {len(generators)} PIL images"
            )
        return images


CLASSES = {
    "stable-diffusion": StableDiffusion,
    RETRIBOORU: RetriBooru,
    "ip-adapter": IPAdapter,
    "controlnet": ControlNet,
    FUNCTION: Function,
}


def load_family(family: Family, device: torch.device):
    """What draws the family's methods."""
    return CLASSES[family.kind](family, device)
