"""Figures made by hand, in the authors' form."""

import json
from pathlib import Path

from PIL import Image, ImageDraw


def draw(color: str, size=(40, 60)) -> tuple[Image.Image, Image.Image]:
    """A figure of one colour with a black head, (12, 5, 28, 20) in 40 x 60, on grey; and its mask."""
    image, mask = Image.new("RGB", size, "gray"), Image.new("L", size, 0)
    for picture, body, head in ((image, color, "black"), (mask, 255, 255)):
        pen = ImageDraw.Draw(picture)
        pen.rectangle((8, 20, 31, 54), fill=body)
        pen.rectangle((12, 5, 27, 19), fill=head)
    return image, mask


HEAD_BOX = [12, 5, 28, 20]
BBOX = [20 / 40, 12.5 / 60, 16 / 40, 15 / 60]


def write_figures(folder: Path, characters: int = 12, images: int = 4) -> Path:
    """The authors' form: `characters` identities of `images` images each."""
    colors = ["red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "cyan", "navy", "olive", "teal"]
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    records = []
    for c in range(characters):
        ids = [f"{100 * (c + 1) + i}" for i in range(images)]
        for image_id in ids:
            image, mask = draw(colors[c % len(colors)])
            image.putpixel((0, 0), (int(image_id) % 256, int(image_id) // 256, 0))  # so that no two are the same
            image.save(folder / "images" / f"{image_id}.png")
            mask.save(folder / "masks" / f"{image_id}.png")
            records.append(
                {
                    "id": image_id,
                    "character": f"character_{c:02d}",
                    "artists": ["somebody"],
                    "cloths": [f"{colors[c % len(colors)]}_dress"],
                    "prompts": "1girl, solo, standing",
                    "bbox": BBOX,
                    "similar": [other for other in ids if other != image_id],
                }
            )
    (folder / "retribooru.json").write_text(json.dumps(records))
    return folder
