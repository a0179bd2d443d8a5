"""What several processes must agree on before they train together, and how sharded weights become whole again."""

import os
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from .arguments import OptimizationArguments, TrainArguments


def check_processes(accelerator: Accelerator, args: OptimizationArguments) -> None:
    """Raises RuntimeError where the processes would not train together, ValueError where they cannot as `args` say."""
    launched, joined = int(os.environ.get("WORLD_SIZE", 1)), accelerator.num_processes
    if launched != joined:
        raise RuntimeError(
            f"WORLD_SIZE: got {launched} processes, of which accelerate joins {joined}: each would train for itself, "
            "into the same folder. Without GPUs set ACCELERATE_USE_CPU=true"
        )
    # `accelerate launch` can set it, and then its word is taken for ours.
    got, wanted = args.gradient_accumulation_steps, accelerator.gradient_accumulation_steps
    if got != wanted:
        raise ValueError(f"gradient_accumulation_steps: got {got}, but accelerate is configured for {wanted}")
    kind = accelerator.distributed_type
    if kind not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return
    # Its average would have to be sharded, saved and gathered as the weights are.
    _refuse("use_ema", args.use_ema, kind)
    if kind == DistributedType.DEEPSPEED:
        stage = accelerator.state.deepspeed_plugin.zero_stage
        if stage > 2:
            raise ValueError(f"zero_stage: got {stage}, wanted at most 2: FSDP is the way to shard weights here")
        # DeepSpeed turns the modules themselves to half precision, and what is fed to them is not.
        _refuse("mixed_precision", args.mixed_precision != "no" and args.mixed_precision, kind)
        return
    version = accelerator.state.fsdp_plugin.fsdp_version
    if version != 2:  # the first flattens frozen and trained weights into one, and clips each shard's gradient alone
        raise ValueError(f"fsdp_version: got {version}, wanted 2")
    if not isinstance(args, TrainArguments):
        raise ValueError("distributed_type: got FSDP, wanted MULTI_GPU: what is trained here fits any GPU")
    # The pipeline that draws the grids runs through parts of the model; whole weights are gathered for all of it.
    _refuse("image_validation_steps", args.image_validation_steps, kind)


def _refuse(name: str, got: object, kind: DistributedType) -> None:
    if got:
        raise ValueError(f"{name}: got {got}, which does not work with {kind.value}")


def gather_weights(model: nn.Module, accelerator: Accelerator) -> None:
    """Puts whole weights in the place of FSDP's shards, in the main process and on the CPU. All processes must call it.

    The model can be saved then, and trained no more.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the outermost may still be whole
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                whole = parameter.detach().full_tensor().cpu()  # one after another: never all of them on a GPU
                if accelerator.is_main_process:
                    setattr(module, name, nn.Parameter(whole, requires_grad=parameter.requires_grad))


def check_resumable(checkpoint: Path, accelerator: Accelerator) -> None:
    """Raises ValueError for a checkpoint of more or fewer processes.

    How far the data and the learning rate's schedule are is counted in steps of all processes together.
    """
    got, now = len(list(checkpoint.glob("random_states_*"))), accelerator.num_processes
    if got != now:
        raise ValueError(
            f"resume_from_checkpoint: got {checkpoint.name} of {got} processes, but there are {now}: go on with as many"
        )
