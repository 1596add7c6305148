"""How long all corruptions take at all severities: processor seconds.

python benchmarks/corruptions.py
"""

import time

import torch

from robench.corruptions import corrupt, corruptions_for
from robench.datasets import load_dataset
from robench.records.corruptions import SEVERITIES
from robench.seeding import sample_keys

N = 500


def main() -> None:
    torch.set_num_threads(1)
    data = load_dataset("digits", n=N)
    inputs, keys = data.batch(range(len(data))), sample_keys(0, data.sample_ids)
    began = time.process_time()
    for name in corruptions_for(inputs.shape[1]):
        started = time.process_time()
        for severity in SEVERITIES:
            corrupt(inputs, keys, name, severity)
        print(f"{name:20} {time.process_time() - started:6.2f} s")
    print(f"{'all':20} {time.process_time() - began:6.2f} s for {len(data)} digits")


if __name__ == "__main__":
    main()
