"""What the pictures of a checkpoint show, by the truth of the mini edition and not by taste.

python -m retribooru.metrics.truth --checkpoint runs/mini-retrieval --base runs/mini-base \
    --classifier runs/mini-attributes --characters 1500 --output_dir runs/truth

Characters are drawn that were never trained on, from prompts that tell pose, expression and background and nothing of
hair, eyes, skin and clothes: these are in the references alone. A classifier reads all of it off the pictures.
"""
