"""The training objective: masked noise prediction plus a term for the head (paper section 4.3). Pure functions."""

import torch
from torch.nn import functional as F


# What a model may be made to predict, by the name that diffusers' schedulers have for it.
PREDICTION_TYPES = ("epsilon", "v_prediction")


def prediction_target(
    prediction_type: str,
    latents: torch.Tensor,
    noise: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    timesteps: torch.Tensor,
) -> torch.Tensor:
    """What the model is to predict, (B, C, h, w).

    "epsilon": the noise (the paper, section 4.3). "v_prediction": sqrt(a) noise - sqrt(1 - a) latents for a of
    `alphas_cumprod` (Salimans and Ho, arXiv:2202.00512, appendix D), in which the picture counts as much as the noise
    where there is hardly anything but noise.
    """
    if prediction_type == "epsilon":
        return noise
    alphas = alphas_cumprod[timesteps].view(-1, 1, 1, 1).to(latents.dtype)
    return alphas.sqrt() * noise - (1 - alphas).sqrt() * latents


def loss_weights(
    prediction_type: str,
    alphas_cumprod: torch.Tensor,
    timesteps: torch.Tensor,
    inverse_snr: bool = False,
    snr_gamma: float | None = None,
) -> torch.Tensor | None:
    """(B,) by the noise level: `inverse_snr_weights`, or else `min_snr_weights`, or None.

    Both are of the squared error in the noise; that in v is (1 + SNR) / SNR times as large, and weighs as much less.
    """
    if inverse_snr:
        weights = inverse_snr_weights(alphas_cumprod, timesteps)
    elif snr_gamma is not None:
        weights = min_snr_weights(alphas_cumprod, timesteps, snr_gamma)
    else:
        return None
    # SNR / (1 + SNR) is alphas_cumprod itself.
    return weights * alphas_cumprod[timesteps] if prediction_type == "v_prediction" else weights


def prediction_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    content_mask: torch.Tensor,
    head_mask: torch.Tensor,
    head_weight: float,
    sample_weights: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Squared error on the target's real content, plus the same on its head box, with a weight.

    Args:
        prediction, target: (B, C, h, w); see `prediction_target`.
        content_mask: (B, 1, h, w) in [0, 1]; 0 on padding.
        head_mask: (B, 1, h, w) in [0, 1]; all 0 where no head is known.
        head_weight: of the head term; the paper's is not published.
        sample_weights: (B,), of each item in both terms, for instance by its noise level; 1 without.

    Returns:
        Scalars: "loss" = "content" + head_weight * "head". Each item counts alike, whatever part of it is content, so
        that the loss of a batch is the mean of the losses of its parts. An item whose mask is 0 everywhere adds 0.
    """
    error = F.mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=1, keepdim=True)  # (B, 1, h, w)
    if sample_weights is not None:
        error = error * sample_weights.view(-1, 1, 1, 1)
    content = masked_mean(error, content_mask).mean()
    head = masked_mean(error, content_mask * head_mask).mean()
    return {"loss": content + head_weight * head, "content": content, "head": head}


def masked_mean(error: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B,): of each item the mean of `error` over what its `mask` sums to, both (B, 1, h, w); 0 for an empty mask."""
    return (error * mask).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp(min=1e-6)


def to_latent_size(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, 1, H, W) in [0, 1] -> (B, 1, h, w): the share of each latent cell that the mask covers."""
    return F.interpolate(mask, size=size, mode="area")


def draw_timesteps(
    count: int, num_train_timesteps: int, generator: torch.Generator, bias_begin: int = 0, bias_portion: float = 0.0
) -> torch.Tensor:
    """(count,) timesteps: uniform, but for a share `bias_portion` that is drawn from [bias_begin, num_train_timesteps).

    References matter where the noise hides the picture; a short training learns to use them from noisy steps first.
    """
    late = torch.rand(count, generator=generator) < bias_portion
    uniform = torch.rand(count, generator=generator)
    begin = torch.where(late, bias_begin, 0)
    return (begin + uniform * (num_train_timesteps - begin)).long().clamp(max=num_train_timesteps - 1)


def inverse_snr_weights(
    alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, low: float = 0.2, high: float = 6.0
) -> torch.Tensor:
    """clamp(1 / SNR, low, high) of each timestep, (B,): turns the error in the noise towards that in the picture."""
    alphas = alphas_cumprod[timesteps]
    return ((1 - alphas) / alphas).clamp(low, high)


def min_snr_weights(alphas_cumprod: torch.Tensor, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """min(SNR, gamma) / SNR of each timestep, (B,), for noise prediction (Hang et al., arXiv:2303.09556)."""
    alphas = alphas_cumprod[timesteps]
    snr = alphas / (1 - alphas)
    return snr.clamp(max=gamma) / snr


def draw_conditions(
    count: int, generator: torch.Generator, empty_text: float, empty_references: float, empty_both: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which samples keep their text and which their references: two (count,) bool.

    With the probability `empty_both` a sample loses both; else the one with `empty_text`, and independently the other
    with `empty_references`.
    """
    both, text, references = (torch.rand(count, generator=generator) for _ in range(3))
    kept = both >= empty_both
    return kept & (text >= empty_text), kept & (references >= empty_references)
