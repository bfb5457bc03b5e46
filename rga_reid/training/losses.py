"""Losses of the recipes, and sums of losses that a recipe lists by class path."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor, nn

from rga_reid._deprecated import rename_option_arguments
from rga_reid.errors import InputError, check_choice, did_you_mean, short_repr
from rga_reid.inputs import is_number, truncate
from rga_reid.models import TrainingOutput
from rga_reid.runtime import import_class

#: fields of ``TrainingOutput`` that a loss may be computed on
FIELDS = ("pre_neck", "post_neck", "logits")
Field = Literal["pre_neck", "post_neck", "logits"]


class BatchHardTripletLoss(nn.Module):
    """Triplet loss of the hardest positive and negative (Hermans et al., arXiv 1703.07737, eq. 5).

    Uses the Euclidean distance and the mean over all anchors, as the published recipe. The defaults of
    pytorch-metric-learning normalise features, and average over anchors with a loss above 0 only.

    Args:
        margin: margin between the distances; None for the soft margin ``log(1 + exp(d_p - d_n))``.
        normalize: compare L2-normalised features.
        scale: factor of the features. The soft margin depends on it: among large distances it ignores all but
            the hardest triplets, among small ones it treats all alike.

    Raises:
        InputError: ``margin`` is negative or not finite, or ``scale`` is not greater than 0.
    """

    def __init__(self, margin: float | None = 0.3, normalize: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        if margin is not None and not 0 <= margin < math.inf:
            raise InputError(f"margin: expected a number of at least 0 or null, got {margin}")
        if not 0 < scale < math.inf:
            raise InputError(f"scale: expected a number greater than 0, got {scale}")
        self.normalize, self.scale = normalize, float(scale)
        distance = LpDistance(normalize_embeddings=False, p=2)
        self.miner = BatchHardMiner(distance=distance)
        self.loss = TripletMarginLoss(
            margin=0.0 if margin is None else margin,
            smooth_loss=margin is None,
            distance=distance,
            reducer=MeanReducer(),
        )

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of ``(n, d)`` features with ``(n,)`` labels, a scalar."""
        features = features.float()
        if self.normalize:
            features = F.normalize(features)
        if self.scale != 1:
            features = self.scale * features
        return self.loss(features, labels, self.miner(features, labels))


class CenterLoss(nn.Module):
    """Half the squared distance of a feature to the learned centre of its identity, averaged over the batch.

    Wen et al., ECCV 2016, eq. 2. Used with a small weight such as 5e-4 in addition to other losses. The
    centres are trained by the optimizer of the model.

    Args:
        num_classes: number of identities.
        embedding_size: dimension of the features.
    """

    def __init__(self, num_classes: int, embedding_size: int) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(num_classes, embedding_size))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of ``(n, d)`` features with ``(n,)`` labels, a scalar."""
        return 0.5 * (features - self.centers[labels]).square().sum(1).mean()


class LossTerm(nn.Module):
    """One loss in a sum of losses.

    Args:
        function: ``(features, labels) -> scalar``, for example a loss of pytorch-metric-learning.
        on: field of ``TrainingOutput`` that it is computed on: features before or after the neck, or logits.
            By default ``logits`` for ``torch.nn.CrossEntropyLoss``, else ``pre_neck``.
        weight: factor of this loss in the sum.
        miner: miner of pytorch-metric-learning that chooses pairs or triplets for ``function``.
        label: name in error messages; by default the class of ``function``.

    Raises:
        InputError: an invalid ``on`` or ``weight``; a miner for a loss that takes none.
    """

    def __init__(
        self,
        function: nn.Module,
        *,
        on: Field | None = None,
        weight: float = 1.0,
        miner: nn.Module | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__()
        self.label = label
        self.name = label or type(function).__name__
        self.on = _default_field(type(function)) if on is None else on
        check_choice(f"{self.name}: on", self.on, FIELDS)
        if not is_number(weight) or weight <= 0:
            raise InputError(
                f"{self.name}: weight: expected a number greater than 0, got {short_repr(weight)}"
            )
        if miner is not None and "indices_tuple" not in inspect.signature(function.forward).parameters:
            raise InputError(
                f"{self.name}: miner: this loss takes none; losses of pytorch-metric-learning do"
            )
        self.function, self.miner, self.weight = function, miner, float(weight)

    def forward(self, output: TrainingOutput, labels: Tensor) -> Tensor:
        """Return the loss without its weight, a scalar.

        Raises:
            InputError: the function fails, or returns anything but a scalar.
        """
        features = getattr(output, self.on).float()
        if features.ndim > 2:  # logits of stripes, (n, parts, classes)
            labels = labels[:, None].expand(-1, features.shape[1])
            if isinstance(self.function, nn.CrossEntropyLoss):
                features = features.movedim(-1, 1)  # torch takes all parts together
            else:
                features, labels = features.flatten(0, 1), labels.flatten()
        try:
            chosen = () if self.miner is None else (self.miner(features, labels),)
            value = self.function(features, labels, *chosen)
        except InputError:
            raise
        except Exception as error:  # any class may be given
            if _is_out_of_memory(error):
                raise
            raise InputError(f"{self.name}: {type(error).__name__}: {truncate(error)}") from error
        if not isinstance(value, Tensor) or value.ndim:
            found = (
                f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else short_repr(value)
            )
            raise InputError(f"{self.name}: expected the loss of the batch as a scalar tensor, got {found}")
        return value


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _default_field(function: Any) -> Field:
    is_cross_entropy = isinstance(function, type) and issubclass(function, nn.CrossEntropyLoss)
    return "logits" if is_cross_entropy else "pre_neck"


class ReIDLosses(nn.Module):
    """Weighted sum of losses.

    Args:
        terms: the losses, in order, or a mapping from the names under which they are logged. Without names,
            they are logged by class: ``arc_face`` for ``ArcFaceLoss``.

    Raises:
        InputError: no losses.
    """

    def __init__(self, terms: Sequence[LossTerm] | Mapping[str, LossTerm]) -> None:
        super().__init__()
        if not terms:
            raise InputError("losses: expected at least one loss, got none")
        named = terms if isinstance(terms, Mapping) else _name_terms(terms)
        self.terms: Mapping[str, LossTerm] = nn.ModuleDict(named)  # type: ignore[assignment]

    @property
    def fields(self) -> set[str]:
        """Fields of ``TrainingOutput`` that the losses are computed on."""
        return {term.on for term in self.terms.values()}

    def forward(self, output: TrainingOutput, labels: Tensor) -> dict[str, Tensor]:
        """Return the scalar ``loss``, the weighted sum, and each loss without its weight, all in float32.

        Args:
            output: output of the model for n images.
            labels: classes ``(n,)``, integers.

        Raises:
            InputError: a loss that fails, or does not return a scalar; the message names it.
        """
        values, total = {}, None
        with torch.autocast(output.pre_neck.device.type, enabled=False):
            for name, term in self.terms.items():
                value = values[name] = term(output, labels)
                weighted = value if term.weight == 1 else term.weight * value
                total = weighted if total is None else total + weighted
        assert total is not None
        return {"loss": total, **values}


def _name_terms(terms: Sequence[LossTerm]) -> dict[str, LossTerm]:
    """Name terms by their class, and by what they are computed on where that is not unique."""
    named: dict[str, LossTerm] = {}
    for term in terms:
        words = re.sub("Loss$", "", type(term.function).__name__)
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", words).lower() or "loss"
        if name == "loss" or hasattr(nn.ModuleDict, name):
            name += "_term"
        if name in named:
            name = f"{name}_{term.on}"
        first, number = name, 2
        while name in named:
            name, number = f"{first}_{number}", number + 1
        named[name] = term
    return named


class ReIDLoss(ReIDLosses):
    """Sum of the cross-entropy with label smoothing and the batch-hard triplet loss.

    Args:
        label_smoothing: ε of Szegedy et al., arXiv 1512.00567, section 7.
        margin: margin of ``BatchHardTripletLoss``.
        triplets: features that the triplet loss compares. ``pre_neck``: unnormalised features before the neck,
            as in the released RGA code. ``post_neck``: L2-normalised features after the neck, as in
            retrieval. In training from random weights, features before the neck tend to collapse to a point;
            the batch norm of the neck prevents that.
        scale: factor of the features in the triplet loss, see ``BatchHardTripletLoss``.

    Raises:
        InputError: ``label_smoothing`` outside 0 to 1, an invalid ``margin`` or ``scale``, or unknown
            ``triplets``.
    """

    @rename_option_arguments("model.loss")
    def __init__(
        self,
        label_smoothing: float = 0.1,
        margin: float | None = 0.3,
        triplets: Literal["pre_neck", "post_neck"] = "pre_neck",
        scale: float = 1.0,
    ) -> None:
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing: expected 0 to 1, got {label_smoothing}")
        check_choice("triplets", triplets, ("pre_neck", "post_neck"))
        triplet = BatchHardTripletLoss(margin, normalize=triplets == "post_neck", scale=scale)
        super().__init__(
            {
                "cross_entropy": LossTerm(nn.CrossEntropyLoss(label_smoothing=label_smoothing)),
                "triplet": LossTerm(triplet, on=triplets),
            }
        )
        self.triplets = triplets


@dataclass(frozen=True)
class LossEntry:
    """One entry of ``model.losses`` of a recipe, with its classes imported but not yet created.

    Use ``LossEntry.read``.
    """

    label: str
    function: Any
    on: Field
    init_args: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    miner: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, place: str, entry: Any) -> LossEntry:
        """Check an entry and import its classes.

        Args:
            place: position of the entry, such as ``model.losses[0]``; error messages begin with it.
            entry: mapping with ``class_path`` and optionally ``init_args``, ``weight``, ``on`` and ``miner``, a
                mapping with ``class_path`` and ``init_args``.

        Raises:
            InputError: another key or type, or a class that cannot be imported.
        """
        if isinstance(entry, str):
            entry = {"class_path": entry}
        if isinstance(entry, Mapping):
            entry = {
                "on" if key is True else key: value for key, value in entry.items()
            }  # YAML reads on as true
        keys = ("class_path", "init_args", "weight", "on", "miner")
        function = _import_class(place, entry, keys)
        label = f"{place} ({entry['class_path']})"
        on = entry.get("on")
        check_choice(f"{label}: on", on, (*FIELDS, None))
        if (miner := entry.get("miner")) is not None:
            miner = {"class_path": miner} if isinstance(miner, str) else miner
            _import_class(f"{place}.miner", miner, ("class_path", "init_args"))
        return cls(
            label=label,
            function=function,
            on=on or _default_field(function),
            init_args=entry.get("init_args") or {},
            weight=entry.get("weight", 1.0),
            miner=miner,
        )

    def build(self, *, classes: int, dimension: int) -> LossTerm:
        """Create the loss.

        Args:
            classes: training identities, for a class that takes ``num_classes``.
            dimension: length of an embedding, for a class that takes ``embedding_size``.

        Raises:
            InputError: the class refuses its arguments, or is not a ``torch.nn.Module``.
        """
        known = {"num_classes": classes, "embedding_size": classes if self.on == "logits" else dimension}
        function = _instantiate(self.label, self.function, self.init_args, known)
        miner = None if self.miner is None else _build_nested(f"{self.label}: miner", self.miner, known)
        for name, value in (("", function), (" miner", miner)):
            if value is not None and not isinstance(value, nn.Module):
                raise InputError(f"{self.label}{name}: expected a torch.nn.Module, got {short_repr(value)}")
        return LossTerm(function, on=self.on, weight=self.weight, miner=miner, label=self.label)


def _import_class(place: str, entry: Any, keys: Sequence[str]) -> Any:
    """Return the class that an entry with ``class_path`` and ``init_args`` names."""
    if not isinstance(entry, Mapping) or not isinstance(path := entry.get("class_path"), str):
        raise InputError(f"{place}: expected a mapping with class_path, got {short_repr(entry)}")
    for key in entry:
        if key not in keys:
            hint = did_you_mean(str(key), keys)
            raise InputError(f"{place} ({truncate(path)}): unknown key {short_repr(key)}{hint}")
    if not isinstance(entry.get("init_args") or {}, Mapping):
        raise InputError(
            f"{place} ({truncate(path)}): init_args: expected a mapping, got {short_repr(entry['init_args'])}"
        )
    if not path.rpartition(".")[0]:
        raise InputError(
            f"{place}: expected a class path such as pytorch_metric_learning.losses.CircleLoss, got "
            f"{short_repr(path)}"
        )
    found = import_class(path, f"{place} ({truncate(path)})")
    if not callable(found):
        raise InputError(f"{place} ({truncate(path)}): expected a class, got {short_repr(found)}")
    return found


def _instantiate(place: str, function: Any, arguments: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """Call a class; create nested classes, and fill in known arguments that it takes and that are not given."""
    given = {name: _build_nested(f"{place}: {name}", value, known) for name, value in arguments.items()}
    filled = {name: value for name, value in known.items() if name not in given and _takes(function, name)}
    try:
        return function(**given, **filled)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    except Exception as error:  # any class may be given
        raise InputError(f"{place}: {type(error).__name__}: {truncate(error)}") from error


def _build_nested(place: str, value: Any, known: Mapping[str, Any]) -> Any:
    """Create what a mapping with ``class_path`` stands for; return other values as they are."""
    if not isinstance(value, Mapping) or "class_path" not in value:
        return value
    function = _import_class(place, value, ("class_path", "init_args"))
    return _instantiate(place, function, value.get("init_args") or {}, known)


def _takes(function: Any, name: str) -> bool:
    """Return whether a class takes an argument, also where it passes ``**kwargs`` to the class that it extends."""
    bases = inspect.getmro(function) if isinstance(function, type) else (function,)
    for base in bases:
        own = base.__dict__.get("__init__") if isinstance(base, type) else base
        if own is None:
            continue
        try:
            parameters = inspect.signature(own).parameters
        except (TypeError, ValueError):  # built in
            return False
        if name in parameters:
            return True
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
            return False
    return False
