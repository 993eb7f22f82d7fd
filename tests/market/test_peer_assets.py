"""Asset `market/peers`: who is asked when, what is kept of the answers, and what a run that dies leaves behind."""

import datetime as dt
from collections.abc import Callable, Mapping
from pathlib import Path

import dagster as dg
import pytest

from quant_assets.market import tables
from quant_assets.market.peer_assets import ANSWERED_CHECK, Answers, PeersConfig, add_lists, peers
from quant_resources.iceberg import Warehouse
from quant_resources.io_manager import IcebergIOManager
from quant_resources.peers import FinderBusy, Found, NoAnswer, PeerFinder, PeerFinderError, TablePeers
from quant_resources.sources.sample import LAST_SESSION, SampleSource

TODAY = dt.datetime.now(dt.UTC).date()
YESTERDAY = TODAY - dt.timedelta(days=1)
MASTER = {"AAA": "First", "BBB": "Second", "CCC": "Third"}


class Oracle:
    """A finder that says what a test tells it, counts the questions, and fails where it is told to."""

    name = "bedrock"

    def __init__(self, said: Mapping[str, str | BaseException], as_of: dt.date = TODAY) -> None:
        self.said, self.as_of = said, as_of
        self.asked: list[str] = []

    def find(self, symbol: str, known: Mapping[str, str]) -> Found:
        self.asked.append(symbol)
        told = self.said[symbol]
        if isinstance(told, BaseException):
            raise told
        named = told.split()
        return Found(
            tuple(t for t in named if t in known),
            tuple(t for t in named if t not in known),
            self.as_of,
            "a.model",
            f"Who competes with {known[symbol]}?",
            told,
        )


def write_master(
    warehouse: Warehouse, names: Mapping[str, str], own: Mapping[str, str] | None = None
) -> None:
    rows = [
        {
            "symbol": s,
            "name": name,
            "sector": "",
            "industry": "",
            "peers": (own or {}).get(s, ""),
            "source": "x",
        }
        for s, name in names.items()
    ]
    warehouse.write(tables.SECURITIES, tables.SECURITIES.arrow_schema.empty_table().from_pylist(rows))


Materialize = Callable[..., dg.ExecuteInProcessResult]


@pytest.fixture
def materialize(warehouse: Warehouse) -> Materialize:
    def run(finder: PeerFinder, refresh: bool = False, **options: object) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            [peers],
            resources={
                "warehouse": warehouse,
                "source": SampleSource(),
                "peer_finder": finder,
                "io_manager": IcebergIOManager(warehouse, {peers.key: tables.PEERS}),
            },
            run_config={
                "ops": {"market__peers": {"config": {"refresh": refresh}}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            **options,  # type: ignore[arg-type]
        )

    return run


def alone(finder: PeerFinder, warehouse: Warehouse) -> None:
    """The asset without a run, whose retries would take their time."""
    with dg.build_asset_context() as context:
        for _ in peers(
            context, PeersConfig(), source=SampleSource(), warehouse=warehouse, peer_finder=finder
        ):
            pass


def stored(warehouse: Warehouse) -> list[tuple[object, ...]]:
    names = ("symbol", "as_of", "finder", "peers", "rejected")
    return [tuple(row[n] for n in names) for row in warehouse.read(tables.PEERS).to_pylist()]


def check(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    (only,) = [e for e in result.get_asset_check_evaluations() if e.check_name == ANSWERED_CHECK]
    return only


def metadata(result: dg.ExecuteInProcessResult) -> Mapping[str, dg.MetadataValue]:
    (only,) = result.asset_materializations_for_node("market__peers")
    return only.metadata


def version(result: dg.ExecuteInProcessResult) -> str:
    (only,) = result.asset_materializations_for_node("market__peers")
    return (only.tags or {})["dagster/data_version"]


# ------------------------------------------------------------------------------------------------------------ tables


def test_the_sample_brings_its_lists_which_are_of_its_last_session(
    warehouse: Warehouse, materialize: Materialize
) -> None:
    master = {row["symbol"]: row for row in SampleSource().securities().to_pylist()}
    del master["GOOG"]
    write_master(warehouse, dict.fromkeys(master, ""), {s: row["peers"] for s, row in master.items()})
    result = materialize(TablePeers())
    assert stored(warehouse)[:2] == [
        ("AAPL", LAST_SESSION, "table", "IBM,MSFT", "GOOG"),
        ("FB", LAST_SESSION, "table", "", "GOOG"),
    ]
    rows = warehouse.read(tables.PEERS).to_pylist()
    assert {row["available_at"] for row in rows} == {dt.datetime(2013, 3, 1, tzinfo=dt.UTC)}
    assert {(row["model_id"], row["prompt"], row["answer"]) for row in rows} == {(None, None, None)}
    assert check(result).passed
    assert "| AAPL | IBM,MSFT | GOOG | table | 2013-03-01 |" in str(metadata(result)["competitors"].value)

    # What has not changed is not stored again.
    before = warehouse.read(tables.PEERS)
    materialize(TablePeers())
    assert warehouse.read(tables.PEERS).equals(before)


def test_a_symbol_that_the_master_learns_of_counts_without_another_question(
    warehouse: Warehouse, materialize: Materialize
) -> None:
    write_master(warehouse, {"AAA": "First"})
    oracle = Oracle({"AAA": "BBB CCC", "BBB": "AAA"}, YESTERDAY)
    materialize(oracle)
    assert stored(warehouse) == [("AAA", YESTERDAY, "bedrock", "", "BBB,CCC")]
    write_master(warehouse, {"AAA": "First", "BBB": "Second"})
    materialize(oracle)
    assert oracle.asked == ["AAA", "BBB"]
    assert stored(warehouse)[0] == ("AAA", YESTERDAY, "bedrock", "BBB", "CCC")
    assert warehouse.read(tables.PEERS)["answer"].to_pylist() == ["BBB CCC", "AAA"]


NOW = dt.datetime(2024, 6, 3, 15, 30, tzinfo=dt.UTC)


def listed(*lists: tuple[str, str]) -> list[Found]:
    return [Found(tuple(named.split()), (), dt.date.fromisoformat(as_of)) for named, as_of in lists]


def of_aaa(answers: Answers) -> list[tuple[str, str]]:
    return [(str(row["as_of"]), row["peers"]) for row in answers.of("AAA", "table")]


def test_lists_of_several_days_are_kept_with_their_days(warehouse: Warehouse) -> None:
    answers = Answers(warehouse, MASTER)
    lists = listed(("BBB", "2019-05-03"), ("BBB CCC", "2021-05-03"))
    assert add_lists(answers, "AAA", "table", lists, NOW)
    assert of_aaa(answers) == [("2019-05-03", "BBB"), ("2021-05-03", "BBB,CCC")]
    assert not add_lists(answers, "AAA", "table", lists, NOW)
    assert answers.of("AAA", "table")[0]["available_at"] == dt.datetime(2019, 5, 3, tzinfo=dt.UTC)


def test_an_undated_list_is_of_the_day_on_which_it_changed(warehouse: Warehouse) -> None:
    answers = Answers(warehouse, MASTER)
    add_lists(answers, "AAA", "table", listed(("BBB", "2024-05-01")), NOW.replace(month=5, day=1))
    assert not add_lists(answers, "AAA", "table", listed(("BBB", "2024-06-03")), NOW)
    assert add_lists(answers, "AAA", "table", listed(("CCC", "2024-06-03")), NOW)
    assert of_aaa(answers) == [("2024-05-01", "BBB"), ("2024-06-03", "CCC")]
    # It was not known before the run that saw it.
    assert answers.of("AAA", "table")[1]["available_at"] == NOW


def test_your_list_is_in_force_though_another_source_had_a_younger_one(warehouse: Warehouse) -> None:
    answers = Answers(warehouse, MASTER)
    add_lists(answers, "AAA", "table", listed(("BBB", "2024-05-01")), NOW)
    yours = listed(("CCC", "2020-01-02"))
    assert add_lists(answers, "AAA", "table", yours, NOW)
    assert of_aaa(answers) == [("2020-01-02", "CCC"), ("2024-05-01", "BBB"), ("2024-06-03", "CCC")]
    assert not add_lists(answers, "AAA", "table", yours, NOW + dt.timedelta(days=40))


def test_symbols_without_a_list_are_named_and_do_not_fail_the_run(
    warehouse: Warehouse, materialize: Materialize, tmp_path: Path
) -> None:
    write_master(warehouse, MASTER, {"AAA": "BBB"})
    result = materialize(TablePeers())
    assert result.success
    found = check(result)
    assert not found.passed
    assert found.severity == dg.AssetCheckSeverity.WARN
    assert found.description == "2 symbol(s) without an answer: BBB, CCC"
    assert "no list names competitors of BBB" in str(found.metadata["without an answer"].value)
    assert metadata(result)["without an answer"].value == 2

    broken = tmp_path / "mine.csv"
    broken.write_text("symbol,peers\nBBB,\n")
    failed = materialize(TablePeers(broken), raise_on_error=False)
    assert not failed.success
    assert stored(warehouse) == [("AAA", LAST_SESSION, "table", "BBB", "")]


# ----------------------------------------------------------------------------------------------------------- a model


def test_a_model_is_asked_once_per_symbol(warehouse: Warehouse, materialize: Materialize) -> None:
    write_master(warehouse, MASTER)
    said = {"AAA": "BBB XXX", "BBB": "AAA CCC", "CCC": ""}
    first = Oracle(said, YESTERDAY)
    result = materialize(first)
    assert first.asked == ["AAA", "BBB", "CCC"]
    assert check(result).passed
    row = warehouse.read(tables.PEERS).to_pylist()[0]
    assert (row["peers"], row["rejected"], row["model_id"]) == ("BBB", "XXX", "a.model")
    assert (row["prompt"], row["answer"]) == ("Who competes with First?", "BBB XXX")
    assert abs(row["available_at"] - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=10)
    assert materialize(first).success
    assert len(first.asked) == 3

    # Asked again on demand; older answers stay.
    second = Oracle({**said, "AAA": "CCC"})
    materialize(second, refresh=True)
    assert second.asked == ["AAA", "BBB", "CCC"]
    assert [row[:4] for row in stored(warehouse)][:2] == [
        ("AAA", YESTERDAY, "bedrock", "BBB"),
        ("AAA", TODAY, "bedrock", "CCC"),
    ]
    assert len(stored(warehouse)) == 6


def test_a_run_that_dies_keeps_its_answers_and_the_next_goes_on(
    warehouse: Warehouse, materialize: Materialize
) -> None:
    write_master(warehouse, MASTER)
    refused = Oracle({"AAA": "BBB", "BBB": PeerFinderError("no access")})
    assert not materialize(refused, raise_on_error=False).success
    assert [row[0] for row in stored(warehouse)] == ["AAA"]
    stopped = Oracle({"BBB": "AAA", "CCC": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        alone(stopped, warehouse)
    assert [row[0] for row in stored(warehouse)] == ["AAA", "BBB"]
    alive = Oracle({"CCC": "AAA"})
    assert materialize(alive).success
    assert [*refused.asked, *stopped.asked, *alive.asked] == ["AAA", "BBB", "BBB", "CCC", "CCC"]
    assert [row[0] for row in stored(warehouse)] == ["AAA", "BBB", "CCC"]


def test_a_symbol_without_a_readable_answer_is_asked_about_again(
    warehouse: Warehouse, materialize: Materialize
) -> None:
    write_master(warehouse, MASTER)
    mumbling = Oracle({"AAA": NoAnswer("asked twice"), "BBB": "AAA", "CCC": "AAA"})
    result = materialize(mumbling)
    assert result.success
    assert check(result).description == "1 symbol(s) without an answer: AAA"
    clear = Oracle({"AAA": "BBB"})
    assert check(materialize(clear)).passed
    assert clear.asked == ["AAA"]


@pytest.mark.parametrize(("error", "again"), [(FinderBusy("busy"), True), (PeerFinderError("denied"), False)])
def test_only_a_busy_service_is_worth_another_try(
    warehouse: Warehouse, error: PeerFinderError, again: bool
) -> None:
    write_master(warehouse, MASTER)
    with pytest.raises(dg.Failure, match=str(error)) as raised:
        alone(Oracle({"AAA": error}), warehouse)
    assert raised.value.allow_retries is again


def test_each_finder_has_answers_of_its_own(warehouse: Warehouse, materialize: Materialize) -> None:
    write_master(warehouse, MASTER, {"AAA": "BBB", "BBB": "CCC", "CCC": "AAA"})
    materialize(TablePeers())
    oracle = Oracle({"AAA": "CCC", "BBB": "CCC", "CCC": "BBB"})
    result = materialize(oracle)
    assert len(oracle.asked) == 3
    assert len(stored(warehouse)) == 6
    assert metadata(result)["finder"].value == "bedrock"
    # The same answers with another one chosen make other features: what is built on them must see a change.
    versions = [version(materialize(finder)) for finder in (TablePeers(), oracle, TablePeers())]
    assert versions[0] == versions[2] != versions[1]
    assert "| AAA | CCC |" in str(metadata(result)["competitors"].value)
