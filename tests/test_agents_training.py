"""Agents as assets: what `train_agents_job` left in the registry of the filled home, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

from quant_assets.environments import problems
from quant_assets.launch import QUIET
from quant_assets.models.sac import OnnxPolicy
from quant_assets.partitions import settings
from quant_resources.compute import Compute
from quant_resources.iceberg import Warehouse
from quant_resources.registry import ModelRegistry

NAMES = {"sac_execution": "execution", "sac_market_maker": "market_making", "sac_portfolio": "portfolio"}


def train(chain: Any, name: str, config: dict[str, Any], warehouse: Warehouse | None = None) -> Any:
    """In the filled home (or another one), with an event log of its own: what fails here is no failure of the chain."""
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(
            [chain.defs.get_assets_def(dg.AssetKey(["models", name]))],
            instance=instance,
            resources={
                "warehouse": warehouse or chain.warehouse,
                "registry": ModelRegistry(warehouse.home) if warehouse else chain.registry,
                "compute": Compute("sequential"),
            },
            run_config={**QUIET, "ops": {f"models__{name}": {"config": config}}},
            raise_on_error=False,
        )


def failure(result: Any, name: str) -> str:
    assert not result.success
    return str(result.failure_data_for_node(f"models__{name}").error)


def test_champions_carry_everything_that_serving_and_judging_need(chain: Any) -> None:
    for name, environment in NAMES.items():
        champion = chain.registry.champion(name)
        bundle = champion.bundle
        assert (bundle["kind"], bundle["environment"], bundle["profile"]) == ("agent", environment, "demo")
        assert bundle["lineage"]["git_commit"]
        assert bundle["windows"]["in_sample_last"]
        files = chain.registry.files(champion)
        seeds = {row["seed"]: row for row in bundle["seeds"]}
        assert len(seeds) == (2 if name == "sac_portfolio" else 1)
        assert files[seeds[bundle["chosen_seed"]]["file"]] == champion.onnx
        assert max(seeds.values(), key=lambda row: row["score"])["seed"] == bundle["chosen_seed"]
        curves = json.loads(files["learning_curves.json"])
        for seed, history in curves.items():
            assert history[-1]["updates"] > 0
            logged = chain.registry.client.get_metric_history(champion.run_id, f"seed_{seed}.score")
            logged.sort(key=lambda metric: metric.step)
            assert [m.value for m in logged] == [row["score"] for row in history]
        page = (chain.home / "reports" / "models" / f"{name}-v1.html").read_text()
        assert page.count("data:image/png;base64,") == 3
        low, high = np.array([0.0, 1.0]) if environment != "portfolio" else np.array([-1.0, 1.0])
        policy = OnnxPolicy(champion.onnx, bundle)
        action = policy.act(np.zeros((3, len(bundle["observation_names"]))))
        assert (action >= low - 1e-6).all()
        assert (action <= high + 1e-6).all()


def test_real_days_and_imagined_ones_are_not_the_same(chain: Any) -> None:
    bundle = chain.registry.champion("sac_execution").bundle
    assert bundle["real_market"] == "simulated stand-in", "the sample has no minute bars, and says so"
    assert bundle["training"]["imagined_per_step"] > 0
    assert list(bundle["symbols"]) == [chain.posterior_symbol]


def test_the_same_training_again_gives_the_same_agent_and_leaves_the_champion(chain: Any) -> None:
    config = chain.agents["models__sac_execution"]
    result = train(chain, "sac_execution", config)
    assert result.success
    champion = chain.registry.champion("sac_execution")
    challenger = chain.registry.find("sac_execution", "challenger")
    assert champion.version == 1
    assert challenger is not None
    assert challenger.onnx == champion.onnx
    checks = {e.check_name: e for e in result.get_asset_check_evaluations()}
    assert checks["onnx_agrees"].passed
    assert not checks["gate"].passed
    assert "not better than the champion: improves by +0 bps of the order" in str(checks["gate"].description)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"profile": "heroic"}, "profile = 'heroic': it is one of demo, full"),
        (
            {"parameters": {"learningrate": 1}},
            "learningrate is no hyperparameter; there are hidden_units, learning_rate",
        ),
        ({"parameters": {"gamma": 2.0}}, "gamma = 2.0: it must be from 0 to 1"),
        ({"seeds": 0}, "seeds = 0: at least 1"),
    ],
)
def test_a_wrong_configuration_is_named(chain: Any, config: dict[str, Any], message: str) -> None:
    assert message in failure(train(chain, "sac_execution", config), "sac_execution")


def test_without_a_posterior_there_is_nothing_to_train_on(chain: Any, tmp_path: Path) -> None:
    nothing = Warehouse(tmp_path / "home")
    for name in ("sac_execution", "sac_market_maker"):
        text = failure(train(chain, name, {}, nothing), name)
        assert "holds no simulated days: run posterior_job for at least one symbol first" in text
        assert "A posterior that fails its checks stores no draws" in text
    assert "market/bars holds no bar" in failure(train(chain, "sac_portfolio", {}, nothing), "sac_portfolio")


def test_transitions_of_another_environment_are_refused(chain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "EXECUTION", replace(problems.EXECUTION, max_pace=3.0))
    text = failure(train(chain, "sac_execution", {}), "sac_execution")
    assert "was made in another environment or on other days than those of now" in text
    assert f"materialize simulation/execution_transitions of {chain.posterior_symbol} again" in text


def test_a_finished_training_leaves_no_checkpoint(chain: Any) -> None:
    assert not [path for path in (settings().home / "checkpoints").rglob("*") if path.is_file()]


def test_another_configuration_is_no_reason_to_promote(chain: Any) -> None:
    """Two assets instead of three, trained for a second: the champion runs on its own assets, and stays."""
    config = {**chain.portfolio["models__sac_portfolio"], "symbols": ["AAPL", "IBM"], "seeds": 1}
    result = train(chain, "sac_portfolio", config)
    assert result.success
    gate = next(e for e in result.get_asset_check_evaluations() if e.check_name == "gate")
    assert "the champion" in str(gate.description)
    assert "cannot be run" not in str(gate.description)


def test_sessions_decide_about_promotion_or_judge_but_not_both(chain: Any) -> None:
    windows = chain.registry.champion("sac_portfolio").bundle["windows"]
    order = ["in_sample_last", "out_of_sample_first", "gate_last", "unseen_first", "out_of_sample_last"]
    assert [windows[name] for name in order] == sorted(windows[name] for name in order)
    assert windows["gate_last"] < windows["unseen_first"]
