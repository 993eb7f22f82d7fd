"""Asset `market/peers`: ask the configured peer finder for competitors and keep what it says.

Belongs here: who is asked, what is stored of the answers, and when. Does not belong here: the finders
(`quant_resources/peers.py`) and the sentiment of competitors (`quant_assets/features/peers.py`).

Answers are history: a newer list of a symbol stands beside the older ones, each with its day, so that features of an old session
go on reading the list of then. A model on Bedrock is asked once per symbol, and answers are stored every few questions and when the
run fails or is stopped, so that it has not asked in vain. Lists of a table are looked at each time, and stored when they say something new.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg
import pyarrow as pa

from quant_assets.market import tables
from quant_assets.market.assets import GROUP, OWNERS, VENDOR_RETRIES
from quant_assets.partitions import settings
from quant_assets.presentation import data_version, markdown_table
from quant_resources.iceberg import Warehouse
from quant_resources.io_manager import table_metadata, table_preview
from quant_resources.peers import (
    FinderBusy,
    Found,
    NoAnswer,
    PeerFinder,
    PeerFinderError,
    TablePeers,
    split_known,
)
from quant_resources.sources import MarketSource

Row = dict[str, Any]
ANSWERED_CHECK = "every_symbol_has_an_answer"
MOST_SHOWN = 500
# A commit of its own for each of 500 answers takes minutes, because a table's metadata list all commits before. So a run that is killed
# outright loses the answers to this many questions at most.
STORED_EVERY = 20


class Answers:
    """The stored answers of all finders, and the changes of this run.

    Args:
        warehouse: where `market.peers` is.
        known: company name by ticker.
    """

    def __init__(self, warehouse: Warehouse, known: Mapping[str, str]) -> None:
        self.warehouse, self.known = warehouse, known
        self._rows: dict[tuple[str, str], dict[dt.date, Row]] = defaultdict(dict)
        for row in warehouse.read(tables.PEERS).to_pylist():
            # What was said stays; which of it the security master knows is a matter of today.
            peers, rejected = split_known(_named(row), row["symbol"], known)
            row |= {"peers": ",".join(peers), "rejected": ",".join(rejected)}
            self._rows[row["symbol"], row["finder"]][row["as_of"]] = row

    def of(self, symbol: str, finder: str) -> list[Row]:
        """A finder's answers about a symbol, oldest first."""
        return [row for _, row in sorted(self._rows[symbol, finder].items())]

    def add(self, symbol: str, finder: str, found: Found, as_of: dt.date, available_at: dt.datetime) -> None:
        """Keep an answer; of two of one day the later one."""
        self._rows[symbol, finder][as_of] = {
            "symbol": symbol,
            "as_of": as_of,
            "available_at": available_at,
            "finder": finder,
            "peers": ",".join(found.peers),
            "rejected": ",".join(found.rejected),
            "model_id": found.model_id,
            "prompt": found.prompt,
            "answer": found.answer,
        }

    @property
    def table(self) -> pa.Table:
        """All of them, as `market.peers`."""
        rows = [row for of_symbol in self._rows.values() for row in of_symbol.values()]
        return tables.PEERS.conform(pa.Table.from_pylist(rows, schema=tables.PEERS.arrow_schema))

    def store(self) -> None:
        """Write all of them now."""
        self.warehouse.write(tables.PEERS, self.table)


def _named(row: Row) -> list[str]:
    return [ticker for ticker in f"{row['peers']},{row['rejected']}".split(",") if ticker]


def add_lists(answers: Answers, symbol: str, finder: str, lists: list[Found], now: dt.datetime) -> bool:
    """Keep what the lists of a table say that the stored ones do not.

    Afterwards the list that is in force today is the newest of `lists`: where a stored one of a later day says something
    else (another source had the word until now), the newest is stored again as of today.

    Args:
        answers: takes the new ones.
        symbol: whom they are about.
        finder: who says it.
        lists: oldest first, at least one.
        now: the instant of this run, UTC.

    Returns:
        Whether there was anything new.
    """
    today, added = now.date(), False
    for found, as_of in (*((found, found.as_of) for found in lists), (lists[-1], today)):
        then = [row for row in answers.of(symbol, finder) if row["as_of"] <= as_of]
        if then and set(_named(then[-1])) == {*found.peers, *found.rejected}:
            continue
        midnight = dt.datetime.combine(as_of, dt.time(), dt.UTC)
        answers.add(symbol, finder, found, as_of, now if as_of == today else midnight)
        added = True
    return added


class PeersConfig(dg.Config):
    """What to ask.

    Attributes:
        refresh: ask a model again about symbols that have an answer; older answers stay. Tables are always looked at.
    """

    refresh: bool = False


@dg.asset(
    key=["market", "peers"],
    metadata=table_metadata(tables.PEERS),
    group_name=GROUP,
    description="Listed competitors of each symbol as the peer finder names them (QUANT_PEER_FINDER: curated tables, or a model on Bedrock, "
    "asked once per symbol), checked against the security master. Every answer is kept with its day; known from the instant of the "
    "answer on.",
    deps=[dg.AssetKey(["market", "securities"])],
    kinds={"iceberg", "python"},
    owners=OWNERS,
    # Commands over a range of sessions want a policy of every selected asset.
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="1",
    pool="vendor",
    retry_policy=VENDOR_RETRIES,
    check_specs=[
        dg.AssetCheckSpec(
            ANSWERED_CHECK,
            asset=dg.AssetKey(["market", "peers"]),
            description="The configured peer finder has named competitors of every symbol. A warning: a symbol without an answer has no "
            "competitors' sentiment, its features say 0.",
        )
    ],
)
def peers(
    context: dg.AssetExecutionContext,
    config: PeersConfig,
    source: dg.ResourceParam[MarketSource],
    warehouse: dg.ResourceParam[Warehouse],
    peer_finder: dg.ResourceParam[PeerFinder],
) -> Iterator[dg.AssetCheckResult | dg.Output[pa.Table]]:
    """Ask about every symbol of the security master that needs it, and store the answers."""
    master = warehouse.read(tables.SECURITIES).to_pylist()
    known = {row["symbol"]: row["name"] or "" for row in master}
    # What is only read about is a competitor, and needs none itself.
    only_read = set(settings().news_symbols or ()) - set(settings().symbols or ())
    symbols = [symbol for symbol in known if symbol not in only_read]
    answers = Answers(warehouse, known)
    try:
        if isinstance(peer_finder, TablePeers):
            own = {row["symbol"]: row["peers"] or "" for row in master}
            unanswered = _look_up(context, peer_finder, own, _own_as_of(source), symbols, answers)
        else:
            unanswered = _ask(context, peer_finder, symbols, answers, config.refresh)
    except PeerFinderError as error:
        raise dg.Failure(str(error), allow_retries=isinstance(error, FinderBusy)) from error
    missing = [symbol for symbol in symbols if not answers.of(symbol, peer_finder.name)]
    yield dg.AssetCheckResult(
        check_name=ANSWERED_CHECK,
        passed=not missing,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{len(missing)} symbol(s) without an answer: {', '.join(missing[:10])}"
        if missing
        else None,
        metadata={
            "without an answer": markdown_table(
                [{"symbol": s, "why": unanswered.get(s, "")} for s in missing]
            )
        },
    )
    data = answers.table
    shown = [
        {
            "symbol": symbol,
            "peers": newest["peers"],
            "rejected": newest["rejected"],
            "who": newest["model_id"] or newest["finder"],
            "as of": str(newest["as_of"]),
        }
        for symbol in symbols
        for newest in answers.of(symbol, peer_finder.name)[-1:]
    ]
    yield dg.Output(
        data,
        data_version=_version(data, peer_finder.name),
        metadata={
            "finder": peer_finder.name,
            "symbols": len(symbols),
            "without an answer": len(missing),
            "answers": data.num_rows,
            "competitors": markdown_table(shown, MOST_SHOWN),
            "preview": table_preview(data),
        },
    )


def _version(data: pa.Table, finder: str) -> dg.DataVersion:
    """Identity of the answers and of who counts: another finder over the same table makes other features."""
    rows = data_version(data)
    assert rows is not None  # None is for ranges of partitions
    return dg.DataVersion(f"{rows.value}-{finder}")


def _own_as_of(source: MarketSource) -> dt.date:
    """Day of the lists that a source has itself: its last session where it has ended, else today."""
    today = dt.datetime.now(dt.UTC).date()
    return min(source.span()[1] or today, today)


def _look_up(
    context: dg.AssetExecutionContext,
    finder: TablePeers,
    own: Mapping[str, str],
    own_as_of: dt.date,
    symbols: list[str],
    answers: Answers,
) -> dict[str, str]:
    """Look every symbol up in the tables; returns why those that have no list have none."""
    tables_of_today = finder.with_own_lists(own, own_as_of)
    now = dt.datetime.now(dt.UTC)
    unanswered, changed = {}, 0
    for symbol in symbols:
        try:
            lists = tables_of_today.every(symbol, answers.known)
        except NoAnswer as error:
            unanswered[symbol] = str(error)
        else:
            changed += add_lists(answers, symbol, finder.name, lists, now)
    context.log.info("tables: %d of %d symbols have a new list", changed, len(symbols))
    return unanswered


def _ask(
    context: dg.AssetExecutionContext,
    finder: PeerFinder,
    symbols: list[str],
    answers: Answers,
    refresh: bool,
) -> dict[str, str]:
    """Ask about the symbols without an answer, or about all; returns why those without one have none."""
    unanswered: dict[str, str] = {}
    asked = new = 0
    try:
        for symbol in symbols:
            if answers.of(symbol, finder.name) and not refresh:
                continue
            asked += 1
            try:
                found = finder.find(symbol, answers.known)
            except NoAnswer as error:
                unanswered[symbol] = str(error)
                context.log.warning("%s", error)
                continue
            answers.add(symbol, finder.name, found, found.as_of, dt.datetime.now(dt.UTC))
            new += 1
            if new % STORED_EVERY == 0:
                answers.store()
    except BaseException:
        if new % STORED_EVERY:
            answers.store()
        raise
    context.log.info("%s: asked about %d symbols, %d without an answer", finder.name, asked, len(unanswered))
    return unanswered
