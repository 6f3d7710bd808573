"""Everything that must agree bit for bit before anyone trains."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import RunConfig
from common.errors import RunMismatch
from common.model.architecture import Architecture
from common.model.frozen import weights_digest
from common.state import tables_digest


@dataclass(frozen=True)
class Fingerprint:
    """What server and client compare at join.

    Attributes:
        run_id: SHA-256 of the resolved config.
        seed: the run's seed.
        dimension: maskable parameters.
        weights_digest: SHA-256 of the frozen weights that this side built.
        tables_digest: SHA-256 of the integer sigma and logit tables that this side built.
    """

    run_id: bytes
    seed: int
    dimension: int
    weights_digest: bytes
    tables_digest: bytes

    @classmethod
    def of(cls, config: RunConfig) -> Fingerprint:
        """Build weights and tables here, and say what came out."""
        architecture = Architecture.of(config)
        return cls(
            run_id=config.run_id(),
            seed=config.seed,
            dimension=architecture.dimension,
            weights_digest=weights_digest(architecture, config.seed),
            tables_digest=tables_digest(),
        )

    def check(self, other: Fingerprint) -> None:
        """Compare with the peer's, most telling difference first.

        Raises:
            RunMismatch: naming what differs.
        """
        if self.seed != other.seed:
            raise RunMismatch(f"server and client differ in the seed: {self.seed}, {other.seed}")
        if self.dimension != other.dimension:
            raise RunMismatch(
                f"server and client differ: {self.dimension} and {other.dimension} parameters"
            )
        for name in ("weights_digest", "tables_digest", "run_id"):
            if getattr(self, name) != getattr(other, name):
                what = name.replace("_", " ")
                raise RunMismatch(
                    f"server and client differ in the {what}: another version, or run"
                )
