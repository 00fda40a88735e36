"""Train ladders: several sizes of one architecture, scaled by one rule, for a scaling law (`zoo ladder`)."""

from zoo.ladder.climbing import climb
from zoo.ladder.ladder_plan import Ladder, LadderRequest, Rung, plan_ladder, plan_together, predict_seconds

__all__ = ["Ladder", "LadderRequest", "Rung", "climb", "plan_ladder", "plan_together", "predict_seconds"]
