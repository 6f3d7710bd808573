"""Data sets, images at the size of a run, and partitions among clients."""

from common.data.datasets import open_source
from common.data.labels import class_labels, labels_in, split_by
from common.data.partition import label_histogram, partition
from common.data.source import ArraySource, ImageSource, load_images, to_pixels, to_unit

__all__ = [
    "ArraySource",
    "ImageSource",
    "class_labels",
    "label_histogram",
    "labels_in",
    "load_images",
    "open_source",
    "partition",
    "split_by",
    "to_pixels",
    "to_unit",
]
