"""A small Stable Diffusion by command, around a VAE that was trained here."""

from copy import deepcopy

import pytest
import torch
from diffusers import StableDiffusionPipeline

from retribooru.training.scratch import main, small_stable_diffusion, small_tokenizer, small_vae, teach_tags


def test_by_command(data_dir, tmp_path):
    small_vae([8, 8], 4, 32).save_pretrained(tmp_path / "vae")
    flags = ["--vae", str(tmp_path / "vae"), "--data_dir", str(data_dir), "--resolution", "32",
             "--block_out_channels", "16", "16", "--text_width", "32", "--text_steps", "0"]  # fmt: skip
    main([*flags, "--output_dir", str(tmp_path / "one")])
    torch.manual_seed(7)
    main([*flags, "--output_dir", str(tmp_path / "two")])
    one, two = (StableDiffusionPipeline.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert one.unet.config.block_out_channels == [16, 16] and one.text_encoder.config.hidden_size == 32
    for part in ("unet", "text_encoder", "vae"):
        weights = getattr(two, part).state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in getattr(one, part).state_dict().items())
    main([*flags, "--output_dir", str(tmp_path / "three"), "--prediction_type", "v_prediction"])
    kinds = [StableDiffusionPipeline.from_pretrained(tmp_path / name).scheduler.config.prediction_type
             for name in ("one", "three")]  # fmt: skip
    assert kinds == ["epsilon", "v_prediction"]
    one.set_progress_bar_config(disable=True)
    assert one("1girl, smile", num_inference_steps=2).images[0].size == (32, 32)


def test_a_text_encoder_learns_to_tell_tags_apart():
    poses, places = ("standing", "waving", "jumping"), ("beach", "night", "indoors")
    prompts = [f"1girl, solo, {pose}, {place}" for pose in poses for place in places]
    tokenizer = small_tokenizer(prompts)
    torch.manual_seed(0)
    text_encoder = small_stable_diffusion(small_vae([8, 8], 4, 32), tokenizer, 32, (16, 16), 32).text_encoder
    twins = [deepcopy(text_encoder) for _ in range(2)]

    def apart() -> float:
        """How far the prompts of two poses are apart, by their length."""
        texts = [f"1girl, solo, {pose}, beach" for pose in poses[:2]]
        ids = tokenizer(texts, padding="max_length", max_length=48, return_tensors="pt").input_ids
        with torch.no_grad():
            one, two = text_encoder(ids).last_hidden_state
        return ((one - two).norm() / one.norm()).item()

    before = apart()
    assert teach_tags(text_encoder, tokenizer, prompts, steps=0) == 0 and apart() == before
    assert teach_tags(text_encoder, tokenizer, prompts, steps=400) == 1
    assert apart() > 2 * before
    for twin in twins:
        teach_tags(twin, tokenizer, prompts, steps=10)
    assert all(torch.equal(a, b) for a, b in zip(*(twin.parameters() for twin in twins), strict=True))


def test_wrong_prediction_type(tmp_path):
    flags = ["--vae", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--prediction_type", "noise"]
    with pytest.raises(ValueError, match="prediction_type: got noise, wanted one of epsilon, v_prediction"):
        main(flags)


def test_wrong_text_steps(tmp_path):
    with pytest.raises(ValueError, match="text_steps: got -1, wanted at least 0"):
        main(["--vae", "none", "--output_dir", str(tmp_path / "out"), "--text_steps", "-1"])
    assert not (tmp_path / "out").exists()
