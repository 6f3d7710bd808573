"""What an evaluation says."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from common.quality.groups import GroupDistances
from common.quality.metrics import KernelDistance, Neighbourhood


@dataclass(frozen=True)
class Classified:
    """What a classifier of the real images says about the generated ones.

    Attributes:
        classifier_accuracy: its own accuracy on real images held out from its training.
        confidence: mean probability of the class that it chooses.
        shares: share of the generated images per class.
        classes_covered: classes whose share is at least a tenth of that among real images.
    """

    classifier_accuracy: float
    confidence: float
    shares: tuple[float, ...]
    classes_covered: int


@dataclass(frozen=True)
class ReadAsIntended:
    """How many images a classifier of the real ones takes for the class they were meant as.

    Attributes:
        share: of all generated images.
        by_class: of those meant as each class; None where no image was.
    """

    share: float
    by_class: tuple[float | None, ...]


@dataclass(frozen=True)
class Quality:
    """One evaluation.

    Attributes:
        features: what every distance is named by, such as "lenet".
        distance: the Frechet distance.
        kernel: the kernel distance, on the same features.
        neighbourhood: likewise.
        classified: on "lenet" features only, else None.
        intended: likewise, and only where images were meant as classes.
        by_class: distances within the classes, where images were meant as classes.
        by_client: distances of the clients, where the real images are also partitioned.
        generated: images that were judged.
        real: images that they were compared with.
    """

    features: str
    distance: float
    kernel: KernelDistance
    neighbourhood: Neighbourhood
    classified: Classified | None
    intended: ReadAsIntended | None
    by_class: GroupDistances | None
    by_client: GroupDistances | None
    generated: int
    real: int

    @property
    def distance_name(self) -> str:
        """Such as "FD (lenet)"; never without the features' name."""
        return distance_name(self.features)

    def as_dict(self) -> dict[str, Any]:
        """Flat and ready for JSON; every distance stands under its full name."""
        kernel = f"KID ({_shown(self.features)})"
        flat: dict[str, Any] = {
            self.distance_name: self.distance,
            kernel: self.kernel.mean,
            f"{kernel}, standard error": self.kernel.standard_error,
            **vars(self.neighbourhood),
        }
        if self.classified is not None:
            flat |= vars(self.classified)
        if self.intended is not None:
            flat["read_as_intended"] = self.intended.share
            flat["read_as_intended_by_class"] = self.intended.by_class
        for group, distances in (("class", self.by_class), ("client", self.by_client)):
            if distances is not None:
                flat |= self._of_groups(group, distances)
        return {**flat, "generated": self.generated, "real": self.real}

    def _of_groups(self, group: str, of: GroupDistances) -> dict[str, Any]:
        """The smallest group always, so that a missing distance explains itself."""
        flat: dict[str, Any] = {}
        if of.distances is not None:
            name = f"{self.distance_name} by {group}"
            known = [distance for distance in of.distances if distance is not None]
            flat[f"{name}, mean"] = fmean(known)
            flat[f"{name}, worst"] = max(known)
            flat[name] = of.distances
        return {**flat, f"fewest_of_a_{group}": of.fewest}


def distance_name(features: str) -> str:
    """The published name belongs to the published features alone."""
    return f"{'FID' if features == 'inception' else 'FD'} ({_shown(features)})"


def _shown(features: str) -> str:
    return "Inception" if features == "inception" else features
