"""Posterior, simulated days and calibration as assets: real runs on the filled home, and what happens when something is wrong."""

import json
from collections.abc import Iterator
from typing import Any

import dagster as dg
import numpy as np
import pytest

from quant_assets.backtests.inputs import Market
from quant_assets.features.tables import TECHNICAL
from quant_assets.launch import QUIET, main
from quant_assets.partitions import CALENDAR, SYMBOLS
from quant_assets.posterior import tables
from quant_assets.posterior.inputs import read_returns
from quant_assets.posterior.priors import QUANTITIES
from quant_assets.simulation.transitions import read_paths

HESTON = dg.AssetKey(["posterior", "heston"])


def draws_of(chain: Any, symbol: str) -> Any:
    return chain.warehouse.read(tables.HESTON, only=symbol)


@pytest.fixture
def elsewhere() -> Iterator[dg.DagsterInstance]:
    """An instance of its own, so that failures do not stay in the event log that other tests read."""
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(SYMBOLS.name), ["AAPL", "IBM", "MSFT"])
        yield instance


def run(chain: Any, instance: dg.DagsterInstance, symbol: str, ops: dict[str, Any]) -> Any:
    config = {**QUIET, "ops": {name: {"config": values} for name, values in ops.items()}}
    return chain.defs.resolve_job_def("posterior_job").execute_in_process(
        instance=instance, raise_on_error=False, run_config=config, partition_key=symbol
    )


def said(result: Any) -> str:
    """What the failed step said."""
    failures = [e for e in result.all_events if e.event_type == dg.DagsterEventType.STEP_FAILURE]
    return str(failures[0].step_failure_data.user_failure_data.description)


def test_the_symbols_of_the_security_master_are_the_partitions(chain: Any) -> None:
    assert set(chain.instance.get_dynamic_partitions(str(SYMBOLS.name))) == set(chain.symbols)


def test_draws_fit_and_netcdf_say_the_same(chain: Any) -> None:
    import xarray

    symbol = chain.posterior_symbol
    draws = draws_of(chain, symbol)
    (fit,) = chain.warehouse.read(tables.HESTON_FITS, only=symbol).to_pylist()
    assert draws.num_rows == 4 * 500
    assert set(draws["session"].to_pylist()) == {fit["session"]}
    assert set(draws["available_at"].to_pylist()) == {CALENDAR.close(fit["session"])}
    assert json.loads(fit["diagnostics"])["draws"] == draws.num_rows
    stored = xarray.open_dataset(
        chain.home / "posterior" / "heston" / f"{symbol}.nc", group="posterior", engine="h5netcdf"
    )
    for name in QUANTITIES:
        assert np.array_equal(stored[name].values.ravel(), draws[name].to_numpy()), name
    for name in ("kappa", "theta", "sigma", "v0", "v_T"):
        assert draws[name].to_numpy().min() > 0
    assert np.abs(draws["rho"].to_numpy()).max() < 1


def test_a_fit_sees_in_sample_returns_only(chain: Any) -> None:
    returns = read_returns(chain.warehouse, "IBM")
    market = Market(chain.warehouse)
    # One rule for models, backtests and posteriors; features begin some sessions after the first bar.
    sessions = sorted(set(chain.read(TECHNICAL)["session"].to_pylist()))
    assert returns.in_sample_last == sessions[int(len(sessions) * 0.4) - 1]
    assert abs(CALENDAR.ordinal(returns.in_sample_last) - CALENDAR.ordinal(market.in_sample.last)) <= 20
    assert returns.sessions[-1] == returns.in_sample_last
    feature = chain.read(TECHNICAL).to_pandas().query("symbol == 'IBM'").set_index("session")["log_return"]
    assert np.array_equal(returns.values, feature.loc[returns.sessions].to_numpy())


def test_the_same_seed_gives_the_same_rows_and_one_more_snapshot(chain: Any, elsewhere: Any) -> None:
    symbol = chain.posterior_symbol
    before, snapshots = draws_of(chain, symbol), len(chain.warehouse.snapshots(tables.HESTON))
    path = chain.home / "simulation" / "intraday_paths" / f"{symbol}.parquet"
    days = path.read_bytes()
    assert run(chain, elsewhere, symbol, {**chain.posterior, **chain.days}).success
    assert draws_of(chain, symbol).equals(before)
    assert len(chain.warehouse.snapshots(tables.HESTON)) == snapshots + 1
    again = read_paths(path)
    assert again.info.posterior["snapshot"] == str(chain.warehouse.snapshot_id(tables.HESTON))
    path.write_bytes(days)
    assert np.array_equal(again.days.mid, read_paths(path).days.mid)


def test_every_simulated_day_starts_at_the_v_T_of_its_own_draw(chain: Any) -> None:
    symbol = chain.posterior_symbol
    stored = read_paths(chain.home / "simulation" / "intraday_paths" / f"{symbol}.parquet")
    draws = draws_of(chain, symbol)
    assert len(set(stored.days.draw_id)) == stored.days.days == 200
    assert np.array_equal(stored.days.parameters.v0, draws["v_T"].to_numpy()[stored.days.draw_id])
    assert np.array_equal(stored.days.parameters.rho, draws["rho"].to_numpy()[stored.days.draw_id])
    last = draws["session"][0].as_py()
    bars = Market(chain.warehouse).series[symbol]
    assert stored.days.mid[0, 0] == bars.close[list(bars.sessions.astype(object)).index(last)]


def test_too_few_returns_are_refused_and_nothing_is_stored(chain: Any, elsewhere: Any) -> None:
    result = run(chain, elsewhere, "AAPL", {})
    assert not result.success
    assert "AAPL" in said(result)
    assert "at least 250 sessions" in said(result)
    assert not draws_of(chain, "AAPL").num_rows


def test_sessions_after_the_in_sample_window_must_be_allowed(chain: Any, elsewhere: Any) -> None:
    late = {"posterior__heston": {"last_session": "2012-01-31"}}
    result = run(chain, elsewhere, "AAPL", late)
    assert not result.success
    assert "beyond_in_sample" in said(result)
    (evaluation,) = result.get_asset_check_evaluations()
    assert evaluation.check_name == "in_sample_only"
    assert not evaluation.passed
    assert not draws_of(chain, "AAPL").num_rows


def test_a_fit_that_did_not_converge_is_refused_and_the_earlier_one_stays(chain: Any, elsewhere: Any) -> None:
    symbol = chain.posterior_symbol
    before = draws_of(chain, symbol)
    impossible = {**chain.posterior["posterior__heston"], "max_r_hat": 0.9, "fall_back": False}
    result = run(chain, elsewhere, symbol, {"posterior__heston": impossible})
    assert not result.success
    assert "R-hat of mu is" in said(result)
    failed = {e.check_name for e in result.get_asset_check_evaluations() if not e.passed}
    assert failed == {"converged"}
    assert draws_of(chain, symbol).equals(before)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"last_session": "31.1.2012"}, "last_session = '31.1.2012' is not a date"),
        ({"in_sample_fraction": 1.5}, "in_sample_fraction = 1.5"),
        ({"sampler": "gibbs"}, "sampler 'gibbs': there are marginal and latent"),
        ({"kappa_median": -1.0}, "kappa_median"),
    ],
)
def test_a_wrong_config_is_named(chain: Any, elsewhere: Any, config: dict[str, Any], message: str) -> None:
    ops = {"posterior__heston": {"in_sample_fraction": 0.7, **config}}
    result = run(chain, elsewhere, "AAPL", ops)
    assert not result.success
    assert message in said(result)


def test_days_need_a_posterior(chain: Any, elsewhere: Any) -> None:
    result = dg.materialize(
        [chain.defs.get_assets_def(dg.AssetKey(["simulation", "intraday_paths"]))],
        instance=elsewhere,
        resources={"warehouse": chain.warehouse},
        partition_key="AAPL",
        raise_on_error=False,
    )
    assert not result.success
    assert "posterior/heston holds no draws of AAPL" in said(result)


def test_a_calibration_that_is_finished_is_not_run_again(chain: Any, elsewhere: Any) -> None:
    before = chain.warehouse.read(tables.HESTON_CALIBRATION)
    assert before.num_rows == 24
    ops = {name: {"config": values} for name, values in chain.calibration.items()}
    result = chain.defs.resolve_job_def("calibration_job").execute_in_process(
        instance=elsewhere, run_config={**QUIET, "ops": ops}
    )
    assert result.success
    # seconds are part of the rows: none was measured again
    assert chain.warehouse.read(tables.HESTON_CALIBRATION).equals(before)
    accepted = before.to_pandas().query("status == 'accepted'")
    assert len(accepted) >= 20
    for name in QUANTITIES:
        assert accepted[f"rank_{name}"].between(0, 99).all()


def test_the_terminal_names_symbols_that_are_not_there(
    chain: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["posterior_job", "--symbols", "AAPL,ACME"]) == 2
    assert "unknown are ACME; there are AAPL, IBM, MSFT" in capsys.readouterr().err


def test_plots_are_on_the_asset(chain: Any) -> None:
    for key, wanted in {
        HESTON: {
            "running mean of theta",
            "trace and ranks",
            "pairs",
            "predictive",
            "prior sensitivity",
            "volatility",
        },
        dg.AssetKey(["simulation", "intraday_paths"]): {"mid", "a day", "profiles", "volatility"},
        dg.AssetKey(["posterior", "heston_calibration"]): {"ECDF difference", "rank histograms"},
    }.items():
        event = chain.instance.get_latest_materialization_event(key)
        metadata = event.asset_materialization.metadata
        for name in wanted:
            assert "data:image/png;base64," in metadata[name].value, (key, name)
