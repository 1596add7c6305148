"""Labelled images with stable ids: embedded digits, torchvision's sets, folders and arrays."""

from robench.datasets.arrays import ArrayDataset
from robench.datasets.base import Dataset, Subset, hold_out
from robench.datasets.catalogue import DATASETS, load_dataset, load_training_splits
from robench.datasets.image_files import FolderDataset
from robench.datasets.preprocessing import Preprocessing
from robench.datasets.torch_sources import from_torch

__all__ = [
    "DATASETS",
    "ArrayDataset",
    "Dataset",
    "FolderDataset",
    "Preprocessing",
    "Subset",
    "from_torch",
    "hold_out",
    "load_dataset",
    "load_training_splits",
]
