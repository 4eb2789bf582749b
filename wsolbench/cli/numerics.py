"""Options of number formats and kernels, as one argument `numerics` of a command."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import get_args

import click

from wsolbench.cli.groups import option
from wsolbench.cli.options import together
from wsolbench.methods import Numerics
from wsolbench.methods.numerics import cpu_has_bfloat16
from wsolbench.ranges import hints_of

_CHOICES = {item.name: get_args(hints_of(Numerics)[item.name]) for item in fields(Numerics)}

numerics_options = together(
    "numerics",
    Numerics,
    option(
        "Execution",
        "--amp",
        type=click.Choice(_CHOICES["amp"]),
        default="auto",
        show_default=True,
        help="Mixed precision of training and evaluation. auto: only training on CUDA, in bf16 if the GPU "
        "has it, else in fp16. fp16 needs CUDA.",
    ),
    option(
        "Execution",
        "--precision",
        type=click.Choice(_CHOICES["precision"]),
        default="auto",
        show_default=True,
        help="Float32 products on CUDA, outside of mixed precision: ieee is exact, tf32 is faster, auto "
        "keeps torch's settings.",
    ),
    option(
        "Execution",
        "--compile",
        is_flag=True,
        help="Compile the network with torch.compile. Takes a minute at the start, and changes the last bits "
        "of the results.",
    ),
    option(
        "Execution",
        "--deterministic/--no-deterministic",
        default=True,
        show_default=True,
        help="Deterministic algorithms of cuDNN, or the fastest ones. On CUDA, gradients of resizing and "
        "scattering add up in any order, so the last bits of two runs can differ in both cases.",
    ),
)


def check_device(device: str, numerics: Numerics) -> None:
    """Raise `UsageError` for a device that is not there, and for formats that it lacks.

    Commands call it before they read data, which can take minutes. Bfloat16 on a CPU that emulates it is
    slow but right, so that is only said.
    """
    if device == "auto" and numerics == Numerics():
        return
    from wsolbench.methods.device import pick_device

    picked = pick_device(device)
    replace(numerics, compile=False).check(picked)
    if numerics.amp == "bf16" and picked.type == "cpu" and not cpu_has_bfloat16():
        click.echo(
            "slow: this processor has no fast bfloat16 (AVX-512 is missing), so --amp bf16 can take several "
            "times as long as --amp off",
            err=True,
        )
