"""Peer finders: which list counts, what a file must look like, and what is taken from a model's answer and from AWS's refusals."""

import datetime as dt
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quant_resources.bedrock import ATTEMPTS, BedrockError
from quant_resources.peers import (
    BedrockPeers,
    FinderBusy,
    Found,
    NoAnswer,
    PeerFinderError,
    TablePeers,
    open_peer_finder,
    question,
    read_answer,
    split_known,
)
from quant_resources.settings import Settings
from tests.vendors.bedrock import MODEL, SIGNED, BedrockStub, bedrock_stub

TODAY = dt.date(2024, 6, 3)
KNOWN = {"AAPL": "Apple", "GOOG": "Google", "IBM": "", "MSFT": 'Micro"soft\nCorp'}
EVERYBODY = dict.fromkeys(("AAPL", "GOOG", "IBM", "MSFT", "DELL", "HPQ", "GOOGL", "KO", "PEP"), "")


# ----------------------------------------------------------------------------------------------------------- tables


@pytest.fixture
def yours(tmp_path: Path) -> Callable[[str], TablePeers]:
    def make(text: str) -> TablePeers:
        path = tmp_path / "peers.csv"
        path.write_text(text, encoding="utf-8")
        return TablePeers(path, today=TODAY)

    return make


def test_the_source_comes_before_your_file_and_your_file_before_the_bundled_list(
    yours: Callable[[str], TablePeers],
) -> None:
    finder = yours('symbol,peers,as_of\nAAPL,"DELL,HPQ",2020-01-02\nIBM,HPQ,2020-01-02\n')
    finder = finder.with_own_lists({"IBM": "MSFT, goog", "AAPL": " ", "GOOG": ""}, dt.date(2013, 3, 1))
    assert finder.find("IBM", EVERYBODY) == Found(("MSFT", "GOOG"), (), dt.date(2013, 3, 1))
    assert finder.find("AAPL", EVERYBODY) == Found(("DELL", "HPQ"), (), dt.date(2020, 1, 2))
    bundled = TablePeers().find("KO", EVERYBODY)
    assert bundled.peers == ("PEP",)
    assert bundled.rejected == ("KDP", "MNST")
    with pytest.raises(NoAnswer, match=r"no list names competitors of ZZZ.*QUANT_PEERS_FILE"):
        finder.find("ZZZ", EVERYBODY)


def test_a_symbol_may_have_lists_of_several_days(yours: Callable[[str], TablePeers]) -> None:
    finder = yours('\ufeffas_of, symbol, peers\n2021-05-03,aapl,"hpq"\n\n2019-05-03,AAPL,DELL\n,IBM,MSFT\n')
    assert [(f.as_of.year, f.peers) for f in finder.every("AAPL", EVERYBODY)] == [
        (2019, ("DELL",)),
        (2021, ("HPQ",)),
    ]
    assert finder.find("AAPL", EVERYBODY).peers == ("HPQ",)
    assert finder.find("IBM", EVERYBODY).as_of == TODAY


def test_what_is_not_known_and_the_symbol_itself_are_set_aside() -> None:
    assert split_known(["MSFT", "XYZ", "AAPL", "MSFT", "GOOG"], "AAPL", KNOWN) == (
        ("MSFT", "GOOG"),
        ("XYZ", "AAPL"),
    )


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        ("", 1, "the file is empty"),
        ("ticker,peers\n", 1, "the columns are ticker, peers; needs symbol, peers"),
        ("symbol,peers,when\n", 1, "the columns are symbol, peers, when"),
        ("symbol,peers\nAAPL,GOOG,MSFT\n", 2, "3 cells where the header has 2; put quotes around"),
        ("symbol,peers\n\nAAPL,\n", 3, "peers of AAPL is empty"),
        ('symbol,peers\nAAPL,"GOOG,Alphabet Inc"\n', 2, "'ALPHABET INC' is not a ticker"),
        ("symbol,peers\n3M,MMM\n", 2, "'3M' is not a ticker"),
        ('symbol,peers\nAAPL,"GOOG,AAPL"\n', 2, "AAPL is among its own peers"),
        ("symbol,peers,as_of\nAAPL,GOOG,03.06.2024\n", 2, "as_of = '03.06.2024' is not a date"),
        ("symbol,peers,as_of\nAAPL,GOOG,2024-06-04\n", 2, "as_of = 2024-06-04 lies ahead of today"),
        ("symbol,peers\nAAPL,GOOG\nAAPL,MSFT\n", 3, "AAPL has a list of 2024-06-03 already"),
        ('symbol,peers\nAAPL,"GOOG\n', 2, "malformed CSV"),
    ],
)
def test_a_wrong_file_is_refused_with_file_line_and_rule(
    yours: Callable[[str], TablePeers], tmp_path: Path, text: str, line: int, rule: str
) -> None:
    with pytest.raises(PeerFinderError) as raised:
        yours(text).find("AAPL", KNOWN)
    assert f"{tmp_path / 'peers.csv'}:{line}: {rule}" in str(raised.value)


def test_a_file_that_is_no_text_or_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "peers.csv"
    path.write_bytes(b"symbol,peers\n\xff\xfe,GOOG\n")
    for finder in (TablePeers(path), TablePeers(tmp_path / "nowhere.csv")):
        with pytest.raises(PeerFinderError, match=r"cannot be read: .*QUANT_PEERS_FILE is a CSV"):
            finder.find("AAPL", KNOWN)


def test_the_bundled_list_is_in_order() -> None:
    # Reading it judges every row: tickers, days, nobody twice.
    bundled = TablePeers(today=TODAY)._bundled
    assert len(bundled) >= 60
    for symbol, lists in bundled.items():
        (only,) = lists
        # Whoever competes with Alphabet competes with both of its share classes: news name either.
        assert ("GOOG" in only.named) == ("GOOGL" in only.named), symbol
        assert 3 <= len(set(only.named) - {"GOOG"}) <= 6, symbol
        assert len(set(only.named)) == len(only.named), symbol
    assert list(bundled) == sorted(bundled)


def test_the_settings_choose_the_finder(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("symbol,peers\nAAPL,IBM\n")
    table = open_peer_finder(Settings(peers_file=file))
    assert (table.name, table.find("AAPL", KNOWN).peers) == ("table", ("IBM",))
    bedrock = open_peer_finder(Settings(peer_finder="bedrock", bedrock_model_id="some.model"))
    assert (bedrock.name, bedrock.model_id) == ("bedrock", "some.model")  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    "answer",
    [
        '{"competitors": ["MSFT", " goog "]}',
        ' \n{"competitors":["MSFT","GOOG"]}\n',
        '```json\n{"competitors": ["MSFT", "GOOG"]}\n```',
        '```\n{\n "competitors": ["MSFT",\n "GOOG"]}\n```\n',
    ],
)
def test_an_object_is_read_alone_or_in_a_fence(answer: str) -> None:
    assert read_answer(answer) == ("MSFT", "GOOG")


def test_an_empty_list_is_an_answer_and_foreign_tickers_are_read() -> None:
    assert read_answer('{"competitors": []}') == ()
    assert read_answer('{"competitors": ["005930.KS", "NYSE:KO", "N/A"]}') == ("005930.KS", "NYSE:KO", "N/A")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "not a JSON object"),
        ("MSFT, GOOG", "not a JSON object: it begins with"),
        ('Sure! {"competitors": ["MSFT"]}', "not a JSON object"),
        ('{"competitors": ["MSFT"]} Hope this helps.', "not a JSON object"),
        ('```json\n{"competitors": ["MSFT"]}\n``` and ```json\n{}\n```', "not a JSON object"),
        ('{"competitors": ["MSFT", "GO', "not a JSON object"),  # cut off by the limit of tokens
        ('["MSFT"]', "not of the form"),
        ('{"Competitors": ["MSFT"]}', "not of the form"),
        ('{"competitors": ["MSFT"], "note": "x"}', "not of the form"),
        ('{"competitors": "MSFT"}', "not of the form"),
        ('{"competitors": [{"ticker": "MSFT"}]}', "is not a ticker"),
        ('{"competitors": ["MSFT", null]}', "null is not a ticker"),
        ('{"competitors": ["MSFT,GOOG"]}', "is not a ticker"),
        ('{"competitors": ["The Coca-Cola Company of Atlanta"]}', "is not a ticker"),
        ("[" * 100_000, "not a JSON object"),
    ],
)
def test_anything_else_is_refused_with_its_beginning(answer: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        read_answer(answer)
    assert len(str(raised.value)) < 600


@settings(max_examples=200, deadline=None)
@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
@example('{"competitors": ["MSFT\\n"]}')
def test_no_answer_gives_anything_but_tickers_or_a_refusal(answer: str) -> None:
    try:
        named = read_answer(answer)
    except ValueError:
        return
    assert all(ticker == ticker.strip().upper() and "," not in ticker for ticker in named)


# ---------------------------------------------------------------------------------------------------------- Bedrock


@pytest.fixture
def stub() -> Iterator[BedrockStub]:
    with bedrock_stub() as made:
        yield made


@pytest.fixture
def finder(stub: BedrockStub) -> BedrockPeers:
    return BedrockPeers(MODEL, stub.client, pause=lambda seconds: None)


def test_one_question_one_answer(finder: BedrockPeers, stub: BedrockStub) -> None:
    prompt = question("AAPL", "Apple")
    said = '{"competitors": ["MSFT", "SSNLF", "AAPL", "GOOG"]}'
    stub.answers(said, prompt, max_tokens=300)
    found = finder.find("AAPL", KNOWN)
    assert found.peers == ("MSFT", "GOOG")
    assert found.rejected == ("SSNLF", "AAPL")
    assert (found.model_id, found.prompt, found.answer) == (MODEL, prompt, said)
    assert abs(found.as_of - dt.datetime.now(dt.UTC).date()) <= dt.timedelta(days=1)


def test_the_question_names_company_ticker_and_rule() -> None:
    asked = question("AAPL", "Apple")
    for part in ('"Apple"', "AAPL", "stock exchange in the United States", '{"competitors": ["TICKER"'):
        assert part in asked
    assert "the company with the ticker IBM" in question("IBM", "")
    # A name is data: its quotes and line breaks do not end the sentence that it stands in.
    assert '"Micro\\"soft\\nCorp" (ticker MSFT)' in question("MSFT", KNOWN["MSFT"])


def test_an_answer_that_cannot_be_read_is_asked_for_once_more(
    finder: BedrockPeers, stub: BedrockStub
) -> None:
    first = question("AAPL", "Apple")
    again = (
        f'{first}\nAn earlier answer could not be used: it is not a JSON object: it begins with "Microsoft.". '
        "Answer with the JSON object alone."
    )
    stub.answers("Microsoft.", first, max_tokens=300)
    stub.answers('```json\n{"competitors": ["MSFT"]}\n```', again, max_tokens=300)
    found = finder.find("AAPL", KNOWN)
    assert found.peers == ("MSFT",)
    assert found.prompt == again


def test_after_two_unreadable_answers_the_symbol_has_none(finder: BedrockPeers, stub: BedrockStub) -> None:
    stub.answers('{"competitors": ["MSFT", "GO')
    stub.answers(None)
    with pytest.raises(
        NoAnswer, match="asked twice for the competitors of AAPL and gave no list: it is not a JSON"
    ):
        finder.find("AAPL", KNOWN)


def test_a_bedrock_that_stays_busy_is_told_as_such(finder: BedrockPeers, stub: BedrockStub) -> None:
    stub.refuses("ThrottlingException", "Too many requests", 429, times=ATTEMPTS)
    with pytest.raises(FinderBusy, match=r"too busy for the model amazon\.nova.*goes on where it stopped\."):
        finder.find("AAPL", KNOWN)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("AccessDeniedException", "does not let this caller use the model amazon.nova-lite-v1:0 (told)"),
        ("ExpiredTokenException", "AWS does not take the credentials"),
    ],
)
def test_what_aws_refuses_is_told_with_the_way_without_bedrock(
    finder: BedrockPeers, stub: BedrockStub, code: str, told: str
) -> None:
    stub.refuses(code)
    with pytest.raises(PeerFinderError) as raised:
        finder.find("AAPL", KNOWN)
    assert told in str(raised.value)
    assert str(raised.value).endswith(" Or set QUANT_PEER_FINDER=table.")
    assert not isinstance(raised.value, FinderBusy | NoAnswer)
    # What AWS quotes of a signed request appears neither in the message nor in an error behind it.
    behind = raised.value.__context__
    assert isinstance(behind, BedrockError)
    assert SIGNED not in f"{raised.value} {behind}"
    assert behind.__context__ is None
    assert raised.value.__suppress_context__
