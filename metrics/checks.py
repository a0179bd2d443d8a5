"""What the metrics refuse: every message names the argument, what came and what was wanted."""

from collections.abc import Sequence

from PIL import Image


def checked_list(values, name: str) -> list:
    """`values` as a list of at least one item."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(f"{name} is of type {type(values).__name__}; wanted a list.")
    if len(values) == 0:
        raise ValueError(f"{name} is empty; wanted at least one item.")
    return list(values)


def checked_images(values, name: str) -> list[Image.Image]:
    """`values` as a list of images whose pixels can be read."""
    images = checked_list(values, name)
    for i, image in enumerate(images):
        check_image(image, f"{name}[{i}]")
    return images


def check_image(image, name: str) -> None:
    if not isinstance(image, Image.Image):
        raise TypeError(f"{name} is of type {type(image).__name__}; wanted a PIL.Image.Image.")
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        source = getattr(image, "filename", "") or "an image without a file name"
        raise ValueError(f"{name} cannot be read ({source}: {error}); wanted a whole image.") from error


def checked_image_lists(values, name: str) -> list[list[Image.Image]]:
    """`values` as a list of lists of at least one image."""
    return [checked_images(images, f"{name}[{i}]") for i, images in enumerate(checked_list(values, name))]


def checked_texts(values, name: str) -> list[str]:
    """`values` as a list of strings."""
    texts = checked_list(values, name)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{i}] is of type {type(text).__name__}; wanted a string.")
    return texts


def check_same_length(predictions, others, name: str, first: str = "predictions") -> None:
    if len(others) != len(predictions):
        raise ValueError(
            f"{name} has {len(others)} items and {first} {len(predictions)}; wanted as many of both, "
            f"{name}[i] belonging to {first}[i]."
        )


def check_pairs(count: int, name: str) -> None:
    """A mean over pairs needs a pair."""
    if count < 2:
        raise ValueError(f"{name} has {count} item; wanted at least 2: a mean over pairs is undefined without a pair.")


def check_batch_size(batch_size, name: str = "batch_size") -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"{name} is {batch_size!r}; wanted a whole number of at least 1.")
