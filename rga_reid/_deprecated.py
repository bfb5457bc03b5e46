"""Names of version 1, which still work: old import paths, class and function names, and argument names.

Each use warns with a ``DeprecationWarning`` that says what to write instead.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from rga_reid.errors import InputError

_Function = TypeVar("_Function", bound=Callable[..., Any])
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

#: 1.0 package -> 1.0 name -> where it is now
ALIASES: dict[str, dict[str, str]] = {
    "rga_reid.attention": {"MECHANISMS": "rga_reid.attention.ATTENTION_MODULES"},
    "rga_reid.evaluation": {"NoCameras": "rga_reid.evaluation.IgnoreCameras"},
    "rga_reid.models": {
        "Mirrored": "rga_reid.models.FlipTTA",
        "Published": "rga_reid.models.ConvertedModel",
    },
    "rga_reid.retrieval": {
        "Erasure": "rga_reid.gallery.RemovalResult",
        "Gallery": "rga_reid.gallery.Gallery",
        "GalleryBuilder": "rga_reid.gallery.GalleryBuilder",
        "ModelRecord": "rga_reid.inference.ModelFingerprint",
        "Verification": "rga_reid.inference.Verification",
        "extract_features": "rga_reid.inference.extract_features",
        "stream_features": "rga_reid.inference.stream_features",
        "verify": "rga_reid.inference.verify",
    },
}


#: 1.0 name -> name of an argument of ``RGA``, which recipes and checkpoints of 1.0 contain
RGA_ARGUMENTS = {"neutral_start": "zero_init_gate"}


def module_getattr(package: str) -> Callable[[str], Any]:
    """Return a module ``__getattr__`` that resolves the 1.0 names of a package."""

    def getattribute(name: str) -> Any:
        target = ALIASES[package].get(name)
        if target is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warnings.warn(f"{package}.{name} is now {target}", DeprecationWarning, stacklevel=2)
        module, _, attribute = target.rpartition(".")
        return getattr(importlib.import_module(module), attribute)

    return getattribute


def rename_arguments(**new_names: str) -> Callable[[_Function], _Function]:
    """Return a decorator that makes a function accept the 1.0 names of its keyword arguments.

    Args:
        **new_names: the name of the argument now, by its 1.0 name.

    Raises:
        TypeError: when the decorated function is called with both names of an argument.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for old, new in new_names.items():
                if old in kwargs:
                    name = function.__qualname__
                    if new in kwargs:
                        raise TypeError(f"{name}: got both {new!r} and its old name {old!r}")
                    warnings.warn(f"{name}: {old!r} is now {new!r}", DeprecationWarning, stacklevel=2)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        wrapper.renamed_arguments = new_names  # type: ignore[attr-defined]
        return wrapper  # type: ignore[return-value]

    return decorate


def renamed_method(old: str, new: str) -> Callable[..., Any]:
    """Return a method that warns and calls the renamed one.

    Args:
        old: class and 1.0 name, such as ``Gallery.verify``.
        new: name of the method now.
    """

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(self, new)(*args, **kwargs)

    method.__name__ = old.rpartition(".")[2]
    method.renamed_to = new  # type: ignore[attr-defined]
    method.__doc__ = f"Call ``{new}``, its name now."
    return method


def renamed_property(old: str, new: str) -> property:
    """Return a property that warns and reads the renamed one; see ``renamed_method``."""

    def attribute(self: Any) -> Any:
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(attribute, doc=f"``{new}``, its name now.")


#: 1.0 option of ``train`` -> its name now; ``init_args`` is left out of the names
OPTIONS = {
    "data.held_out": "data.val_fraction",
    "data.held_out_seed": "data.val_seed",
    "data.visits": "data.epoch",
    "model.depth": "model.backbone",
    "model.input_sizes": "model.resolution_schedule",
    **{f"model.attention.{old}": f"model.attention.{new}" for old, new in RGA_ARGUMENTS.items()},
}
#: option -> 1.0 value -> its name now
VALUES = {
    "data.epoch": {"identity": "identities", "image": "images"},
    "model.loss.triplets": {"pooled": "pre_neck", "embedded": "post_neck"},
}
_SECTIONS = {"", "data", "model", "model.attention", "model.loss"}  # that contain such options


def rename_option(name: str, value: Any = None, *, warn: bool = True) -> tuple[str, Any]:
    """Return the current name and value of an option of ``train``, such as ``data.held_out``."""
    section, _, key = name.rpartition(".")
    new_key = OPTIONS.get(name.replace(".init_args", "", 1), key).rpartition(".")[2]
    new = f"{section}.{new_key}" if section else new_key
    known = VALUES.get(new.replace(".init_args", "", 1), {})
    new_value = known.get(value, value) if isinstance(value, str) else value
    if name == "model.depth":
        return new, f"resnet{value}"  # an alias that stays
    if warn and (new, new_value) != (name, value):
        old, now = (name, new) if name != new else (f"{name} {value}", f"{new} {new_value}")
        warnings.warn(f"{old} is now called {now}", FutureWarning, stacklevel=2)
    return new, new_value


def rename_options(options: Mapping[str, Any], section: str = "", *, warn: bool = True) -> dict[str, Any]:
    """Return nested options of ``train`` with their current names.

    Args:
        options: a recipe, or a part of one.
        section: where the part belongs, such as ``data``.
        warn: false for what a program has written, which the user cannot change.

    Raises:
        InputError: an option is given by its old and its new name.
    """
    renamed: dict[str, Any] = {}
    for key, value in options.items():
        name = f"{section}.{key}" if section else str(key)
        new, value = rename_option(name, value, warn=warn)
        new_key = key if new == name else new.rpartition(".")[2]
        if new_key in renamed or (new_key != key and new_key in options):
            raise InputError(f"{name}: is the old name of {new}, which is given too")
        if isinstance(value, Mapping) and name.replace(".init_args", "", 1) in _SECTIONS:
            value = rename_options(value, name, warn=warn)
        renamed[new_key] = value
    return renamed


def rename_words(words: Sequence[str]) -> list[str]:
    """Return the words of a ``train`` command line with the current names of options."""
    import yaml

    renamed = list(words)
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if not option.startswith(("--data", "--model")):
            continue
        given = value if equals else words[number + 1] if number + 1 < len(words) else ""
        if given.lstrip().startswith("{"):
            try:
                content = yaml.safe_load(given)
            except yaml.YAMLError:
                continue  # the parser reports it
            renamed_content = rename_options(content, option[2:]) if isinstance(content, dict) else content
            new, new_value = option, given
            if renamed_content != content:
                new_value = yaml.safe_dump(renamed_content, default_flow_style=True, width=10**6).strip()
        else:
            new, new_value = rename_option(option[2:], given)
            new = f"--{new}"
        if equals:
            renamed[number] = f"{new}={new_value}"
        else:
            renamed[number] = new
            if number + 1 < len(words):
                renamed[number + 1] = new_value
    return renamed


def rename_option_arguments(
    section: str,
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Return a decorator for a function that accepts the 1.0 names of its keyword arguments.

    Args:
        section: prefix of the arguments in ``OPTIONS``, such as ``data``.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            return function(*args, **rename_options(kwargs, section))

        names = {old: new.rpartition(".")[2] for old, new in OPTIONS.items() if old.startswith(f"{section}.")}
        wrapper.renamed_arguments = {old.rpartition(".")[2]: new for old, new in names.items()}  # type: ignore[attr-defined]
        return wrapper

    return decorate


def accept_flat_arguments(builder: str) -> Callable[[Callable[Arguments, None]], Callable[Arguments, None]]:
    """Return a decorator for a constructor that took the arguments of a function in version 1.

    Args:
        builder: function in the same module that builds an object of the class, which has the arguments of the
            constructor as attributes.
    """

    def decorate(init: Callable[Arguments, None]) -> Callable[Arguments, None]:
        own = [name for name in inspect.signature(init).parameters if name != "self"]

        @functools.wraps(init)
        def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            self, *given = args
            if own[0] in kwargs or (given and callable(given[0])):
                return init(*args, **kwargs)
            what = f"{type(self).__name__}: give a {own[0]}, or use {builder} for these arguments"
            warnings.warn(what, DeprecationWarning, stacklevel=2)
            built = getattr(sys.modules[init.__module__], builder)(*given, **kwargs)
            keywords: dict[str, Any] = {name: getattr(built, name) for name in own}
            return init(self, **keywords)  # type: ignore[arg-type]

        wrapper.accepts_arguments_of = builder  # type: ignore[attr-defined]
        return wrapper

    return decorate


_DATASETS = ("market1501", "cuhk03_labeled", "cuhk03_detected", "msmt17")
_ATTENTION = {"baseline": None} | {
    name: name for name in ("rga_s", "rga_c", "pam", "cam", "dual", "nonlocal", "criss_cross", "se", "cbam")
}
_EMA = {"class_path": "rga_reid.training.EMA", "init_args": {"decay": 0.999}}

#: name of a 1.0 recipe -> the recipe that replaces it, and options on top of that
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "released": ("market1501/rga_sc", {}),
    "fast": ("market1501/rga_sc_fast", {}),
    **{
        f"{dataset}/{name}": (f"{dataset}/rga_sc", {"model": {"attention": attention}})
        for dataset in _DATASETS
        for name, attention in _ATTENTION.items()
    },
    **{
        f"{dataset}/rga_sc_fast": ("market1501/rga_sc_fast", {"data": {"dataset": dataset}})
        for dataset in _DATASETS[1:]
    },
    "market1501/rga_sc_accumulated": (
        "market1501/rga_sc",
        {"data": {"identities_per_batch": 8}, "trainer": {"accumulate_grad_batches": 2}},
    ),
    "market1501/rga_sc_averaged": ("market1501/rga_sc", {"trainer": {"callbacks": [_EMA]}}),
    "market1501/rga_sc_bfloat16": ("market1501/rga_sc", {"trainer": {"precision": "bf16-mixed"}}),
    "market1501/rga_sc_checkpointed": ("market1501/rga_sc", {"model": {"checkpointing": True}}),
    "market1501/rga_sc_compiled": ("market1501/rga_sc", {"model": {"compile": True}}),
    "market1501/rga_sc_float16": ("market1501/rga_sc", {"trainer": {"precision": "16-mixed"}}),
}


def current_arguments(function: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a class or a partial of one, read from a file of 1.0, under their names now."""
    names = getattr(getattr(function, "func", function).__init__, "renamed_arguments", {})
    return {names.get(name, name): value for name, value in options.items()}
