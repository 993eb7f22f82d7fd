"""From features or bars to probabilities and sides: what a signal bundle answers. Pure.

Belongs here: the request and the answer, and the checks of both. Does not belong here: HTTP (`app.py`), how a feature is computed
(`quant_assets/features`: the code that made the training rows makes these), and the decision rule
(`quant_assets/strategies/mlp_long_short.py`).

Two ways to ask. *Rows* carry the features: every one that the model reads, by name. *Bars* (and news and relations, where the model
reads them) carry what the features are made of: the newest session among them is answered, for every symbol that has bars; a symbol
needs its last 21 bars, within 31 sessions. Relations hold for all of these sessions: a list of competitors that changed among them is
told by rows alone.

Tables are built from buffers and read back as lists: pyarrow's own conversions load pandas, which an endpoint does without.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from quant_assets.serving.bundle import Bundle, BundleError, require_kind
from quant_assets.serving.hours import EPOCH, ExchangeHours
from quant_assets.serving.refusals import InvalidAnswer, RequestRefused

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS = 5_000
MOST_BARS = 20_000
MOST_ARTICLES = 20_000
MOST_RELATIONS = 20_000
MOST_SYMBOL_LENGTH = 32
# What a bar may say. Wide enough for any share, narrow enough that no indicator overflows.
BAR_BOUNDS = {
    "open": (1e-6, 1e9),
    "high": (1e-6, 1e9),
    "low": (1e-6, 1e9),
    "close": (1e-6, 1e9),
    "volume": (1e-3, 1e15),
    "dividend": (0.0, 1e9),
    "split_factor": (1e-4, 1e4),
}
# Of any feature, up or down: with more the network itself could overflow, and a request would look like a broken model.
MOST_FEATURE = 1e6
SENTIMENT_TABLE = "features.sentiment"
PEERS_TABLE = "features.peers"
TECHNICAL_TABLE = "features.technical"
SIDES = {1: "long", -1: "short", 0: "flat"}
# Of rows without an article; no number depends on it.
NEWS_SOURCE = "request"


# -- request and answer ------------------------------------------------------------------------------------------------


class FeatureRow(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Features of one symbol at the close of one session.

    Attributes:
        symbol: one that the model knows.
        session: exchange date.
        features: name -> value, exactly those that the model reads.
    """

    symbol: str
    session: dt.date
    features: dict[str, float]


class Bar(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One raw daily bar, never adjusted.

    Attributes:
        symbol: one that the model knows.
        session: exchange date.
        open, high, low, close: dollars, above 0, low <= open, close <= high.
        volume: shares traded, above 0.
        dividend: cash per share going ex on this session, dollars.
        split_factor: new shares per old share from this session on.
    """

    symbol: str
    session: dt.date
    open: float
    high: float
    low: float
    close: float
    volume: float
    dividend: float = 0.0
    split_factor: float = 1.0


class Article(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What one article says about one symbol.

    Attributes:
        article_id: its identity.
        symbol: one that has bars, or a peer of one.
        session: that it belongs to: it was published after the close of the session before, and not after the close of this one.
        sentiment_score: of this symbol in the article, -1 to 1.
        relevance_score: how much the article is about it, 0 to 1.
    """

    article_id: str
    symbol: str
    session: dt.date
    sentiment_score: float
    relevance_score: float


class Relation(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Whose news count for a symbol.

    Attributes:
        symbol: one that has bars.
        peer: another company; it needs no bars.
        kind: 'competitor', or 'industry' for a company of the same industry. One that is both is sent as both.
    """

    symbol: str
    peer: str
    kind: Literal["competitor", "industry"]


def _list(most: int, text: str) -> Any:
    return Meta(description=text, extra_json_schema={"maxItems": most})


class SignalRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What to judge: either rows or bars.

    Attributes:
        rows: features, at most 5,000 rows.
        bars: at most 20,000; the newest session is answered.
        news: with bars, and only for models that read sentiment, which need it (empty where there was none); at most 20,000.
        relations: with bars, and only for models that read the news of peers, which need them (empty where there are none); at most
            20,000.
    """

    rows: Annotated[list[FeatureRow], _list(MOST_ROWS, "features by symbol and session")] | None = None
    bars: (
        Annotated[list[Bar], _list(MOST_BARS, "raw daily bars, to the session that is asked about")] | None
    ) = None
    news: (
        Annotated[list[Article], _list(MOST_ARTICLES, "with bars, for models that read sentiment")] | None
    ) = None
    relations: (
        Annotated[list[Relation], _list(MOST_RELATIONS, "with bars, for models that read the news of peers")]
        | None
    ) = None


class Prediction(msgspec.Struct, kw_only=True):
    """What the model says of one symbol at the close of one session.

    Attributes:
        symbol, session: as asked for.
        probability_long, probability_short: that a trade of that side, entered at the next open, reaches its target first.
        side: 'long', 'short' or 'flat', by the bundle's thresholds.
    """

    symbol: str
    session: dt.date
    probability_long: float
    probability_short: float
    side: str


class SignalAnswer(msgspec.Struct, kw_only=True):
    """Predictions: of rows in their order, of bars by symbol.

    Attributes:
        session: the newest among the predictions.
        predictions: one for each row, or for each symbol with bars.
        model, model_version: who answered.
        bundle: first 12 digits of the archive's digest.
    """

    session: dt.date
    predictions: list[Prediction]
    model: str
    model_version: int
    bundle: str


# -- the answerer ------------------------------------------------------------------------------------------------------


class SignalAnswerer:
    """Answers with the classifier of a bundle. Holds nothing of a request: threads may share it.

    Args:
        bundle: of kind 'signal'.

    Raises:
        BundleError: another kind, features of another definition than this code computes, or a description that lacks something.
    """

    def __init__(self, bundle: Bundle) -> None:
        from quant_assets.models.feature_sets import FEATURE_SETS
        from quant_assets.models.mlp import OnnxMlp

        require_kind(bundle, "signal")
        described = bundle.description
        try:
            features = FEATURE_SETS.get(bundle.model)
            if features is None:
                raise BundleError(
                    f"no features are known of {bundle.model}; there are {', '.join(sorted(FEATURE_SETS))}"
                )
            then, now = described["hashes"]["feature_code"], features.schema_hash
            self.inputs = tuple(described["inputs"])
            self.tables = tuple(described["tables"])
            if then != now or self.inputs != features.inputs:
                raise BundleError(
                    f"{bundle.served_by} was trained on features {then}, the code computes {now}: train it again (train_job), or "
                    "serve it with the code that packed it"
                )
            self.symbols = tuple(described["symbols"])
            self._thresholds = (
                float(described["thresholds"]["long"]),
                float(described["thresholds"]["short"]),
            )
            if not all(0 <= threshold <= 1 for threshold in self._thresholds):
                raise ValueError(f"thresholds {self._thresholds} are no probabilities")
            self.hours = ExchangeHours.from_description(described["hours"])
            self._network = OnnxMlp(bundle.onnx, self.symbols)
            # Whether it takes these inputs at all; what it says of them is judged when somebody asks.
            self._network.predict(np.zeros((1, len(self.inputs))), list(self.symbols[:1]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(
                f"{bundle.served_by} does not describe a classifier that can be asked ({type(error).__name__}: {error}): "
                "pack it again"
            ) from error
        except Exception as error:  # what onnxruntime raises has no type of its own
            raise BundleError(
                f"the network of {bundle.served_by} cannot be loaded ({error}): pack it again"
            ) from error
        self._named = frozenset(self.inputs)
        self._model, self._version, self._digest = bundle.model, bundle.version, bundle.digest[:12]

    @property
    def reads_news(self) -> bool:
        """Whether bars have to come with news."""
        return SENTIMENT_TABLE in self.tables or self.reads_peers

    @property
    def reads_peers(self) -> bool:
        """Whether bars have to come with relations."""
        return PEERS_TABLE in self.tables

    def answer(self, request: SignalRequest, now: dt.datetime) -> SignalAnswer:
        """Judge rows or bars.

        Args:
            request: as decoded; its values are checked here.
            now: not used: an answer belongs to the sessions that are asked about. Answerers of both kinds are called alike.

        Raises:
            RequestRefused: it cannot be judged as it is.
            InvalidAnswer: the network gave no probabilities.
        """
        if (request.rows is None) == (request.bars is None):
            which = "both" if request.rows is not None else "neither"
            raise RequestRefused(
                "rows", f"{which} of rows and bars came: send features as rows, or bars, not both"
            )
        if request.rows is not None:
            if request.news is not None:
                raise RequestRefused("news", "rows carry their features already: news goes with bars")
            if request.relations is not None:
                raise RequestRefused("relations", "rows carry their features already: relations go with bars")
            symbols, sessions, x = self._rows(request.rows)
        else:
            symbols, sessions, x = self._features(request.bars or [], request.news, request.relations)
        probability = self._probability(x, symbols)

        from quant_assets.strategies.mlp_long_short import choose_side

        sides = choose_side(probability, self._thresholds).tolist()
        return SignalAnswer(
            session=max(sessions),
            predictions=[
                Prediction(
                    symbol=symbol,
                    session=session,
                    probability_long=long,
                    probability_short=short,
                    side=SIDES[side],
                )
                for symbol, session, (long, short), side in zip(
                    symbols, sessions, probability.tolist(), sides, strict=True
                )
            ],
            model=self._model,
            model_version=self._version,
            bundle=self._digest,
        )

    def _probability(self, x: np.ndarray, symbols: list[str]) -> np.ndarray:
        try:
            probability = np.asarray(self._network.predict(x, symbols))
        except Exception as error:  # of any type: the model is at fault, and the process goes on
            raise InvalidAnswer(f"the network fails: {error}") from error
        if probability.shape != (len(symbols), 2) or not ((probability >= 0) & (probability <= 1)).all():
            raise InvalidAnswer(
                f"the network gives numbers of shape {probability.shape} that are not all probabilities"
            )
        return probability

    # -- rows ------------------------------------------------------------------------------------------------------------

    def _rows(self, rows: list[FeatureRow]) -> tuple[list[str], list[dt.date], np.ndarray]:
        _require_some("rows", rows, MOST_ROWS)
        self._check_keys("rows", rows)
        _require_once("rows", ((row.symbol, row.session) for row in rows), _named_day)
        for i, row in enumerate(rows):
            if row.features.keys() != self._named:
                self._refuse_names(i, row.features)
        x = np.array([[row.features[name] for name in self.inputs] for row in rows], np.float64)
        fine = np.abs(x) <= MOST_FEATURE  # NaN compares false
        if not fine.all():
            at, which = np.argwhere(~fine)[0]
            raise RequestRefused(
                f"rows[{at}].features.{self.inputs[which]}",
                f"{x[at, which]:g} is not possible: {-MOST_FEATURE:g} to {MOST_FEATURE:g}",
            )
        return [row.symbol for row in rows], [row.session for row in rows], x

    def _refuse_names(self, i: int, features: dict[str, float]) -> None:
        if missing := [name for name in self.inputs if name not in features]:
            raise RequestRefused(
                f"rows[{i}].features.{missing[0]}",
                f"is missing; {self._model} reads {len(self.inputs)} features, {len(missing)} are not there",
            )
        unknown = min(name for name in features if name not in self._named)
        raise RequestRefused(
            f"rows[{i}].features.{unknown[:60]}",
            f"is unknown; {self._model} reads {', '.join(self.inputs)}",
        )

    def _check_keys(self, field: str, items: Sequence[FeatureRow | Bar]) -> None:
        """Symbols that the model knows, sessions that are some."""
        for i, item in enumerate(items):
            _require_ticker(f"{field}[{i}].symbol", item.symbol)
            if self.symbols != ("*",) and item.symbol not in self.symbols:
                raise RequestRefused(
                    f"{field}[{i}].symbol",
                    f"{item.symbol!r} is unknown; {self._model} knows {', '.join(self.symbols)}",
                )
            self._require_session(f"{field}[{i}].session", item.session)

    def _require_session(self, field: str, session: dt.date) -> None:
        if not self.hours.is_session(session):
            raise RequestRefused(
                field,
                f"{session} is no session: a weekend, a holiday, or outside {self.hours.first}..{self.hours.last}",
            )

    # -- bars ------------------------------------------------------------------------------------------------------------

    def _features(
        self, bars: list[Bar], news: list[Article] | None, relations: list[Relation] | None
    ) -> tuple[list[str], list[dt.date], np.ndarray]:
        """Inputs of the newest session by the code that made the training rows; symbols in order."""
        from quant_assets.features.peers import peer_features
        from quant_assets.features.sentiment import sentiment_features
        from quant_assets.features.technical import (
            BARS_BACK,
            LOOKBACK_SESSIONS,
            technical_features,
        )
        from quant_assets.models.inference import model_rows

        _require_some("bars", bars, MOST_BARS)
        self._check_keys("bars", bars)
        _require_once("bars", ((bar.symbol, bar.session) for bar in bars), _named_day)
        newest = max(bar.session for bar in bars)
        table = self._bars_table(bars)
        traded = {bar.symbol for bar in bars}
        self._check_relations(relations, traded)
        self._check_news(news, traded, {relation.peer for relation in relations or []}, newest)
        computed = {TECHNICAL_TABLE: technical_features(table, self.hours, newest, newest)}
        articles = _news_table(news or [])
        if SENTIMENT_TABLE in self.tables:
            computed[SENTIMENT_TABLE] = sentiment_features(
                articles, table, self.hours, newest, newest, NEWS_SOURCE
            )
        if self.reads_peers:
            computed[PEERS_TABLE] = peer_features(
                articles, table, _relations_table(relations or []), self.hours, newest, newest, NEWS_SOURCE
            )
        rows = model_rows({"tables": self.tables, "inputs": self.inputs}, computed)
        symbols = rows["symbol"].to_pylist()
        if lacking := sorted(traded - set(symbols)):
            raise RequestRefused(
                "bars",
                f"{lacking[0]} has no features on {newest}: it needs a bar of that session and {BARS_BACK} before it, within "
                f"{LOOKBACK_SESSIONS + 1} sessions; send them, or leave the symbol out",
            )
        x = np.array([rows[name].to_pylist() for name in self.inputs], np.float64).T
        fine = np.abs(x) <= MOST_FEATURE
        if not fine.all():
            at, which = np.argwhere(~fine)[0]
            raise RequestRefused(
                "bars", f"{self.inputs[which]} of {symbols[at]} is {x[at, which]:g}: look at its prices"
            )
        return symbols, rows["session"].to_pylist(), x

    def _bars_table(self, bars: list[Bar]) -> pa.Table:
        import pyarrow as pa

        values = {name: np.array([getattr(bar, name) for bar in bars], np.float64) for name in BAR_BOUNDS}
        for name, (low, high) in BAR_BOUNDS.items():
            fine = (values[name] >= low) & (values[name] <= high)  # NaN compares false
            if not fine.all():
                at = int(np.argmin(fine))
                raise RequestRefused(
                    f"bars[{at}].{name}", f"{values[name][at]:g} is not possible: {low:g} to {high:g}"
                )
        for name, above in (("low", False), ("high", True)):
            for other in ("open", "close"):
                wrong = (values[name] < values[other]) if above else (values[name] > values[other])
                if wrong.any():
                    at = int(np.argmax(wrong))
                    raise RequestRefused(
                        f"bars[{at}].{name}",
                        f"{values[name][at]:g} is {'below' if above else 'above'} {other}, {values[other][at]:g}",
                    )
        closes = {session: self.hours.close(session) for session in {bar.session for bar in bars}}
        microseconds = np.array(
            [(closes[bar.session] - EPOCH) // dt.timedelta(microseconds=1) for bar in bars], np.int64
        )
        columns = {
            "symbol": _text(bar.symbol for bar in bars),
            "session": _dates(bar.session for bar in bars),
            "available_at": _numbers(microseconds, pa.timestamp("us", "UTC")),
            **{name: _numbers(column, pa.float64()) for name, column in values.items()},
        }
        return pa.Table.from_arrays(list(columns.values()), names=list(columns))

    def _check_relations(self, relations: list[Relation] | None, symbols: set[str]) -> None:
        if not self.reads_peers:
            if relations is not None:
                raise RequestRefused("relations", f"{self._model} reads none: leave them out")
            return
        if relations is None:
            raise RequestRefused(
                "relations",
                f"is missing: {self._model} reads the news of competitors and industry; send [] where there are none",
            )
        if len(relations) > MOST_RELATIONS:
            raise RequestRefused(
                "relations", f"{len(relations)} relations are too many: at most {MOST_RELATIONS}"
            )
        for i, relation in enumerate(relations):
            _require_ticker(f"relations[{i}].symbol", relation.symbol)
            if relation.symbol not in symbols:
                raise RequestRefused(
                    f"relations[{i}].symbol", f"{relation.symbol!r} has no bars: leave the relation out"
                )
            _require_ticker(f"relations[{i}].peer", relation.peer)
            if relation.peer == relation.symbol:
                raise RequestRefused(f"relations[{i}].peer", f"{relation.peer!r} is no peer of itself")
        _require_once(
            "relations",
            ((r.symbol, r.peer, r.kind) for r in relations),
            lambda key: f"{key[1]} as {key[2]} of {key[0]}",
        )

    def _check_news(
        self, news: list[Article] | None, symbols: set[str], peers: set[str], newest: dt.date
    ) -> None:
        if not self.reads_news:
            if news is not None:
                raise RequestRefused("news", f"{self._model} reads none: leave it out")
            return
        if news is None:
            raise RequestRefused(
                "news", f"is missing: {self._model} reads sentiment; send [] where there was none"
            )
        if len(news) > MOST_ARTICLES:
            raise RequestRefused("news", f"{len(news)} articles are too many: at most {MOST_ARTICLES}")
        for i, article in enumerate(news):
            # Whoever has bars is known by now; of peers nothing but their news is read.
            _require_ticker(f"news[{i}].symbol", article.symbol)
            if article.symbol not in symbols and article.symbol not in peers:
                whose = "bars" if not self.reads_peers else "bars and is nobody's peer"
                raise RequestRefused(
                    f"news[{i}].symbol", f"{article.symbol!r} has no {whose}: leave the article out"
                )
            self._require_session(f"news[{i}].session", article.session)
        _require_once(
            "news", ((a.article_id, a.symbol) for a in news), lambda key: f"article {key[0]} on {key[1]}"
        )
        for i, article in enumerate(news):
            if article.session > newest:
                raise RequestRefused(
                    f"news[{i}].session", f"{article.session} comes after the newest bar, {newest}"
                )
            for name, low in (("sentiment_score", -1.0), ("relevance_score", 0.0)):
                value = getattr(article, name)
                if not low <= value <= 1.0:
                    raise RequestRefused(f"news[{i}].{name}", f"{value:g} is not possible: {low:g} to 1")


def _require_ticker(field: str, symbol: str) -> None:
    if not 0 < len(symbol) <= MOST_SYMBOL_LENGTH:
        raise RequestRefused(field, f"has {len(symbol)} characters: 1 to {MOST_SYMBOL_LENGTH}")


def _require_some(field: str, items: Sequence[object], most: int) -> None:
    if not 0 < len(items) <= most:
        raise RequestRefused(field, f"has {len(items)} entries: 1 to {most}")


def _require_once(field: str, keys: Iterable[Any], named: Callable[[Any], str]) -> None:
    seen: dict[Any, int] = {}
    for i, key in enumerate(keys):
        first = seen.setdefault(key, i)
        if first != i:
            raise RequestRefused(
                f"{field}[{i}]", f"{named(key)} is there already, as {field}[{first}]: once is enough"
            )


def _named_day(key: tuple[str, dt.date]) -> str:
    return f"{key[0]} on {key[1]}"


# -- tables without pandas ---------------------------------------------------------------------------------------------


def _news_table(news: list[Article]) -> pa.Table:
    import pyarrow as pa

    columns = {
        "article_id": _text(a.article_id for a in news),
        "symbol": _text(a.symbol for a in news),
        "session": _dates(a.session for a in news),
        "sentiment_score": _numbers(np.array([a.sentiment_score for a in news], np.float64), pa.float64()),
        "relevance_score": _numbers(np.array([a.relevance_score for a in news], np.float64), pa.float64()),
        "source": _text(NEWS_SOURCE for _ in news),
    }
    return pa.Table.from_arrays(list(columns.values()), names=list(columns))


def _relations_table(relations: list[Relation]) -> pa.Table:
    import pyarrow as pa

    from quant_assets.features.peers import ALWAYS

    columns = {
        "symbol": _text(r.symbol for r in relations),
        "peer": _text(r.peer for r in relations),
        "kind": _text(r.kind for r in relations),
        "as_of": pa.nulls(len(relations), pa.date32()),
        "valid_from": _dates(ALWAYS for _ in relations),
    }
    return pa.Table.from_arrays(list(columns.values()), names=list(columns))


def _numbers(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _dates(days: Iterable[dt.date]) -> pa.Array:
    import pyarrow as pa

    return _numbers(np.array(list(days), "datetime64[D]").astype(np.int32), pa.date32())


def _text(values: Iterable[str]) -> pa.Array:
    import pyarrow as pa

    encoded = [value.encode() for value in values]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(value) for value in encoded], out=offsets[1:])
    return pa.Array.from_buffers(
        pa.string(), len(encoded), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    )
