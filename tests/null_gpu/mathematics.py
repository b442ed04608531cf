"""What cuDNN and cuSOLVER do, on a GPU that computes nothing: results of the right shape, type and layout, and how many
convolutions were asked for."""

from typing import Any

import torch
from torch import Tensor

asked = {"convolutions": 0}
_aten = torch.library.Library("aten", "IMPL")


def _like(tensor: Tensor, wanted: bool = True) -> Tensor | None:
    return torch.empty_like(tensor, memory_format=torch.channels_last) if wanted else None


def convolution(images: Tensor, weight: Tensor, padding: Any, stride: Any, dilation: Any, *_: Any) -> Tensor:
    asked["convolutions"] += 1
    extents = zip(images.shape[2:], weight.shape[2:], padding, stride, dilation, strict=True)
    size = [(n + 2 * pad - gap * (k - 1) - 1) // step + 1 for n, k, pad, step, gap in extents]
    shape = (len(images), len(weight), *size)
    return torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=torch.channels_last)


def convolution_backward(gradient: Tensor, images: Tensor, weight: Tensor, biases: Any, *rest: Any) -> tuple[Any, ...]:
    of_images, of_weight, of_bias = rest[-1]
    asked["convolutions"] += of_images + of_weight
    bias = gradient.new_empty(biases) if of_bias else None
    return _like(images, of_images), _like(weight, of_weight), bias


def batch_norm(images: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
    saved = weight.new_empty(images.shape[1])
    return torch.empty_like(images), saved, torch.empty_like(saved), images.new_empty(0, dtype=torch.uint8)


def batch_norm_backward(images: Tensor, gradient: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, ...]:  # noqa: ARG001
    return torch.empty_like(images), torch.empty_like(weight), torch.empty_like(weight)


def eigenvalues(matrix: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return matrix.new_zeros(len(matrix)), matrix.new_empty(0)


def nonzero(tensor: Tensor) -> Tensor:
    """All are: the host reads how many, and would read none."""
    return tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.int64)


torch.profiler.profiler.supported_activities = lambda: {torch.profiler.ProfilerActivity.CPU}  # NVIDIA's would crash
torch.backends.cuda.enable_cudnn_sdp(False)  # attention by torch's own kernels
_aten.impl("_linalg_eigh", eigenvalues, "CUDA")
_aten.impl("nonzero", nonzero, "CUDA")
_aten.impl("cudnn_convolution", convolution, "CUDA")
_aten.impl("convolution_backward", convolution_backward, "CUDA")
_aten.impl("cudnn_batch_norm", batch_norm, "CUDA")
_aten.impl("cudnn_batch_norm_backward", batch_norm_backward, "CUDA")
