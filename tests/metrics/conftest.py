"""A fake CLIP with hand-made embeddings, tiny random real models, and modules of evaluate by path."""

import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image


class TableModel(torch.nn.Module):
    """Returns as features the vectors that :class:`TableProcessor` put into its inputs; counts what it embeds.

    ``as_output`` answers as transformers 5 does (an object with ``pooler_output``), else as transformers 4 (a tensor).
    """

    def __init__(self, as_output: bool):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.dropout = torch.nn.Dropout(0.5)
        self.config = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=8))
        self.as_output = as_output
        self.embedded = 0
        self.batches = []

    def _answer(self, values):
        self.embedded += len(values)
        self.batches.append(len(values))
        values = self.dropout(values * self.weight)
        return SimpleNamespace(pooler_output=values) if self.as_output else values

    def get_image_features(self, pixel_values):
        return self._answer(pixel_values)

    def get_text_features(self, input_ids, attention_mask):
        return self._answer(input_ids.float())


class TableProcessor:
    """Image -> its ``info["vector"]``; text "3 4" -> the numbers in it, one token for each."""

    def __init__(self):
        self.tokenizer = self._tokens
        self._tokens.__func__.model_max_length = 8

    def _tokens(self, texts, truncation, verbose):
        return {"input_ids": [[float(word) for word in text.split()] for text in texts]}

    def __call__(self, images=None, text=None, return_tensors=None, **options):
        if images is not None:
            return {"pixel_values": torch.tensor([image.info["vector"] for image in images])}
        ids = torch.tensor([[float(word) for word in line.split()][: options["max_length"]] for line in text])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(params=[True, False], ids=["output", "tensor"])
def table(request):
    """(model, processor) whose embeddings are given by hand."""
    return TableModel(request.param).train(), TableProcessor()


@pytest.fixture
def vector_image():
    """Function: an image that the fake CLIP embeds as the given vector."""

    def make(*vector):
        image = Image.new("RGB", (4, 4))
        image.info["vector"] = [float(value) for value in vector]
        return image

    return make


@pytest.fixture
def noise():
    """Function: an RGB image of noise that differs from seed to seed."""

    def make(seed, size=(40, 32)):
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
        return Image.fromarray(pixels.numpy())

    return make


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """Folder of a tiny random CLIPModel and its CLIPProcessor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    words = ["one girl with a red scarf and a blue hat", "long hair, brown eyes, solo, upper body"] * 20
    tokenizer = CLIPTokenizer(model_max_length=77).train_new_from_iterator(words, vocab_size=400)
    torch.manual_seed(0)
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**shared, **special, "vocab_size": len(tokenizer), "attention_dropout": 0.5}
    vision = {**shared, "image_size": 32, "patch_size": 8, "attention_dropout": 0.5}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip(clip_folder):
    """(model, processor) of ``clip_folder``."""
    from transformers import CLIPModel, CLIPProcessor

    return CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)


WORDS = "describe the image in detail . what is she wearing where ? a girl with red blue hair scarf hat on".split()


def bert_tokenizer(folder):
    """A BertTokenizer of a few words."""
    from transformers import BertTokenizer

    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    return BertTokenizer(str(vocabulary))


def blip_images():
    from transformers import BlipImageProcessor

    return BlipImageProcessor(size={"height": 16, "width": 16})


VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 16, "patch_size": 8}  # fmt: skip


@pytest.fixture(scope="session")
def instructblip_folder(tmp_path_factory):
    """Folder of a tiny InstructBlipForConditionalGeneration whose answers depend on the image, and its processor."""
    from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration, InstructBlipProcessor

    tokenizer = bert_tokenizer(tmp_path_factory.mktemp("vocabulary"))
    processor = InstructBlipProcessor(blip_images(), tokenizer, tokenizer, num_query_tokens=2)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "vocab_size": len(processor.tokenizer)}
    config = InstructBlipConfig(
        vision_config={**VISION, "initializer_range": 0.5},
        qformer_config={**small, "encoder_hidden_size": 16, "vocab_size": len(tokenizer), "initializer_range": 0.5},
        text_config={"model_type": "llama", **small, **special, "initializer_range": 0.5},
        num_query_tokens=2,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = InstructBlipForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    folder = tmp_path_factory.mktemp("instructblip")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory):
    """Folder of a tiny BlipForQuestionAnswering and its processor."""
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipProcessor

    tokenizer = bert_tokenizer(tmp_path_factory.mktemp("vocabulary"))
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3,
            "pad_token_id": 0, "initializer_range": 0.5}  # fmt: skip
    torch.manual_seed(0)
    model = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config={**VISION, "initializer_range": 0.5}))
    folder = tmp_path_factory.mktemp("blip")
    model.save_pretrained(folder)
    BlipProcessor(blip_images(), tokenizer).save_pretrained(folder)
    return folder


def forget_evaluate_modules():
    """Take the imported modules of evaluate's cache out of sys.modules and return them."""
    names = [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Function: the metric of a path with its caches in tmp_path, from a working directory that holds nothing."""
    import evaluate

    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    before = forget_evaluate_modules()
    yield lambda path, **options: evaluate.load(str(path), cache_dir=str(tmp_path / "cache"), **options)
    forget_evaluate_modules()
    sys.modules.update(before)
