"""`training.train` in one of several processes without GPUs, to be launched with its flags.

Leaves the numbers of the samples that this process trained on in OUTPUT_DIR/samples-RANK.json. accelerate shards
weights over GPUs alone, so it is made to believe that it has some: the rest of what it does is as real as on those.
Fails where a process group is destroyed that a model still holds: 2 of 41 launches beside other work then never ended.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch.distributed
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.nn.parallel import DistributedDataParallel

from retribooru.training import train


def main(argv: list[str]) -> None:
    if os.environ.get("ACCELERATE_USE_FSDP") != "true":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    else:
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    samples, encode_batch = [], train.encode_batch

    def recording(pipeline, examples, *args):
        samples.append(examples["sample"].tolist())
        return encode_batch(pipeline, examples, *args)

    destroy_process_group = torch.distributed.destroy_process_group

    def destroying(*args):
        assert not any(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects())
        destroy_process_group(*args)

    train.encode_batch = recording
    torch.distributed.destroy_process_group = destroying
    train.main(argv)
    output_dir = Path(argv[argv.index("--output_dir") + 1])
    (output_dir / f"samples-{os.environ['RANK']}.json").write_text(json.dumps(samples))


if __name__ == "__main__":
    main(sys.argv[1:])
