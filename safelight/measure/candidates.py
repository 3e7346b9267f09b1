"""What a search by measuring may try: every plan on the planner's walks, and the knobs of the optimizers that act here.

Comes in: an Outlook. Goes out: a Space. All predictions are by the model of cost alone: corrected by measurements,
plans that were measured and plans that were not could not be held against each other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from safelight.measure.frontier import PLAIN, STEPS, Setting
from safelight.measure.knobs import KNOBS, Knob, steps_knob
from safelight.measure.tune import Predicted, Space
from safelight.optimizers.registry import OPTIMIZERS, Fidelity, Registry
from safelight.planner.ahead import Outlook
from safelight.planner.forecast import Chosen, Forecast, unlike
from safelight.planner.search import Point, Search


def space(outlook: Outlook, *, fewer_steps: bool = True, registry: Registry = OPTIMIZERS) -> Space:
    """fewer_steps: whether steps may be taken away, too."""
    wish = outlook.wish
    pins = tuple((one.optimizer, one.options) for one in outlook.plan.choices if one.requested)
    search = Search(_alone(outlook.forecast), registry, pins, wish.without, wish.paid_by)
    asked = outlook.request.steps if outlook.request else None  # a picture to begin from needs fewer of them
    walks = _Walks(search, asked or outlook.walks[0].steps, wish.options)
    approximate = max(wish.speed, wish.memory) == Fidelity.APPROXIMATE
    steps = steps_knob(walks.steps) if fewer_steps and approximate else None
    knobs = [knob for knob in KNOBS if walks.turns(knob)] if approximate else []
    pinned = frozenset(optimizer.name for optimizer, _ in pins)
    return Space(
        candidates=tuple(_ordered(search, outlook)),
        knobs=(*knobs, *([steps] if steps else [])),
        joined=walks.joined,
        possible=walks.possible,
        predicted=walks.predicted,
        lossy=frozenset(known.name for known in registry.values() if known.fidelity != Fidelity.EXACT) | {STEPS},
        pinned=pinned,
    )


def _alone(forecast: Forecast) -> Forecast:
    """Without what earlier runs took; the search is then the same whenever it is gone on with."""
    before = forecast.before and _alone(forecast.before)
    return replace(forecast, measurements=(), before=before)


def _ordered(search: Search, outlook: Outlook) -> Iterable[Setting]:
    """Those that cost no fidelity first; in each half what none is predicted to beat, the best for the goal first.

    Plain is measured anyway, and what would not fit is not tried.
    """
    budget = outlook.plan.budget_bytes
    found = search.frontier(outlook.wish.speed, outlook.wish.memory)
    there = [point for point in found if budget is None or point.cost.peak_bytes <= budget]

    def key(point: Point) -> tuple[bool, bool, float]:
        seconds, size, approximate = search.seconds(point), point.cost.peak_bytes, is_approximate(point)
        rivals = [other for other in there if is_approximate(other) == approximate]
        beaten = any(search.seconds(o) < seconds and o.cost.peak_bytes < size for o in rivals)
        score = {"fast": seconds, "low-memory": float(size)}.get(outlook.wish.goal, seconds * size)
        return approximate, beaten, score

    def is_approximate(point: Point) -> bool:
        return search.fidelity(point) == Fidelity.APPROXIMATE

    settings = (setting_of(point.chosen) for point in sorted(there, key=key))
    return dict.fromkeys(setting for setting in settings if setting != PLAIN)


def setting_of(chosen: Iterable[Chosen], steps: int | None = None) -> Setting:
    return Setting.of({optimizer.name: unlike(optimizer, options) for optimizer, options in chosen}, steps)


@dataclass
class _Walks:
    """steps: that plain has. given: options that a person named, which no knob turns."""

    search: Search
    steps: int
    given: Mapping[str, Mapping[str, Any]]

    def chosen(self, setting: Setting) -> tuple[Chosen, ...]:
        registry = self.search.registry
        return tuple(
            (registry[name], {**registry[name].defaults(), **given}) for name, given in setting.options.items()
        )

    def turns(self, knob: Knob) -> bool:
        """Whether it does anything here, and nobody has said where it shall stand."""
        registry, given = self.search.registry, self.given
        if knob.optimizer not in registry or knob.option in given.get(knob.optimizer, {}):
            return False
        known = registry[knob.optimizer]
        there = knob.optimizer not in self.search.without and self.search.pointless(known) is None
        plain = setting_of(self.search.pins)
        return there and self.joined(plain, knob, knob.values()[knob.beginning()]) is not None

    def joined(self, setting: Setting, knob: Knob, value: float) -> Setting | None:
        """With it, and without what it stands in for; other options of the optimizer stay as they are."""
        if knob.optimizer == STEPS:
            return replace(setting, steps=int(value))
        known = self.search.registry[knob.optimizer]
        there = setting.options.get(known.name, {})
        options = {**known.defaults(), **there, knob.option: known.option(knob.option).kind(value)}
        others = [one for one in self.chosen(setting) if one[0].name != known.name]
        if known.name in {optimizer.name for optimizer, _ in self.search.pins}:
            return self._turned(setting, others, (known, options))
        made = self.search.with_candidate(others, (known, options))
        return None if made is None else setting_of(self.search.point(made).chosen, setting.steps)

    def _turned(self, setting: Setting, others: list[Chosen], one: Chosen) -> Setting | None:
        """Of a pinned optimizer, which the search itself would not touch."""
        changed = [*others, one]
        if any(self.search.why_not(choice, changed) for choice in changed):
            return None
        ordered = sorted(changed, key=lambda choice: (choice[0].stage, choice[0].name))
        return setting_of(ordered, setting.steps)

    def possible(self, setting: Setting) -> bool:
        chosen = self.chosen(setting)
        return not any(self.search.why_not(one, chosen) for one in chosen)

    def predicted(self, setting: Setting) -> Predicted:
        cost = self.search.point(self.chosen(setting)).cost
        share = 1.0 if setting.steps is None else setting.steps / self.steps
        seconds = cost.seconds - cost.denoise.seconds * (1 - share)
        return Predicted(seconds, cost.peak_bytes, cost.once)
