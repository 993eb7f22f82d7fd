"""Peer finders: who names the listed competitors of a symbol, tables or a generative model on Amazon Bedrock.

Belongs here: reading lists, asking, and judging an answer. Does not belong here: which symbols are asked and what is
kept of the answers (`quant_assets/market/peer_assets.py`), and what competitors are used for.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from quant_resources.bedrock import (
    BedrockBusy,
    BedrockError,
    BedrockModel,
    NoUsableAnswer,
    beginning,
    read_json,
)

if TYPE_CHECKING:
    from quant_resources.settings import Settings

TABLE, BEDROCK = "table", "bedrock"
BUNDLED = "competitors.csv"
MOST_COMPETITORS = 8
_TICKER = re.compile(r"[A-Z][A-Z0-9.\-]{0,9}")


class PeerFinderError(RuntimeError):
    """Nobody can be asked. The message says what is wrong and the way out."""


class FinderBusy(PeerFinderError):
    """Nobody can be asked now; the same question is worth another try in a minute."""


class NoAnswer(PeerFinderError):
    """This symbol has no answer; the others may have one."""


@dataclass(frozen=True)
class Found:
    """One answer.

    Attributes:
        peers: tickers of competitors that are known, as the answer orders them.
        rejected: tickers of the answer that are not known, and the symbol itself.
        as_of: day that the list was made or asked for.
        model_id: model that answered; None for a table.
        prompt: what it was asked; None for a table.
        answer: what it said, whole; None for a table.
    """

    peers: tuple[str, ...]
    rejected: tuple[str, ...]
    as_of: dt.date
    model_id: str | None = None
    prompt: str | None = None
    answer: str | None = None


class PeerFinder(Protocol):
    """Who names competitors."""

    @property
    def name(self) -> str:
        """`table` or `bedrock`."""
        ...

    def find(self, symbol: str, known: Mapping[str, str]) -> Found:
        """The competitors of a symbol.

        Args:
            symbol: its ticker.
            known: company name by ticker, '' where it has none; what is not in here is rejected.

        Raises:
            NoAnswer: for this symbol.
            PeerFinderError: for any.
        """
        ...


def open_peer_finder(settings: Settings) -> PeerFinder:
    """The finder that `QUANT_PEER_FINDER` names. Nothing is read or asked yet."""
    if settings.peer_finder == BEDROCK:
        return BedrockPeers(settings.bedrock_model_id)
    return TablePeers(settings.peers_file)


def split_known(
    named: Iterable[str], symbol: str, known: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tickers of an answer that are known, and those that are not (or are the symbol itself); each once, in their order.

    >>> split_known(["GOOG", "AAPL", "XYZ", "GOOG"], "AAPL", {"AAPL", "GOOG"})
    (('GOOG',), ('AAPL', 'XYZ'))
    """
    have = set(known) - {symbol}
    once = list(dict.fromkeys(named))
    return tuple(t for t in once if t in have), tuple(t for t in once if t not in have)


# ----------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class _Listed:
    named: tuple[str, ...]
    as_of: dt.date


@dataclass(frozen=True)
class TablePeers:
    """Competitors from curated lists. The first of these that names a symbol is the one that counts for it:

    1. the source's own (column `peers` of the security master), see `with_own_lists`;
    2. a file of yours (QUANT_PEERS_FILE);
    3. the bundled list of large American companies (`competitors.csv`).

    Attributes:
        file: CSV with the columns symbol, peers (tickers with commas between them, in quotes) and, if you like, as_of (YYYY-MM-DD):
            the day that the list was made. A symbol may have several lists of different days.
        own: the source's tickers by symbol, with commas between them.
        own_as_of: day of the source's lists.
        today: as_of of lists without one.
    """

    file: Path | None = None
    own: Mapping[str, str] | None = None
    own_as_of: dt.date | None = None
    today: dt.date | None = None

    @property
    def name(self) -> str:
        """`table`."""
        return TABLE

    def with_own_lists(self, own: Mapping[str, str], as_of: dt.date) -> TablePeers:
        """The same finder with the lists that the source has itself; files are read anew."""
        return replace(self, own=dict(own), own_as_of=as_of)

    def find(self, symbol: str, known: Mapping[str, str]) -> Found:
        """The newest list of a symbol; see `PeerFinder.find`."""
        return self.every(symbol, known)[-1]

    def every(self, symbol: str, known: Mapping[str, str]) -> list[Found]:
        """All lists of a symbol, oldest first; at least one.

        Args:
            symbol: its ticker.
            known: what is not in here is rejected.

        Raises:
            NoAnswer: no list names it.
            PeerFinderError: a file cannot be read; names file, line and rule.
        """
        own = tuple(part.strip().upper() for part in (self.own or {}).get(symbol, "").split(","))
        if own := tuple(part for part in own if part):
            lists: tuple[_Listed, ...] = (_Listed(own, self.own_as_of or self._today),)
        else:
            lists = self._yours.get(symbol) or self._bundled.get(symbol) or ()
        if not lists:
            raise NoAnswer(
                f"no list names competitors of {symbol}: not the source, not QUANT_PEERS_FILE, not the bundled list. Add a row "
                f"for {symbol} to a CSV with the columns symbol, peers and point QUANT_PEERS_FILE at it."
            )
        return [Found(*split_known(listed.named, symbol, known), listed.as_of) for listed in lists]

    @property
    def _today(self) -> dt.date:
        return self.today or dt.datetime.now(dt.UTC).date()

    @cached_property
    def _yours(self) -> dict[str, tuple[_Listed, ...]]:
        if self.file is None:
            return {}
        try:
            text = self.file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise PeerFinderError(
                f"{self.file}: cannot be read: {error}. QUANT_PEERS_FILE is a CSV in UTF-8 with the columns symbol, peers and, "
                "if you like, as_of."
            ) from error
        return _read_lists(str(self.file), text, self._today)

    @cached_property
    def _bundled(self) -> dict[str, tuple[_Listed, ...]]:
        import importlib.resources

        text = (importlib.resources.files("quant_resources") / BUNDLED).read_text(encoding="utf-8")
        # Its day is ours: a machine whose clock is behind it reads it all the same.
        return _read_lists(BUNDLED, text, dt.date.max)


def _read_lists(name: str, text: str, today: dt.date) -> dict[str, tuple[_Listed, ...]]:
    """Lists by symbol, oldest first.

    Raises:
        PeerFinderError: naming file, line and rule.
    """

    def wrong(line: int, rule: str) -> PeerFinderError:
        return PeerFinderError(f"{name}:{line}: {rule}")

    reader = csv.reader(io.StringIO(text), strict=True, skipinitialspace=True)
    lists: dict[str, dict[dt.date, tuple[str, ...]]] = defaultdict(dict)
    columns: list[str] = []
    try:
        for cells in reader:
            line = reader.line_num
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not columns:
                columns = [cell.lower() for cell in cells]
                if sorted(columns) not in (["peers", "symbol"], ["as_of", "peers", "symbol"]):
                    raise wrong(
                        line,
                        f"the columns are {', '.join(columns)}; needs symbol, peers and may have as_of",
                    )
                continue
            if len(cells) != len(columns):
                raise wrong(
                    line,
                    f"{len(cells)} cells where the header has {len(columns)}; put quotes around peers with commas "
                    'between them: AAPL,"GOOG,MSFT"',
                )
            row = dict(zip(columns, cells, strict=True))
            symbol = row["symbol"].upper()
            peers = tuple(part.strip().upper() for part in row["peers"].split(",") if part.strip())
            if not peers:
                raise wrong(line, f"peers of {symbol} is empty; name a competitor, or leave the row out")
            for ticker in (symbol, *peers):
                if not _TICKER.fullmatch(ticker):
                    raise wrong(line, f"{ticker!r} is not a ticker (letters, digits, '.' or '-', at most 10)")
            if symbol in peers:
                raise wrong(line, f"{symbol} is among its own peers")
            as_of = today
            if row.get("as_of"):
                try:
                    as_of = dt.date.fromisoformat(row["as_of"])
                except ValueError:
                    raise wrong(line, f"as_of = {row['as_of']!r} is not a date (YYYY-MM-DD)") from None
            if as_of > today:
                raise wrong(line, f"as_of = {as_of} lies ahead of today ({today})")
            if as_of in lists[symbol]:
                raise wrong(line, f"{symbol} has a list of {as_of} already; one per symbol and day")
            lists[symbol][as_of] = peers
    except csv.Error as error:
        raise wrong(reader.line_num, f"malformed CSV: {error}") from error
    if not columns:
        raise wrong(1, "the file is empty; needs the columns symbol, peers and may have as_of")
    return {
        symbol: tuple(_Listed(of_symbol[day], day) for day in sorted(of_symbol))
        for symbol, of_symbol in lists.items()
    }


# ---------------------------------------------------------------------------------------------------------- Bedrock

# A ticker of any exchange, such as 005930.KS or NYSE:KO. Whether it is one of ours is for the security master to say.
_NAMED = re.compile(r"[A-Z0-9][A-Z0-9.:/\- ]{0,19}")


class BedrockPeers:
    """Competitors as a generative model on Amazon Bedrock names them, one question per symbol.

    Args:
        model_id: model or inference profile.
        client: boto3's `bedrock-runtime`; one is made at the first question when None.
        pause: waits so many seconds while Bedrock is busy.
    """

    name = BEDROCK

    def __init__(
        self, model_id: str, client: Any = None, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.model_id = model_id
        self._model = BedrockModel(model_id, client, pause)

    def find(self, symbol: str, known: Mapping[str, str]) -> Found:
        """Ask for the competitors of a symbol; an answer that cannot be read is asked for once more.

        Raises:
            NoAnswer: two answers in a row could not be read.
            FinderBusy: Bedrock was too busy every time.
            PeerFinderError: credentials, region, access, model.
        """
        try:
            named, asked, answer = self._model.ask(
                question(symbol, known.get(symbol, "")), read_answer, max_tokens=300
            )
        except NoUsableAnswer as error:
            raise NoAnswer(
                f"{self.model_id} was asked twice for the competitors of {symbol} and gave no list: {error}. Materialize "
                "market/peers again to ask once more, or name another model in QUANT_BEDROCK_MODEL_ID."
            ) from None
        except BedrockBusy as error:
            raise FinderBusy(
                f"{error} Materialize market/peers again in a few minutes, it goes on where it stopped."
            ) from None
        except BedrockError as error:
            raise PeerFinderError(f"{error} Or set QUANT_PEER_FINDER=table.") from None
        today = dt.datetime.now(dt.UTC).date()
        return Found(*split_known(named, symbol, known), today, self.model_id, asked, answer)


def question(symbol: str, company: str) -> str:
    """What a model is asked about a symbol."""
    # As JSON, so that no quote or line break of a vendor's name can end the sentence.
    who = f"{json.dumps(company)} (ticker {symbol})" if company else f"the company with the ticker {symbol}"
    return (
        f"Which companies compete most directly with {who} for the same customers? Name at most {MOST_COMPETITORS} whose shares "
        "are listed on a stock exchange in the United States, by their tickers there, the closest competitor first. Do not name "
        f"{symbol} itself, its suppliers, its customers, companies that it owns, or companies that are not listed. If there is "
        'none, the list is empty.\nAnswer with one JSON object and nothing else, of this form: {"competitors": ["TICKER", "TICKER"]}'
    )


def read_answer(answer: str) -> tuple[str, ...]:
    """Tickers of an answer, in its order.

    Accepted is exactly one JSON object with the key `competitors`, a list of tickers, perhaps inside a ```json fence.

    Raises:
        ValueError: it is anything else; says what, and how the answer begins.

    >>> read_answer('{"competitors": ["goog", "MSFT"]}')
    ('GOOG', 'MSFT')
    """
    read, shown = read_json(answer), beginning(answer)
    if (
        not isinstance(read, dict)
        or set(read) != {"competitors"}
        or not isinstance(read["competitors"], list)
    ):
        raise ValueError(f'it is not of the form {{"competitors": ["TICKER", ...]}}: it begins with {shown}')
    named = []
    for entry in read["competitors"]:
        ticker = entry.strip().upper() if isinstance(entry, str) else ""
        if not _NAMED.fullmatch(ticker):
            raise ValueError(f"{json.dumps(entry)[:40]} is not a ticker: it begins with {shown}")
        named.append(ticker)
    return tuple(named)
