# SPDX-License-Identifier: Apache-2.0
"""All stages one after the other, from sources to a manifest; or a single one, with what it needs already there.

    index -> embed copies -> dedup -> decontaminate -> embed -> [retrieve] -> cluster -> [prune] -> balance -> manifest

Each stage is a file of its own, named as the stage. A stage whose outputs are whole and current does nothing.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from opendino import distributed
from opendino.curate import (
    _beforehand,
    balance,
    cluster,
    decontaminate,
    dedup,
    embed,
    index,
    mix,
    prune,
    report,
    retrieve,
)
from opendino.curate._embedders import CopyConfig, EmbedConfig
from opendino.curate.balance import BalanceConfig
from opendino.curate.cluster import ClusterConfig
from opendino.curate.decontaminate import DecontaminateConfig
from opendino.curate.dedup import DedupConfig
from opendino.curate.index import IndexConfig
from opendino.curate.mix import MixConfig
from opendino.curate.prune import PruneConfig
from opendino.curate.retrieve import RetrieveConfig
from opendino.errors import ConfigError
from opendino.files import check_place
from opendino.neighbours.exact import SearchConfig
from opendino.stages.engines import Engine, met
from opendino.stages.folder import alone, counts_of

STAGES = ("index", "dedup", "decontaminate", "embed", "retrieve", "cluster", "prune", "balance", "manifest", "report")


THUMBNAIL = 0.75
"""Threshold of both graphs for the detector without weights: precision and recall in LOG.md."""


@dataclass(frozen=True)
class CurateConfig:
    """Everything that `opendino curate` reads.

    Attributes:
        out: folder of all results.
        index: the pool.
        references: evaluation sets whose images must not be in the result; empty for none.
        queries: sets that images like theirs are wanted of; empty for none.
        copy: the copy detector, for dedup and decontaminate; without a model the one that needs no weights.
        embed: features that retrieval and clusters are made on.
        search: how neighbours are found.
        engine: who makes the parts.
    """

    out: Path = Path()
    index: IndexConfig = field(default_factory=IndexConfig)
    references: tuple[str, ...] = ()
    queries: tuple[str, ...] = ()
    copy: CopyConfig = field(default_factory=CopyConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    engine: Engine = field(default_factory=Engine)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    retrieve: RetrieveConfig = field(default_factory=RetrieveConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    mix: MixConfig = field(default_factory=MixConfig)


def run(config: CurateConfig, until: str = "report", told: Callable[[str, dict[str, Any]], None] | None = None) -> Path:
    """Curate.

    Args:
        config: what and how.
        until: last stage that is run; those before it are run too where they are not current.
        told: called with the name and the counts of each stage as it is done.

    Returns:
        Folder of the last stage.

    Raises:
        ConfigError: a setting that a stage needs is missing, or another command works in the folder.
        DataError: as the stages.
        ModelError, CheckpointError: a model cannot be opened; what can be known is said before any work.
    """
    if config.out == Path():
        raise ConfigError("out: names no folder; give one for the results, out=DIR")
    if not config.out.is_dir():  # else it may be finished, whether it can be written or not
        check_place(config.out)
    last = STAGES.index(until)
    with met(config.engine):
        _beforehand.check(config, copies=last >= STAGES.index("dedup"), embeds=last >= STAGES.index("embed"))
        with alone(config.out):
            return _Run(config, told or _silent, until).go()


def with_thresholds(config: CurateConfig) -> CurateConfig:
    """The settings with the thresholds that belong to the copy detector: the paper's are for SSCD."""
    own = config.copy.model == "thumbnail"
    dedup_, leaks = config.dedup, config.decontaminate
    if dedup_.threshold is None:
        dedup_ = replace(dedup_, threshold=THUMBNAIL if own else dedup.PUBLISHED)
    if leaks.threshold is None:
        leaks = replace(leaks, threshold=THUMBNAIL if own else decontaminate.PUBLISHED)
    return replace(config, dedup=dedup_, decontaminate=leaks)


def _left(counts: dict[str, Any]) -> int:
    """Images that the next stage will see."""
    return counts["kept"] if "kept" in counts else counts["usable"]


def _silent(name: str, counts: dict[str, Any]) -> None:
    """Tell nobody."""


class _Run:
    """One pass over the stages; keeps where each left its results."""

    def __init__(self, config: CurateConfig, told: Callable[[str, dict[str, Any]], None], last: str) -> None:
        self.config, self.told, self.last = with_thresholds(config), told, last
        self.selections: dict[str, Path] = {}
        wanted = {*config.mix.parts, last}
        # A tree over a whole pool is dear, and retrieval alone has no use for it.
        self.wants_tree = not config.mix.parts or bool(wanted & {"cluster", "prune", "balance"})
        self.grows_tree = self.wants_tree and STAGES.index(last) >= STAGES.index("cluster")

    def go(self) -> Path:
        folder = Path()
        for stage in STAGES:
            made = getattr(self, f"_{stage}")()
            if made is not None:
                folder = made
                if stage != "report":
                    self.told(stage, counts_of(folder))
                if stage in ("index", "dedup", "decontaminate") and self.grows_tree:
                    _beforehand.check_sizes(self.config, _left(counts_of(folder)))
            if stage == self.last:
                break
        return folder

    @property
    def selection(self) -> Path:
        """What the next stage works on."""
        return tuple(self.selections.values())[-1]

    def _of(self, name: str, sources: tuple[str, ...], model: EmbedConfig) -> tuple[Path, Path]:
        """Index and features of other images."""
        config, folder = self.config, self._index_of(name, sources)
        return folder, embed.run(config.out, f"{name}_embed", folder, model, config.engine, config.index.image_column)

    def _index_of(self, name: str, sources: tuple[str, ...]) -> Path:
        """Index of other images, identical ones kept."""
        config = self.config
        others = IndexConfig(sources, config.index.rows, identical="keep", image_column=config.index.image_column)
        return index.run(config.out, f"{name}_index", others, config.engine)

    def _index(self) -> Path:
        config = self.config
        # Evaluation sets and queries too, so that a wrong name is told before hours of embedding.
        for name, sources in (("references", config.references), ("queries", config.queries)):
            if sources:
                self._index_of(name, sources)
        self.index = index.run(config.out, "index", config.index, config.engine)
        return self.index

    def _dedup(self) -> Path:
        config = self.config
        self.copies = embed.run(
            config.out, "copy_embed", self.index, config.copy, config.engine, config.index.image_column
        )
        folder, _ = dedup.run(config.out, self.index, self.copies, config.dedup, config.search, config.engine)
        self.selections["dedup"] = folder
        return folder

    def _decontaminate(self) -> Path | None:
        config = self.config
        if not config.references:
            return None
        references = self._of("references", config.references, config.copy)
        self.selections["decontaminate"] = decontaminate.run(
            config.out, self.selection, self.copies, references, config.decontaminate, config.search, config.engine
        )
        return self.selection

    def _embed(self) -> Path:
        config = self.config
        if asdict(config.embed) == asdict(config.copy):
            self.features = self.copies
        else:
            self.features = embed.run(
                config.out, "embed", self.index, config.embed, config.engine, config.index.image_column
            )
        return self.features

    def _retrieve(self) -> Path | None:
        config = self.config
        if not config.queries:
            return None
        queries = self._of("queries", config.queries, config.embed)
        # Clusters are made of the whole pool, not of what was retrieved, so the selection stays.
        self.retrieved = retrieve.run(
            config.out, self.selection, self.features, queries, config.retrieve, config.search, config.engine
        )
        return self.retrieved

    def _cluster(self) -> Path | None:
        if not self.wants_tree:
            return None
        self.clusters = cluster.run(self.config.out, self.selection, self.features, self.config.cluster)
        return self.clusters

    def _prune(self) -> Path | None:
        config = self.config
        if not config.prune.eps or not self.wants_tree:
            return None
        self.selections["prune"] = prune.run(config.out, self.selection, self.features, self.clusters, config.prune)
        # The tree has to stand on what is left.
        self.clusters = cluster.run(config.out, self.selection, self.features, config.cluster, "pruned_cluster")
        return self.selection

    def _balance(self) -> Path | None:
        if not self.wants_tree:
            return None
        self.selections["balance"] = balance.run(self.config.out, self.selection, self.clusters, self.config.balance)
        return self.selection

    def _manifest(self) -> Path:
        config = self.config
        chosen = dict(self.selections)
        if config.queries:
            chosen = {"retrieve": self.retrieved} | chosen
        self.manifest = mix.run(config.out, self.index, chosen, config.mix, config.index.image_column)
        return self.manifest

    def _report(self) -> Path:
        if distributed.is_main():
            report.run(self.config.out, self.config.index.image_column)
        return self.config.out
