"""What DeepSpeed would train wrong or fail at, found before it begins."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from itwinai.compat import torch as compat_torch
from itwinai.errors import ConfigurationError

ELSEWHERE = "Use the strategy 'ddp' or 'horovod'"


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse optimizers that evaluate the loss several times in a step.

    Raises:
        ConfigurationError: it is one.
    """
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigurationError(
            f"DeepSpeed does not support the optimizer {type(optimizer).__name__}, which evaluates the loss several "
            f"times in each step: an engine steps once per evaluation. {ELSEWHERE}."
        )


def check_parameters(module: nn.Module, stage: int, precision: torch.dtype) -> None:
    """Refuse parameters that ZeRO cannot put into its flat buffers.

    Args:
        module: the module.
        stage: the ZeRO stage.
        precision: in which the engine computes.

    Raises:
        ConfigurationError: there is one.
    """
    if stage == 0:
        return
    named = list(module.named_parameters())
    trained = [(name, one) for name, one in named if one.requires_grad]
    sharded = "flattens all parameters into one buffer of real numbers"
    for name, parameter in named:
        if parameter.is_complex() and (parameter.requires_grad or stage == 3):
            raise ConfigurationError(
                f"DeepSpeed does not support the complex parameter {name} in stage {stage}, which {sharded}: its "
                f"imaginary part would be lost. Keep it as a real parameter with torch.view_as_real, or train with "
                "'deepspeed_stage_0' or 'ddp'."
            )
        if stage == 3 and parameter.numel() == 0 and not hasattr(parameter, "ds_id"):
            raise ConfigurationError(
                f"DeepSpeed does not support the empty parameter {name} in stage 3, which shards each parameter over "
                "the workers. Use 'deepspeed_stage_2', or make it a buffer."
            )
    for name, parameter in trained:
        if parameter.dtype == torch.float64 or precision == torch.float32 and parameter.dtype != trained[0][1].dtype:
            raise ConfigurationError(
                f"DeepSpeed does not support the parameter {name} of {parameter.dtype} in stage {stage}, which "
                f"{sharded} of 32 bits. Train parameters of one type, {torch.float32}, or use 'deepspeed_stage_0' or "
                "'ddp'."
            )
    for name, submodule in module.named_modules():
        if stage == 3 and (isinstance(submodule, torch.jit.ScriptModule) or compat_torch.is_compiled(submodule)):
            kind = "scripted" if isinstance(submodule, torch.jit.ScriptModule) else "compiled"
            raise ConfigurationError(
                f"DeepSpeed does not support the {kind} layer {name} in stage 3, which gathers parameters in hooks "
                f"that a {kind} layer does not have. Use 'deepspeed_stage_2', or compile the layer in place, with "
                "layer.compile()."
            )
        if isinstance(submodule, (nn.Embedding, nn.EmbeddingBag)) and submodule.sparse:
            raise ConfigurationError(
                f"DeepSpeed does not support the sparse gradients of {name} in stage {stage}. Make the embedding with "
                "sparse=False, or use the strategy 'ddp'."
            )


def refuse_second_derivatives() -> None:
    """Refuse to differentiate a gradient.

    Raises:
        ConfigurationError: always.
    """
    raise ConfigurationError(
        "DeepSpeed does not support second derivatives in training (create_graph=True) in stage 3: when the gradient "
        "is differentiated, the parameters are sharded already. Use 'deepspeed_stage_2', 'ddp' or 'horovod'."
    )
