"""What should be changed, with a reason for every optimizer: goals, the search, and the plan that comes of it."""

from safelight.planner.forecast import Forecast
from safelight.planner.goals import GOALS, Goal, Wish, wish
from safelight.planner.plans import AUTO, Choice, Plan, Step, fitting, loading_dtype, plan, still_fitting

__all__ = [
    "AUTO",
    "GOALS",
    "Choice",
    "Forecast",
    "Goal",
    "Plan",
    "Step",
    "Wish",
    "fitting",
    "loading_dtype",
    "plan",
    "still_fitting",
    "wish",
]
