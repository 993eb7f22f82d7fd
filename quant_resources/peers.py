"""Peer finders: who names the listed competitors of a symbol, tables or a generative model on Amazon Bedrock.

Belongs here: reading lists, asking, and judging an answer. Does not belong here: which symbols are asked and what is
kept of the answers (`quant_assets/market/peer_assets.py`), and what competitors are used for.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import os
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from quant_resources.settings import Settings

TABLE, BEDROCK = "table", "bedrock"
BUNDLED = "competitors.csv"
MOST_COMPETITORS = 8
SHOWN_CHARACTERS = 200
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

# Codes that pass by themselves: too many requests, a model that is loaded or overloaded, a service in trouble.
_PASSING = {
    "InternalServerException",
    "ModelErrorException",
    "ModelNotReadyException",
    "ModelTimeoutException",
    "RequestTimeout",
    "ServiceUnavailableException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
_NOT_KNOWN = {
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
# A ticker of any exchange, such as 005930.KS or NYSE:KO. Whether it is one of ours is for the security master to say.
_NAMED = re.compile(r"[A-Z0-9][A-Z0-9.:/\- ]{0,19}")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL | re.IGNORECASE)


class BedrockPeers:
    """Competitors as a generative model on Amazon Bedrock names them, one question per symbol (Converse API).

    Credentials and region come from the standard AWS environment; the caller needs bedrock:InvokeModel on the model.

    Args:
        model_id: model or inference profile.
        client: boto3's `bedrock-runtime`; one is made at the first question when None.
        attempts: how often a question is asked while Bedrock says that it is too busy.
        pause: waits so many seconds.
    """

    name = BEDROCK

    def __init__(
        self,
        model_id: str,
        client: Any = None,
        attempts: int = 6,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.model_id, self.attempts, self.pause = model_id, attempts, pause
        self._client = client

    def find(self, symbol: str, known: Mapping[str, str]) -> Found:
        """Ask for the competitors of a symbol; an answer that cannot be read is asked for once more.

        Raises:
            NoAnswer: two answers in a row could not be read.
            FinderBusy: Bedrock was too busy every time.
            PeerFinderError: credentials, region, access, model.
        """
        prompt = question(symbol, known.get(symbol, ""))
        complaint: ValueError | None = None
        for _ in range(2):
            asked = prompt
            if complaint:
                # At temperature 0 the same question has the same answer.
                asked += (
                    f"\nAn earlier answer could not be used: {complaint}. Answer with the JSON object alone."
                )
            answer = self._ask(asked)
            try:
                named = read_answer(answer)
            except ValueError as error:
                complaint = error
                continue
            today = dt.datetime.now(dt.UTC).date()
            return Found(*split_known(named, symbol, known), today, self.model_id, asked, answer)
        raise NoAnswer(
            f"{self.model_id} was asked twice for the competitors of {symbol} and gave no list: {complaint}. Materialize "
            "market/peers again to ask once more, or name another model in QUANT_BEDROCK_MODEL_ID."
        )

    def _ask(self, prompt: str) -> str:
        try:
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise PeerFinderError(
                "QUANT_PEER_FINDER=bedrock needs boto3. Install the extra `aws`: pip install 'quant-assets[aws]'."
            ) from error
        for attempt in range(1, self.attempts + 1):
            try:
                response = self.client.converse(
                    modelId=self.model_id,
                    messages=[{"role": "user", "content": [{"text": prompt}]}],
                    inferenceConfig={"maxTokens": 300, "temperature": 0.0},
                )
                break
            except (ClientError, BotoCoreError) as error:
                told = _explained(error, self.model_id)
                if not isinstance(told, FinderBusy) or attempt == self.attempts:
                    # What botocore says may quote the signed request, so the cause is not chained.
                    raise told from None
            # From 1 s doubling up to 30 s, and each caller somewhere in between.
            self.pause(min(2.0 ** (attempt - 1), 30.0) * random.uniform(0.5, 1.5))
        parts = response["output"].get("message", {}).get("content", [])
        return "".join(str(part["text"]) for part in parts if "text" in part)

    @property
    def client(self) -> Any:
        """boto3's client of `bedrock-runtime`, made once."""
        if self._client is None:
            import boto3
            from botocore.config import Config

            # boto3 itself does not read AWS_REGION. Busy answers are tried again here, where a pause can be seen.
            self._client = boto3.Session(region_name=os.environ.get("AWS_REGION") or None).client(
                "bedrock-runtime",
                config=Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=70),
            )
        return self._client


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
    text = answer.strip()
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1]
    shown = json.dumps(answer[:SHOWN_CHARACTERS])
    try:
        read = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"it is not a JSON object: it begins with {shown}") from None
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


def _explained(error: Exception, model_id: str) -> PeerFinderError:
    """The error to raise instead of one of botocore's: one sentence and the way out, of the first line of what AWS said."""
    from botocore import exceptions as of

    if isinstance(error, of.ClientError):
        answer = error.response.get("Error", {})
        code, said = str(answer.get("Code", "")), _first_line(answer.get("Message", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _NOT_KNOWN:
            return PeerFinderError(
                f"AWS does not take the credentials ({code}): they are over, revoked or wrong. Sign in again, and look at what "
                "AWS_PROFILE and the AWS_ variables of the environment say."
            )
        if code in ("AccessDeniedException", "AccessDenied"):
            return PeerFinderError(
                f"Bedrock does not let this caller use the model {model_id} ({said}). Ask for access to the model in the Bedrock "
                "console of this region, allow the caller bedrock:InvokeModel on it, or name another in QUANT_BEDROCK_MODEL_ID."
            )
        if code in _PASSING or status >= 500:
            return FinderBusy(
                f"Bedrock is too busy for the model {model_id} ({code}: {said}). Materialize market/peers again in a few minutes, "
                "it goes on where it stopped; a higher quota is asked for under Service Quotas, Amazon Bedrock."
            )
        if code == "ResourceNotFoundException" or (
            code == "ValidationException" and re.search(r"model|throughput|inference profile", said, re.I)
        ):
            return PeerFinderError(
                f"Bedrock cannot use QUANT_BEDROCK_MODEL_ID={model_id} in this region ({said}). Name a text model that the region "
                "has, or the inference profile that the model asks for (such as us.amazon.nova-lite-v1:0)."
            )
        return PeerFinderError(
            f"Bedrock refused the question to {model_id} ({code}: {said}). Try another model in QUANT_BEDROCK_MODEL_ID, or set "
            "QUANT_PEER_FINDER=table."
        )
    said = _first_line(error)
    if isinstance(error, (of.NoCredentialsError, of.PartialCredentialsError, of.CredentialRetrievalError)):
        return PeerFinderError(
            f"there are no complete AWS credentials ({said}). Sign in (`aws sso login`), set AWS_PROFILE, or set "
            "QUANT_PEER_FINDER=table."
        )
    if isinstance(error, (of.SSOTokenLoadError, of.UnauthorizedSSOTokenError, of.TokenRetrievalError)):
        return PeerFinderError(f"the AWS sign-in is over ({said}). Sign in again: `aws sso login`.")
    if isinstance(error, of.ProfileNotFound):
        return PeerFinderError(f"{said}. Set AWS_PROFILE to a profile of ~/.aws/config.")
    if isinstance(error, of.NoRegionError):
        return PeerFinderError(
            "no AWS region is set. Set AWS_REGION to one that has Bedrock, such as us-east-1."
        )
    if isinstance(error, (of.HTTPClientError, of.ConnectionError)):
        return FinderBusy(
            f"Bedrock cannot be reached ({said}). Check the network, and that the region in AWS_REGION has Bedrock."
        )
    return PeerFinderError(f"the question could not be asked: {type(error).__name__}: {said}.")


def _first_line(said: object) -> str:
    line = (str(said).strip().splitlines() or [""])[0].strip()
    return line[:SHOWN_CHARACTERS].removesuffix(".")
