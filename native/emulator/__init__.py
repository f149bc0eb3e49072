"""Runs MSL on the host: the very text that the Metal host hands to the driver. See README.md."""

from emulator.build import CompileError, compile_kernels
from emulator.machine import Buffer, Fault, Launch, Machine, Mode, Order
from emulator.msl import translate
from emulator.tokens import Refused

__all__ = [
    "Buffer",
    "CompileError",
    "Fault",
    "Launch",
    "Machine",
    "Mode",
    "Order",
    "Refused",
    "compile_kernels",
    "translate",
]
