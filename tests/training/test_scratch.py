"""A small Stable Diffusion by command, around a VAE that was trained here."""

import torch
from diffusers import StableDiffusionPipeline

from retribooru.training.scratch import main, small_vae


def test_by_command(data_dir, tmp_path):
    small_vae([8, 8], 4, 32).save_pretrained(tmp_path / "vae")
    flags = ["--vae", str(tmp_path / "vae"), "--data_dir", str(data_dir), "--resolution", "32",
             "--block_out_channels", "16", "16", "--text_width", "32"]  # fmt: skip
    main([*flags, "--output_dir", str(tmp_path / "one")])
    torch.manual_seed(7)
    main([*flags, "--output_dir", str(tmp_path / "two")])
    one, two = (StableDiffusionPipeline.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert one.unet.config.block_out_channels == [16, 16] and one.text_encoder.config.hidden_size == 32
    for part in ("unet", "text_encoder", "vae"):
        weights = getattr(two, part).state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in getattr(one, part).state_dict().items())
    one.set_progress_bar_config(disable=True)
    assert one("1girl, smile", num_inference_steps=2).images[0].size == (32, 32)
