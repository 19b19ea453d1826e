"""What a training loop needs from fs3; docs/training.md shows it at work. Needs PyTorch.

RecordDataset     the records of a record file, a batch in one call
FilesDataset      plain files
ShardDataset      the samples in WebDataset's tar shards
ResumableLoader   a DataLoader with a global shuffle, whose position is saved and loaded
ShuffledSampler   the order alone, for other loaders
stack, ragged     records into tensors, without a copy
"""

from .adapters.torch_data import RaggedBatch, RecordBatch, RecordDataset, ragged, stack
from .adapters.torch_files import FilesDataset, ShardDataset
from .adapters.torch_loader import ResumableLoader
from .records.shuffle import Permutation, ShuffledSampler

__all__ = [
    "FilesDataset",
    "Permutation",
    "RaggedBatch",
    "RecordBatch",
    "RecordDataset",
    "ResumableLoader",
    "ShardDataset",
    "ShuffledSampler",
    "ragged",
    "stack",
]
