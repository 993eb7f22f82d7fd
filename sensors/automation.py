"""Declarative automation: features follow their inputs, whatever brought them in."""

import dagster as dg

feature_automation = dg.AutomationConditionSensorDefinition(
    "feature_automation",
    target=dg.AssetSelection.groups("features"),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Computes features, then their proofs, after new or corrected bars and news. Nights bring their own.",
)
