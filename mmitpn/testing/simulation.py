"""A simulated accelerator: tensors that report the device ``sim:0`` and live on the CPU.

It shows on a machine without a GPU what a GPU would refuse and what it would wait for. Operators that mix tensors of
both devices fail, results equal those on the CPU (the same kernels, the same random numbers), and each time the host
would wait for the device is counted together with the line of code that asked for it::

    with simulated_device() as sim:
        model = model.to(sim.device)
        inputs, samples = inputs.to(sim.device), make_samples(..., device=sim.device)
        sim.reset()
        model(inputs, samples, mode='loss')
        sim.waits, sim.copies, sim.num_operators, sim.where

The device is one of torch's Python backends (torch 2.10 or later). The first :func:`simulated_device` of a process
renames torch's ``privateuseone`` backend to ``sim``. This holds for the whole process, cannot be undone, and has to
come before the first backward pass: use it in a process of its own. Tensors of the device are wrappers: custom C++
operators that do not pass torch's dispatcher, as those of mmcv's extension, do not run on them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Union, get_args
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from .host_waits import DeviceCounters, asking_code

NAME = 'sim'

# Operators whose result, or the size of it, the host has to know before it goes on.
WAITING = {
    '_local_scalar_dense': 'item',
    '_unique': 'unique',
    '_unique2': 'unique',
    'unique_dim': 'unique',
    'unique_consecutive': 'unique',
    'unique_dim_consecutive': 'unique',
    'bincount': 'bincount',
    'equal': 'equal',
    'masked_select': 'masked_select',
    'nms': 'nms',
    'nonzero': 'nonzero',
}
INDEXING = frozenset({'index', '_unsafe_index', 'index_put', 'index_put_', '_index_put_impl_', '_unsafe_index_put'})
# Operators besides the pointwise ones that take a CPU tensor without dimensions as a number.
TAKES_NUMBERS = frozenset({'fill', 'fill_', 'masked_fill', 'masked_fill_', 'index_fill', 'index_fill_'})


# --- tensors -------------------------------------------------------------------------------------------------------


class SimulatedTensor(Tensor):
    """A tensor of the device, around the CPU tensor ``elem`` with its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem: Tensor) -> SimulatedTensor:  # noqa: D102, PYI034 - documented by the class, which has no heirs
        with torch.inference_mode(elem.is_inference()):  # views of other tensors are none of inference mode
            tensor = Tensor._make_wrapper_subclass(
                cls,
                elem.size(),
                strides=elem.stride(),
                storage_offset=elem.storage_offset(),
                dtype=elem.dtype,
                device=torch.device(NAME, 0),
            )
        tensor.elem = elem
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        return _execute(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        del tensor_contents
        return f'{self.elem!r} on {self.device}'

    # Methods that torch implements above its dispatcher.

    @property
    def data(self) -> Tensor:
        """As in torch."""
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        Tensor.data.__set__(self, value)
        self.elem = value.elem

    def tolist(self) -> Any:
        """As in torch."""
        _record_wait('copy to host')
        return self.elem.tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        """As in torch."""
        kwargs.setdefault('device', self.device)
        return torch.tensor(data, dtype=self.dtype if dtype is None else dtype, **kwargs)

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_index_to_device(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_index_to_device(index), value)


class _TensorOf(type):
    """A type of tensors as ``torch.cuda.LongTensor`` is one: those of a dtype."""

    dtype: torch.dtype

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, SimulatedTensor) and instance.dtype == cls.dtype


class _SimulatedBoolTensor(metaclass=_TensorOf):
    dtype = torch.bool


class _SimulatedLongTensor(metaclass=_TensorOf):
    dtype = torch.long


def _index_to_device(index: Any) -> Any:
    """Copy lists and arrays of numbers that index a tensor, as torch does."""
    if isinstance(index, tuple):
        return tuple(_index_to_device(one) for one in index)
    if isinstance(index, list | range | np.ndarray):
        return torch.as_tensor(index, device=torch.device(NAME, 0))
    return index


# --- operators -----------------------------------------------------------------------------------------------------

_active: list[DeviceCounters] = []  # of the contexts that are entered, the innermost last


class _DispatchMode(TorchDispatchMode):
    """Sees the operators that have no tensor of the device among their arguments, such as factory functions."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if _is_composite(func):  # in inference mode torch does not take these apart by itself
            with self:
                return func.decompose(*args, **kwargs)
        return _execute(func, args, kwargs)


@functools.cache
def _is_composite(func: Any) -> bool:
    key = 'CompositeImplicitAutograd'
    return func.namespace == 'aten' and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)


def _record_wait(name: str) -> None:
    for sim in _active[-1:]:
        sim.record_wait(name, asking_code())


def _record_copy(name: str) -> None:
    for sim in _active[-1:]:
        sim.record_copy(name, asking_code())


def _execute(func: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """Run an operator on the CPU tensors that its arguments stand for."""
    name = func.overloadpacket.__name__
    if name in {'is_pinned', '_pin_memory'}:
        return _pinned(name, args[0])
    flat, _ = tree_flatten((args, kwargs))
    ours = [arg for arg in flat if isinstance(arg, SimulatedTensor)]
    device = kwargs.get('device')
    to_device = bool(ours) if device is None else torch.device(device).type == NAME
    if not ours and not to_device:
        return func(*args, **kwargs)

    hosts = [arg for arg in flat if isinstance(arg, Tensor) and not isinstance(arg, SimulatedTensor)]
    _check_devices(func, name, args, ours, hosts)
    _check_generator(name, kwargs.get('generator'))
    _record_events(name, args, kwargs, ours, hosts, to_device)
    for sim in _active[-1:]:
        if name != 'detach':  # autograd detaches wrappers when it saves and reads them
            sim.operators[name] += 1

    elems = tree_map_only(SimulatedTensor, lambda tensor: tensor.elem, (args, dict(kwargs)))
    if device is not None:
        elems[1]['device'] = torch.device('cpu')
    if kwargs.get('pin_memory'):
        elems[1]['pin_memory'] = False
    out = func(*elems[0], **elems[1])
    if torch.Tag.inplace_view in func.tags:
        Tensor.data.__set__(args[0], SimulatedTensor(args[0].elem))  # the shape has changed
    if name == 'copy_':
        return args[0]
    if not to_device:
        return out
    given = {id(tensor.elem): tensor for tensor in ours}  # in-place operators return what they were given
    return tree_map_only(Tensor, lambda elem: given[id(elem)] if id(elem) in given else SimulatedTensor(elem), out)


def _pinned(name: str, tensor: Tensor) -> Any:
    """Pinned memory needs an accelerator: here tensors are only marked."""
    if name == 'is_pinned':
        return getattr(tensor, 'marked_as_pinned', False)
    copy = tensor.clone()
    copy.marked_as_pinned = True
    return copy


def _check_devices(func: Any, name: str, args: tuple, ours: Sequence[Tensor], hosts: Sequence[Tensor]) -> None:
    """Raise RuntimeError, as CUDA's operators do, if tensors of both devices meet."""
    if not ours or not hosts or name in {'copy_', '_to_copy'}:
        return
    allowed: list[Tensor] = []
    if torch.Tag.pointwise in func.tags or name in TAKES_NUMBERS or name in INDEXING or name.startswith('_foreach_'):
        allowed += [tensor for tensor in hosts if tensor.dim() == 0]
    if name in INDEXING and isinstance(args[0], SimulatedTensor):
        allowed += [index for index in args[1] if index is not None]
    wrong = [tensor for tensor in hosts if not any(tensor is one for one in allowed)]
    if wrong:
        shapes = [tuple(tensor.shape) for tensor in wrong]
        raise RuntimeError(
            f'Expected all tensors to be on the same device, but {name} got tensors of shape {shapes} on the CPU and'
            f' {[tuple(tensor.shape) for tensor in ours]} on {ours[0].device}; create or move them to one device'
        )


def _check_generator(name: str, generator: torch.Generator | None) -> None:
    if generator is not None:
        raise RuntimeError(
            f'Expected a {NAME!r} device type for generator but {name} got {generator.device.type!r}; draw on the CPU'
            ' and copy, or leave the generator out'
        )


def _record_events(
    name: str,
    args: tuple,
    kwargs: Mapping[str, Any],
    ours: Sequence[Tensor],
    hosts: Sequence[Tensor],
    to_device: bool,
) -> None:
    """Count the waits and the copies of an operator."""
    if name in {'_to_copy', 'copy_'}:
        into_device = isinstance(args[0], SimulatedTensor) if name == 'copy_' else to_device
        if into_device and hosts:
            non_blocking = kwargs.get('non_blocking') or (name == 'copy_' and any(args[2:]))
            pinned = getattr(hosts[0], 'marked_as_pinned', False) and non_blocking
            _record_copy('copy to device from pinned memory' if pinned else 'copy to device')
        elif ours and not into_device:
            _record_wait('copy to host')
    elif name in WAITING:
        _record_wait(WAITING[name])
    elif name == 'repeat_interleave' and kwargs.get('output_size') is None:
        _record_wait('repeat_interleave without output_size')
    elif name == 'histc' and args[2:4] in {(), (0, 0)}:
        _record_wait('histc without a range')
    elif name in INDEXING:
        indices = [index for index in args[1] if index is not None]
        for _ in range(sum(not isinstance(index, SimulatedTensor) for index in indices)):
            _record_copy('index with a CPU tensor')
        puts = name not in {'index', '_unsafe_index'}
        if puts and not isinstance(args[2], SimulatedTensor):
            _record_copy('index_put with a CPU tensor')
        masks = any(index.dtype in {torch.bool, torch.uint8} for index in indices)
        accumulate = puts and bool(args[3:4] and args[3])
        if masks and not (puts and args[2].numel() == 1 and not accumulate):  # the latter is a masked_fill
            _record_wait('index with a mask')


# --- the backend ---------------------------------------------------------------------------------------------------


class _Backend:
    """The module ``torch.sim``: one device, whose random numbers come from the CPU's generator."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        """Do nothing: ``torch.manual_seed`` seeds the CPU's generator."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device: Any = NAME) -> Tensor:
        del device
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = NAME) -> None:
        del device
        torch.set_rng_state(state)

    def set_device(self, device: Any) -> None:
        del device

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        del device
        yield

    def synchronize(self, device: Any = None) -> None:
        del device
        _record_wait('synchronize')


# Operators that autocast runs in the lower precision, and in fp32, as on CUDA. Those that promote to the widest type of
# their arguments are left out: they do so without autocast, or fail.
LOWER_PRECISION = (
    'addbmm addmm addmv addr baddbmm bmm chain_matmul conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d'
    ' conv_transpose3d convolution linalg_multi_dot linalg_vecdot linear matmul mm mv prelu'
)
FULL_PRECISION = (
    'acos asin binary_cross_entropy_with_logits cdist cosh cosine_embedding_loss cosine_similarity cross_entropy_loss'
    ' cumprod cumsum dist erfinv exp expm1 group_norm hinge_embedding_loss huber_loss kl_div l1_loss layer_norm log'
    ' log10 log1p log2 log_softmax margin_ranking_loss mse_loss native_layer_norm nll_loss nll_loss2d norm'
    ' nuclear_norm pdist poisson_nll_loss pow prod reciprocal renorm rsqrt sinh smooth_l1_loss soft_margin_loss softmax'
    ' softplus sum tan triplet_margin_loss'
)


def _register_autocast() -> list[torch.library.Library]:
    """Give ``torch.autocast('sim')`` its operators; the libraries must be kept."""

    def lower(value: Any) -> Any:
        narrow = torch.get_autocast_dtype(NAME)
        cast = value.is_floating_point() and value.dtype != torch.float64 and value.device.type == NAME
        return value.to(narrow) if cast else value

    def full(value: Any) -> Any:
        return value.float() if value.dtype in {torch.float16, torch.bfloat16} and value.device.type == NAME else value

    def kernel(op: Any, cast: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(below):
                args, kwargs = tree_map_only(Tensor, cast, (args, kwargs))
                return op(*args, **kwargs)

        return run

    below = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    library = torch.library.Library('aten', 'IMPL')
    for names, cast in ((LOWER_PRECISION, lower), (FULL_PRECISION, full)):
        for packet in (getattr(torch.ops.aten, name) for name in names.split()):
            for overload in packet.overloads():
                if 'out' not in overload:
                    op = getattr(packet, overload)
                    library.impl(op, kernel(op, cast), 'AutocastPrivateUse1')
    others = torch.library.Library('_', 'IMPL')
    others.fallback(torch.library.fallthrough_kernel, 'AutocastPrivateUse1')
    return [library, others]


def _attention(
    real: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` by the kernel that the CPU takes; of itself torch would take none.

    The result lies in memory as the fused kernels of CUDA write it, with the heads next to the channels.
    """
    settings = {'dropout_p': dropout_p, 'is_causal': is_causal, 'scale': scale}
    given = [one for one in (query, key, value, attn_mask) if one is not None]
    if not all(isinstance(one, SimulatedTensor) for one in given) or enable_gqa:
        return real(query, key, value, attn_mask, **settings, enable_gqa=enable_gqa)
    if torch.is_autocast_enabled(NAME):
        query, key, value = (one.to(torch.get_autocast_dtype(NAME)) for one in (query, key, value))
    mask = attn_mask
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float('-inf'))
        mask = mask.to(query.dtype)
    elems = [None if one is None else one.elem for one in (query, key, value, mask)]
    fused = torch._fused_sdp_choice(*elems, **settings) == torch.nn.attention.SDPBackend.FLASH_ATTENTION.value
    if not fused or (mask is not None and mask.requires_grad):
        return real(query, key, value, attn_mask, **settings)
    del settings['dropout_p']  # it is 0
    out = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=mask, **settings)[0]
    return out.transpose(1, 2).contiguous().transpose(1, 2)


@functools.cache
def _register_backend() -> list[torch.library.Library]:
    """Name the backend; what is returned has to be kept, as the cache does."""
    if not hasattr(backend_registration, '_setup_privateuseone_for_python_backend'):
        raise RuntimeError(
            f'the simulated device needs the Python backends of torch 2.10 or later; this is torch {torch.__version__}'
        )
    backend_registration._setup_privateuseone_for_python_backend(rename=NAME, backend_module=_Backend())
    libraries = _register_autocast()
    _check_autograd()
    return libraries


def _check_autograd() -> None:
    """Raise RuntimeError if autograd's engine started without the device."""
    with _DispatchMode():
        try:
            torch.ones((), device=NAME, requires_grad=True).mul(1).backward()
        except RuntimeError as error:
            raise RuntimeError(
                'the simulated device must be entered before the first backward pass of the process, whose engine keeps'
                ' the devices that it finds; this process has had one'
            ) from error


def _extend_instance_data(stack: ExitStack) -> None:
    """Let mmengine's ``InstanceData`` take the device's tensors as indices, for which it has a list of types."""
    module = sys.modules.get('mmengine.structures.instance_data')
    if module is not None:
        masks = Union[(*get_args(module.BoolTypeTensor), _SimulatedBoolTensor)]
        types = Union[(*get_args(module.IndexType), _SimulatedBoolTensor, _SimulatedLongTensor)]
        stack.enter_context(patch.multiple(module, BoolTypeTensor=masks, IndexType=types))


def _on_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _wrap_constructor(name: str) -> Callable[..., Tensor]:
    """``torch.tensor`` or ``torch.as_tensor``, which read Python data above the dispatcher."""
    real = getattr(torch, name)

    @functools.wraps(real)
    def construct(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, SimulatedTensor):
            grad = kwargs.pop('requires_grad', False)
            out = data.to(
                device=data.device if device is None else device, dtype=kwargs.pop('dtype', None) or data.dtype
            )
            return out if name == 'as_tensor' else out.detach().clone().requires_grad_(grad)
        data = _to_numbers(data)
        if not _on_device(device):
            return real(data, *args, device=device, **kwargs)
        grad = kwargs.pop('requires_grad', False)
        _record_copy(name)
        return SimulatedTensor(real(data, *args, **kwargs)).requires_grad_(grad)

    return construct


def _to_numbers(data: Any) -> Any:
    """Read tensors of the device within lists, each of which is a wait."""
    if isinstance(data, SimulatedTensor):
        return data.item() if data.dim() == 0 else data.tolist()
    if isinstance(data, list | tuple):
        return type(data)(map(_to_numbers, data)) if type(data) in {list, tuple} else data
    return data


@contextmanager
def simulated_device() -> Iterator[DeviceCounters]:
    """Simulate an accelerator, see the module.

    Modules and tensors are moved with ``.to('sim')``; parameters stay the same objects, as when moved to a GPU.

    Yields:
        The device and its counters.

    Raises:
        RuntimeError: If torch is older than 2.10.
    """
    _register_backend()
    from torch.nn import functional
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    sim = DeviceCounters(torch.device(NAME, 0))
    foreach_types = [*optimizer._foreach_supported_types, SimulatedTensor]
    swap = torch.__future__.get_swap_module_params_on_conversion()
    with ExitStack() as stack:
        for name in ('tensor', 'as_tensor'):
            stack.enter_context(patch.object(torch, name, _wrap_constructor(name)))
        for module in (optimizer, _foreach_utils):
            if hasattr(module, '_foreach_supported_types'):
                stack.enter_context(patch.object(module, '_foreach_supported_types', foreach_types))
        _extend_instance_data(stack)
        real = functional.scaled_dot_product_attention
        stack.enter_context(
            patch.object(functional, 'scaled_dot_product_attention', functools.partial(_attention, real))
        )
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swap)
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.enter_context(_DispatchMode())
        _active.append(sim)
        stack.callback(_active.remove, sim)
        yield sim
