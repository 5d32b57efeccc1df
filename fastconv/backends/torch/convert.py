"""``convert(model)``: a model's convolutions and poolings run on fastconv; ``revert`` undoes it, ``explain`` tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from .folding import Fold
from .layers import CONVERTED, Layer, State, _Convolution
from .rewriting import Folding, Rewritten, called, graphs, rewritten

Model = TypeVar("Model", bound=nn.Module)


def convert(model: Model, *, fold: bool = True) -> Model:
    """Let fastconv run a model's convolutions and poolings; returns the model itself, changed.

    >>> import torch
    >>> from torch import nn
    >>> from fastconv.backends import torch as fct
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)).eval()
    >>> expected = model(torch.ones(1, 3, 10, 10))
    >>> with torch.inference_mode():
    ...     y = fct.convert(model)(torch.ones(1, 3, 10, 10))
    >>> torch.allclose(y, expected, atol=1e-5)
    True
    >>> print(fct.explain(model))
    0  Conv2d       fastconv: ...; with 1, 2
    1  BatchNorm2d  folded into 0
    2  ReLU         folded into 0
    3  MaxPool2d    fastconv

    Every ``Conv``, ``ConvTranspose``, ``MaxPool``, ``AvgPool``, ``LPPool``, ``AdaptiveMaxPool``, ``AdaptiveAvgPool``
    and ``MaxUnpool`` module of one to three dimensions becomes a subclass of what it was. Parameters, ``state_dict``,
    hooks and everything else stay. In eval mode and without gradients a convolution keeps its weights packed, until a
    parameter changes.

    Parameters
    ----------
    model : any module; changed in place.
    fold : whether convolutions also do the work of the batch normalisation and the activation that alone take their
        output, in eval mode and without gradients. The modules' ``forward`` are traced once to find them.

    Returns
    -------
    The model.

    Raises
    ------
    TypeError : model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model must be a torch.nn.Module, got {type(model).__name__}")
    revert(model)
    for module in model.modules():
        if type(module) in CONVERTED and why_left(module) is None:
            module.__class__ = CONVERTED[type(module)]
            module.__dict__["_fastconv"] = State()
    if fold:
        _fold(model)
    return model


def _fold(model: nn.Module) -> None:
    found, reasons = graphs(model)
    for module, graph in found.items():
        if graph.folds or graph.rows:
            kind: Any = type(module)
            module.__class__ = rewritten(kind)
            module.__dict__["_fastconv"] = Folding(graph)
    for module, reason in reasons.items():
        for child in called(module):
            if isinstance(child, _Convolution):
                child._state().unfolded = reason


def revert(model: Model) -> Model:
    """Undo :func:`convert`: every module is of PyTorch's class again; returns the model itself.

    >>> from torch import nn
    >>> from fastconv.backends import torch as fct
    >>> type(fct.revert(fct.convert(nn.MaxPool2d(2)))) is nn.MaxPool2d
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"revert: model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        kind = type(module)
        if issubclass(kind, Rewritten):
            module.__class__ = kind.fastconv_base
        elif kind in _THEIRS:
            module.__class__ = _THEIRS[kind]
        elif parametrize.is_parametrized(module) and kind.__bases__[0] in _THEIRS:  # a class of its own, after convert
            kind.__bases__ = (_THEIRS[kind.__bases__[0]],)
        module.__dict__.pop("_fastconv", None)
    return model


_THEIRS: dict[type, type[nn.Module]] = {ours: theirs for theirs, ours in CONVERTED.items()}


def why_left(module: nn.Module) -> str | None:
    """Why a convolution or pooling module is not converted; None where it is, can be, or is neither."""
    if isinstance(module, Layer):
        return None
    kind = next((theirs.__name__ for theirs in CONVERTED if isinstance(module, theirs)), None)
    if kind is None:
        return None
    if parametrize.is_parametrized(module):
        return "its parameters are computed (torch.nn.utils.parametrize); remove the parametrization, then convert"
    if type(module) not in CONVERTED:
        return f"a subclass of {kind}, whose forward may be its own"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    if "weight" not in module._parameters and hasattr(module, "kernel_size") and kind.startswith("Conv"):
        return "its weight is computed by a hook (weight_norm, spectral_norm, pruning); remove the hook, then convert"
    return None


# ------------------------------------------------------------------------------------------------------------ explain


@dataclass(frozen=True)
class Line:
    """What runs one module."""

    name: str
    kind: str
    runs: str


@dataclass(frozen=True)
class Report:
    """What :func:`explain` found, a line a module; printable."""

    lines: tuple[Line, ...]

    def __str__(self) -> str:
        if not self.lines:
            return "no convolution and no pooling"
        name, kind = (max(len(getattr(line, key)) for line in self.lines) for key in ("name", "kind"))
        return "\n".join(f"{line.name:<{name}}  {line.kind:<{kind}}  {line.runs}" for line in self.lines)


def explain(model: nn.Module) -> Report:
    """Say for every convolution and pooling of a model what runs it, what it does besides, or why it is PyTorch's.

    >>> import torch
    >>> from torch import nn
    >>> from fastconv.backends import torch as fct
    >>> class Own(nn.Conv2d):
    ...     pass
    >>> print(fct.explain(fct.convert(nn.Sequential(nn.Conv2d(3, 8, 3), Own(8, 8, 3)))))
    0  Conv2d  fastconv, not called yet
    1  Own     PyTorch: a subclass of Conv2d, whose forward may be its own

    Kernels are those of the plans that calls have made.

    Raises
    ------
    TypeError : model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: model must be a torch.nn.Module, got {type(model).__name__}")
    names: dict[Any, str] = {}
    for name, module in model.named_modules():
        names[module] = name or "(model)"
    folded: dict[nn.Module, list[str]] = {}
    folds: dict[nn.Module, Fold] = {}
    for module in names:
        for fold in _folds(module):
            if folds.setdefault(fold.convolution, fold) is fold:  # that of the outermost module
                for follower in fold.followers:
                    folded.setdefault(follower, []).append(names[fold.convolution])
    lines = []
    for module, name in names.items():
        if isinstance(module, Layer):
            runs = _runs(module, folds.get(module), names)
        elif module in folded:
            runs = f"folded into {', '.join(folded[module])}"
        elif isinstance(module, Rewritten) and module.__dict__["_fastconv"].reason is not None:
            runs = f"nothing folded: {module.__dict__['_fastconv'].reason}"
        elif type(module) in CONVERTED:
            runs = f"PyTorch: {why_left(module) or 'not converted'}"
        elif (reason := why_left(module)) is not None:
            runs = f"PyTorch: {reason}"
        else:
            continue
        lines.append(Line(name, type(module).__name__, runs))
    return Report(tuple(lines))


def _folds(module: nn.Module) -> list[Fold]:
    graph = module.__dict__["_fastconv"].graph if isinstance(module, Rewritten) else None
    return [] if graph is None else graph.folds


def _taken(fold: Fold, names: dict[Any, str]) -> list[str]:
    activation = fold.activation
    return [
        *([] if fold.norm is None else [names[fold.norm]]),
        *([] if fold.add is None else ["the residual"]),
        *([] if activation is None else [fold.function or names[activation]]),
    ]


def _runs(module: Layer, fold: Fold | None, names: dict[Any, str]) -> str:
    state = module._state()
    kernels = list(dict.fromkeys(p.plan.algorithm for p in state.plans.values() if p.plan is not None))
    parts = [f"fastconv: {', '.join(kernels)}" if kernels else "fastconv"]
    if state.operators and isinstance(module, _Convolution):
        parts.append("through operators (gradients, training, no plan)")
    if not kernels and not state.operators:
        parts = ["PyTorch" if state.reason else "fastconv, not called yet"]
    if fold is not None:
        parts.append("with " + ", ".join(_taken(fold, names)))
    if state.unfolded is not None:
        parts.append(f"nothing folded: {state.unfolded}")
    if state.reason is not None:
        parts.append(f"the latest call left to PyTorch: {state.reason}")
    return "; ".join(parts)
